"""Who may listen where, by the access controller's word."""

import asyncio

import pytest

from eyewall.application.rooms.membership import MAX_TRIES, JoinAuthorization
from eyewall.domain.errors import Forbidden
from tests.application.fakes import settle


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

    await JoinAuthorization(access).check("lab", ada.conn)
    assert await JoinAuthorization(access).refusal("lab", ada.conn) is None


class SlowAccess:
    """Lets only ada in, and thinks about it until the test lets it go on."""

    def __init__(self):
        self.asked, self.gate = [], asyncio.Event()

    def can_publish(self, meta, topic, event):
        return True

    async def can_subscribe(self, meta, room_id):
        self.asked.append(meta.user_id)
        await self.gate.wait()
        return meta.user_id == "ada"


@pytest.mark.parametrize(("before", "after"), [("ada", "eve"), ("eve", "ada"), ("ada", "ada")])
async def test_a_word_about_another_owner_is_void(node, before, after):
    access = SlowAccess()
    client = await node.connect(before)
    task = asyncio.ensure_future(JoinAuthorization(access).refusal("lab", client.conn))
    await settle()

    node.hub.set_meta(client.id, user_id=after)
    access.gate.set()

    assert (await task is None) is (after == "ada")
    assert access.asked == ([before] if before == after else [before, after])


async def test_who_goes_on_changing_is_refused(node):
    client = await node.connect("ada")

    class Restless:
        asked = 0

        async def can_subscribe(self, meta, room_id):
            self.asked += 1
            node.hub.set_meta(client.id, user_id=f"user {self.asked}")
            return True

    access = Restless()
    assert isinstance(await JoinAuthorization(access).refusal("lab", client.conn), Forbidden)
    assert access.asked == MAX_TRIES


@pytest.mark.parametrize("access", [Access(), AsyncAccess()], ids=["plain", "waits"])
async def test_who_may_not_is_refused(node, access):
    ada = await node.connect("ada")

    with pytest.raises(Forbidden):
        await JoinAuthorization(access).check("lab", ada.conn)
    assert isinstance(await JoinAuthorization(access).refusal("lab", ada.conn), Forbidden)
