import asyncio

import pytest
from marshmallow import Schema, fields

from eyewall.adapters.validation.marshmallow import MarshmallowValidator
from eyewall.application.dispatch.command_fields import published
from eyewall.application.dispatch.receiver import MessageAuthorization
from eyewall.application.rooms.membership import MAX_TRIES
from eyewall.domain.envelope import Envelope
from eyewall.domain.errors import Forbidden, ValidationError
from tests.application.fakes import settle


def answers(fn, *, later):
    """``fn`` as it is, or as one whose answer has to be awaited."""

    async def waits(*args):
        return fn(*args)

    return waits if later else fn


def is_good(topic, event, data):
    if data != "good":
        raise ValidationError({"data": ["not good"]})


@pytest.fixture
async def conn(node):
    return (await node.connect("ada")).conn


async def outcome(authorization, conn, message):
    try:
        waits = authorization.ask(conn, message)
        if waits is not None:
            await waits
    except (Forbidden, ValidationError) as error:
        return type(error)
    return None


@pytest.mark.parametrize("access_waits", [False, True])
@pytest.mark.parametrize("validator_waits", [False, True])
@pytest.mark.parametrize(
    ("topic", "data", "expected"),
    [
        ("open", "good", None),
        ("open", "bad", ValidationError),
        ("shut", "good", Forbidden),
        ("shut", "bad", Forbidden),
    ],
)
async def test_who_has_to_wait_decides_as_who_has_not(
    conn, access_waits, validator_waits, topic, data, expected
):
    authorization = MessageAuthorization(
        answers(lambda meta, topic, event: topic == "open", later=access_waits),
        answers(is_good, later=validator_waits),
    )

    assert await outcome(authorization, conn, Envelope(topic, data=data)) is expected


@pytest.mark.parametrize("falsy", [None, 0, ""])
async def test_whatever_is_not_true_is_a_no(conn, falsy):
    authorization = MessageAuthorization(lambda meta, topic, event: falsy, None)

    assert await outcome(authorization, conn, Envelope("t")) is Forbidden


async def test_nothing_is_awaited_that_is_decided(conn):
    decided = MessageAuthorization(lambda meta, topic, event: True, is_good)

    assert decided.ask(conn, Envelope("t", data="good")) is None
    assert MessageAuthorization(None, None).ask(conn, Envelope("t")) is None


@pytest.mark.parametrize(
    ("data", "means"),
    [
        ({"room": "r"}, ("room:r", "message")),
        ({"room": "r", "event": "said"}, ("room:r", "said")),
        ({"room": 5, "event": 5}, ("system:publish", "message")),
        ({}, ("system:publish", "message")),
        ("r", ("system:publish", "message")),
    ],
)
def test_what_a_publish_means_to_the_access_controller(data, means):
    """It is asked about what the room will see: the room's topic, the event inside."""
    assert published(Envelope("system:publish", data=data)) == means


# --- what clients publish into rooms


@pytest.mark.parametrize("waits", [False, True])
async def test_the_validator_sees_what_the_room_will_see(make_node, waits):
    """After the access controller, and before any member."""
    asked = []

    def validate(topic, event, data):
        asked.append(("validate", topic, event, data))
        if data != {"text": "good"}:
            raise ValidationError({"text": ["not good"]})

    class Access:
        def can_publish(self, meta, topic, event):
            asked.append(("access", topic, event))
            return True

        def can_subscribe(self, meta, room):
            return True

    node = await make_node(
        client_commands=True,
        access_controller=Access(),
        validator=answers(validate, later=waits),
    )
    ada, ben = await node.connect("ada"), await node.connect("ben")
    await node.hub.join("r", ada.id)
    await node.hub.join("r", ben.id)

    def publish(id, text):
        data = {"room": "r", "event": "said", "data": {"text": text}}
        return {"id": id, "topic": "system:publish", "ack": True, "data": data}

    [nack] = await ada.ask(publish("1", "bad"))
    assert nack["data"]["code"] == "validation"
    assert nack["data"]["fields"] == {"text": ["not good"]}
    assert ben.heard() == []

    await ada.ask(publish("2", "good"))
    assert [(m["topic"], m["event"], m["data"]) for m in ben.heard()] == [
        ("room:r", "said", {"text": "good"})
    ]
    assert asked == [
        ("access", "room:r", "said"),
        ("validate", "room:r", "said", {"text": "bad"}),
        ("access", "room:r", "said"),
        ("validate", "room:r", "said", {"text": "good"}),
    ]


