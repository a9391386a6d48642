"""Who may listen where, by the access controller's word."""

import pytest

from eyewall.application.doors import Door
from eyewall.domain.errors import Forbidden


class Access:
    """Lets everybody listen to the rooms ``open``."""

    def __init__(self, *rooms):
        self.open = rooms

    def can_publish(self, meta, topic, event):
        return True

    def can_subscribe(self, meta, room_id):
        return room_id in self.open


class AsyncAccess(Access):
    async def can_subscribe(self, meta, room_id):
        return room_id in self.open


@pytest.mark.parametrize(
    "access", [None, Access("lab"), AsyncAccess("lab")], ids=["nobody", "plain", "waits"]
)
async def test_who_may_is_let_through(node, access):
    ada = await node.connect("ada")

    await Door(access).check("lab", ada.conn)
    assert await Door(access).refusal("lab", ada.conn) is None


@pytest.mark.parametrize("access", [Access(), AsyncAccess()], ids=["plain", "waits"])
async def test_who_may_not_is_refused(node, access):
    ada = await node.connect("ada")

    with pytest.raises(Forbidden):
        await Door(access).check("lab", ada.conn)
    assert isinstance(await Door(access).refusal("lab", ada.conn), Forbidden)