async def test_a_publish_without_data_is_looked_at_as_null(make_node):
    asked = []
    node = await make_node(client_commands=True, validator=lambda *args: asked.append(args))
    ada = await node.connect("ada")

    await ada.ask({"topic": "system:publish", "data": {"room": "r"}})
    await ada.ask({"topic": "system:publish", "data": {"room": 5, "data": 1}})
    await ada.ask({"topic": "system:publish", "data": [1]})

    assert asked == [("room:r", "message", None)]


async def test_schemas_for_rooms_hold_for_what_clients_publish(make_node):
    schema = Schema.from_dict({"text": fields.Str(required=True)})
    node = await make_node(client_commands=True, validator=MarshmallowValidator({"room:*": schema}))
    ada = await node.connect("ada")
    await node.hub.join("r", ada.id)
    ada.heard()

    [error] = await ada.ask(
        {"id": "1", "topic": "system:publish", "data": {"room": "r", "data": {"txt": 1}}}
    )

    assert error["data"]["code"] == "validation"
    assert sorted(error["data"]["fields"]) == ["text", "txt"]


async def test_who_is_kicked_while_a_validator_waits_publishes_nothing(make_node):
    gate, asked = asyncio.Event(), asyncio.Event()

    async def validate(topic, event, data):
        if topic == "room:r":
            asked.set()
            await gate.wait()

    node = await make_node(client_commands=True, validator=validate)
    ada, ben = await node.connect("ada"), await node.connect("ben")
    await node.hub.join("r", ada.id)
    await node.hub.join("r", ben.id)
    ada.say(
        {"id": "1", "topic": "system:publish", "ack": True, "data": {"room": "r", "data": "hi"}}
    )
    await asked.wait()
    await node.hub.kick_user_from_room("ada", "r")
    gate.set()
    await settle()

    assert [m["data"].get("code") for m in ada.heard() if m["event"] == "ack"] == ["not_a_member"]
    assert ben.heard() == []


# --- who it is when the answer has come


class Thinking:
    """Lets only ada send, and thinks about it until the test lets it go on."""

    def __init__(self):
        self.asked, self.gate = [], asyncio.Event()

    async def can_publish(self, meta, topic, event):
        self.asked.append(meta.user_id)
        await self.gate.wait()
        return meta.user_id == "ada"

    def can_subscribe(self, meta, room_id):
        return True


@pytest.mark.parametrize(
    ("before", "after", "asked"),
    [("ada", "eve", ["ada", "eve"]), ("eve", "ada", ["eve", "ada"]), ("ada", "ada", ["ada"])],
)
async def test_a_word_about_another_user_is_void(make_node, before, after, asked):
    access, runs = Thinking(), []
    node = await make_node(access_controller=access)

    @node.on("note")
    async def note(ctx, msg):
        runs.append(ctx.user_id)

    client = await node.connect(before)
    client.say({"topic": "note"})
    await settle()

    node.hub.set_meta(client.id, user_id=after)
    access.gate.set()
    await settle()

    assert access.asked == asked
    assert runs == (["ada"] if after == "ada" else [])


@pytest.mark.parametrize("plain", [True, False])
async def test_a_validator_that_waits_makes_the_word_old(make_node, plain):
    """The controller had said yes before: to whom the connection was then."""
    gate, runs = asyncio.Event(), []

    class Access:
        def can_publish(self, meta, topic, event):
            return meta.user_id == "ada"

        def can_subscribe(self, meta, room_id):
            return True

    class AsyncAccess(Access):
        async def can_publish(self, meta, topic, event):
            return meta.user_id == "ada"

    class Slow:
        async def validate(self, topic, event, data):
            runs.append(topic)
            await gate.wait()

    access = Access() if plain else AsyncAccess()
    node = await make_node(access_controller=access, validator=Slow())

    @node.on("note")
    async def note(ctx, msg):
        runs.append(ctx.user_id)

    client = await node.connect("ada")
    client.say({"topic": "note"})
    await settle()

    node.hub.set_meta(client.id, user_id="eve")
    gate.set()
    await settle()

    assert runs == ["note"]
    assert [m["data"]["code"] for m in client.heard()] == ["forbidden"]


async def test_who_goes_on_changing_is_refused(make_node):
    class Restless:
        asked = 0

        async def can_publish(self, meta, topic, event):
            self.asked += 1
            node.hub.set_meta(client.id, user_id=f"user {self.asked}")
            return True

        def can_subscribe(self, meta, room_id):
            return True

    access = Restless()
    node = await make_node(access_controller=access)
    client = await node.connect("ada")

    [error] = await client.ask({"topic": "note"})

    assert error["data"]["code"] == "forbidden"
    assert access.asked == MAX_TRIES
