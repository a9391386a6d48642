"""What a node believes and what the state says: the same again after whatever went wrong."""

import asyncio

import pytest

from eyewall.adapters.bus.memory import MemoryPubSub
from eyewall.adapters.state.memory import MemoryState
from eyewall.application.lifecycle import reconciliation
from eyewall.application.ports.stores import KnowsOwned
from eyewall.application.rooms import divergence as divergence_module
from eyewall.application.rooms.divergence import Divergence, Divergences
from eyewall.domain.envelope import Message
from eyewall.domain.errors import Unavailable
from eyewall.domain.room import JoinOptions, RoomOptions, RoomRole
from tests.application.engines import Engine
from tests.application.fakes import settle

SOON = 2 * reconciliation.FIRST_RETRY_DELAY
LATER = 2 * reconciliation.MAX_RETRY_DELAY
NEXT_SWEEP = reconciliation.SWEEP_PERIOD + 2 * reconciliation.RECHECK_DELAY


@pytest.fixture
def engine(clock):
    return Engine(MemoryState(clock=clock.now))


@pytest.fixture
async def node(make_node, engine):
    return await make_node(state=engine, client_commands=True)


@pytest.fixture
async def other(node, make_node, engine):
    """A node whose state is never away: it sees what the others are left with."""
    return await make_node(state=engine.inner)


async def joined(node, user, *rooms, **options):
    client = await node.connect(user)
    for room in rooms or ("lab",):
        await node.hub.join(room, client.id, JoinOptions(**options))
    return client


async def members(node, room="lab"):
    return {m.user_id: (m.role, m.connections) for m in await node.hub.members(room)}


async def online(node, *users):
    return [u for u, s in (await node.hub.presence_many(list(users))).items() if s.connections]


MEMBER, OWNER = RoomRole.MEMBER, RoomRole.OWNER


# --- a moment's failure, and then never again


async def test_who_ends_while_the_state_is_away_is_gone_soon_after(node, other, engine):
    """Its seat and its place in the room's capacity are free, and it is no longer online."""
    await other.hub.create_room("lab", RoomOptions(capacity=1))
    ada = await joined(node, "ada", "lab", "hall")
    engine.away = True
    await ada.vanish()
    assert await members(other) == {"ada": (MEMBER, 1)}

    engine.away = False
    await node.advance(SOON)

    assert await members(other) == await members(other, "hall") == {}
    assert await online(other, "ada") == []
    assert await joined(other, "eve"), "there is room again"
    assert len(node.parts.divergences) == 0


async def test_who_comes_while_the_state_is_away_is_online_soon_after(node, other, engine):
    engine.away = True
    ada = await node.connect("ada")
    assert ada.closed is None

    engine.away = False
    await node.advance(SOON)

    assert await online(other, "ada") == ["ada"]
    await other.hub.send_to_user("ada", Message("t", data=1))
    await settle()
    assert [m["data"] for m in ada.heard()] == [1]


async def test_who_becomes_another_while_the_state_is_away_is_that_soon_after(node, other, engine):
    ada = await joined(node, "ada", "lab", role=OWNER)
    await joined(node, "ada", "hall")
    engine.away = True
    node.hub.set_meta(ada.id, user_id="eve")
    await settle()

    engine.away = False
    await node.advance(SOON)

    assert await members(other) == {"eve": (MEMBER, 1)}, "and not with another's rights"
    assert await members(other, "hall") == {"ada": (MEMBER, 1)}
    assert await online(other, "ada", "eve") == ["ada", "eve"]


@pytest.mark.parametrize("call", range(5))
async def test_wherever_a_change_of_user_breaks_off_it_is_gone_through_with(
    node, other, engine, call
):
    """vanish, appear, give back, take: one of them fails, the ones before it have been done."""
    await other.hub.ban("hall", "eve")
    ada = await joined(node, "ada", "lab", "hall", role=OWNER)
    engine.calls.clear()
    fails_at(engine, call)
    node.hub.set_meta(ada.id, user_id="eve")
    await settle()

    engine.away = False
    await node.advance(LATER)

    assert await members(other) == {"eve": (MEMBER, 1)}
    assert await members(other, "hall") == {}
    assert await online(other, "ada", "eve") == ["eve"]
    assert ada.conn.roles == {"lab": MEMBER}
    assert node.parts.seats.seats_under_old_user(ada.conn) == []
    await ada.vanish()
    assert await online(other, "eve") == []
    assert await other.hub.rooms() == []


def fails_at(engine, number):
    """The state goes away before its call of that number, until it is said to be back."""
    inner = engine._call
    done = 0

    async def call(name, *args):
        nonlocal done
        if done == number:
            engine.away = True
        done += 1
        return await inner(name, *args)

    engine._call = call


@pytest.mark.parametrize("method", ["decide", "appear", "vanish"])
async def test_an_answer_that_is_lost_changes_nothing_in_the_end(node, other, engine, method):
    """Done, and whoever asked does not know."""
    engine.lost = {method}
    ada = await node.connect("ada")
    if method == "decide":
        with pytest.raises(Unavailable):
            await node.hub.join("lab", ada.id)
    else:
        await node.hub.join("lab", ada.id)
    eve = await node.connect("eve")
    node.hub.set_meta(eve.id, user_id="bob")
    await settle()

    engine.lost = set()
    await node.advance(SOON)

    here = {"ada": (MEMBER, 1)} if ada.conn.rooms else {}
    assert await members(other) == here
    assert await online(other, "ada", "eve", "bob") == ["ada", "bob"]
    await ada.vanish()
    await eve.vanish()
    assert await online(other, "ada", "eve", "bob") == []
    assert await other.hub.rooms() == []


async def test_a_leave_that_failed_leaves_a_member_that_the_state_knows(node, other, engine):
    ada = await joined(node, "ada")
    engine.lost = {"decide"}
    with pytest.raises(Unavailable):
        await node.hub.leave("lab", ada.id)
    assert await members(other) == {}
    assert ada.conn.rooms == {"lab"}

    engine.lost = set()
    await node.advance(SOON)

    assert await members(other) == {"ada": (MEMBER, 1)}


async def test_the_others_hear_of_a_leave_that_the_state_could_not_take(node, other, engine):
    await other.hub.create_room("lab", RoomOptions(announce=True))
    eve, ada = await joined(other, "eve"), await joined(node, "ada")
    await settle()
    eve.heard()
    engine.away = True
    await ada.vanish()
    assert eve.heard() == []

    engine.away = False
    await node.advance(SOON)

    assert [(m["event"], m["data"]["user_id"]) for m in eve.heard()] == [("leave", "ada")]


async def test_a_seat_that_somebody_took_meanwhile_stays_theirs(node, other, engine):
    """The later one is kicked, and told."""
    await other.hub.create_room("lab", RoomOptions(capacity=1))
    ada = await joined(node, "ada")
    engine.lost = {"decide"}
    with pytest.raises(Unavailable):
        await node.hub.leave("lab", ada.id)
    engine.lost = set()
    await joined(other, "eve")

    await node.advance(SOON)

    assert await members(other) == {"eve": (MEMBER, 1)}
    assert ada.conn.rooms == frozenset()
    assert [m["data"] for m in ada.heard()] == [{"room": "lab", "reason": "room_full"}]


async def test_who_has_left_before_it_is_compared_gets_no_seat_back(node, other, engine):
    ada = await joined(node, "ada")
    engine.away = True
    with pytest.raises(Unavailable):
        await node.hub.leave("lab", ada.id)
    engine.away = False
    await node.hub.leave("lab", ada.id)

    await node.advance(SOON)

    assert await other.hub.rooms() == []


# --- how it is tried


async def test_it_is_tried_again_until_the_state_is_there_and_not_all_the_time(node, engine):
    for n in range(20):
        await joined(node, f"u{n}")
    engine.away = True
    for conn in list(node.parts.connections):
        await node.hub.disconnect_conn(conn.id)
    await settle()
    engine.calls.clear()

    await node.advance(60)

    tries = len(engine.calls) - engine.calls.count("renew") - engine.calls.count("owned")
    longest = reconciliation.MAX_RETRY_DELAY
    assert 60 / (1.5 * longest) < tries < 60 / (0.5 * longest) + 6, "one call a try"
    engine.away = False
    await node.advance(LATER)
    assert await engine.inner.rooms() == []
    assert len(node.parts.divergences) == 0


async def test_one_that_can_not_be_mended_holds_up_no_other(node, other, engine):
    ada, eve = await joined(node, "ada"), await joined(node, "eve", "hall")
    engine.away = True
    await ada.vanish()
    await eve.vanish()
    engine.away = False
    inner = engine.inner.vanish

    async def vanish(conn_id, *args):
        if conn_id == ada.id:
            raise RuntimeError("no")
        return await inner(conn_id, *args)

    engine.inner.vanish = vanish
    await node.advance(LATER)

    assert await members(other, "hall") == {}
    assert await online(other, "ada", "eve") == ["ada"]
    engine.inner.vanish = inner
    await node.advance(LATER)
    assert await online(other, "ada") == []


async def test_a_connection_in_many_rooms_waits_once_for_a_state_that_is_away(node, engine):
    ada = await joined(node, "ada", *[f"r{n}" for n in range(30)])
    engine.away = True
    engine.calls.clear()

    await ada.vanish()

    assert engine.calls.count("decide") == 1
    engine.away = False
    await node.advance(SOON)
    assert await engine.inner.rooms() == []


async def test_nothing_runs_while_there_is_no_divergence(node, engine):
    await joined(node, "ada")
    engine.calls.clear()

    await node.advance(reconciliation.SWEEP_PERIOD - 1)

    assert set(engine.calls) == {"renew"}


async def test_a_node_that_stops_compares_no_more(node, engine):
    ada = await joined(node, "ada")
    engine.away = True
    await ada.vanish()
    engine.away = False

    await node.stop()
    engine.calls.clear()
    await node.clock.advance(NEXT_SWEEP)

    assert engine.calls == []


async def test_a_lapse_in_the_middle_of_which_the_state_goes_away_again_is_mended(
    node, other, engine, clock
):
    for n in range(6):
        await joined(node, f"u{n}")
    engine.away = True
    await clock.advance(11)
    await engine.inner.renew(other.node.config.node_id, 600.0)
    engine.away = False
    engine.calls.clear()
    fails_at(engine, 6)
    await clock.advance(4)
    assert 0 < len(await members(other)) < 6

    engine.away = False
    del engine._call
    await clock.advance(LATER)

    assert len(await members(other)) == 6
    assert len(await online(other, *[f"u{n}" for n in range(6)])) == 6


# --- now and then


async def test_what_the_state_has_lost_without_a_failure_is_put_back(node, other, engine):
    ada = await joined(node, "ada", "lab", role=OWNER)
    guest = await joined(node, None)
    await engine.inner.release(node.node.config.node_id, node.clock.wall())
    assert await members(other) == {}

    await node.advance(NEXT_SWEEP)

    assert await members(other) == {"ada": (OWNER, 1), None: (MEMBER, 1)}
    assert await online(other, "ada") == ["ada"]
    await ada.vanish()
    await guest.vanish()
    assert await other.hub.rooms() == []


async def test_ghosts_are_found_without_a_failure(node, other, engine):
    """Seats and presence of connections that are gone, of users that they no longer are, and
    in rooms that they are not in."""
    here, mine = await joined(node, "ada"), node.node.config.node_id
    now = node.clock.wall()

    def sits(conn_id):
        def rule(room, standing):
            room = room or node.parts.seats.implicit_room("den")
            room.admit(standing, conn_id, mine, now=now)
            return room, None

        return rule

    await engine.inner.appear(mine, f"gone@{mine}", "eve", now)
    await engine.inner.appear(mine, here.id, "bob", now)
    await engine.inner.decide("den", "u:eve", sits(f"gone@{mine}"))
    await engine.inner.decide("den", f"c:gone2@{mine}", sits(f"gone2@{mine}"))
    await engine.inner.decide("den", "u:bob", sits(here.id))
    await engine.inner.decide("den", "u:ada", sits(here.id))

    await node.advance(NEXT_SWEEP)

    assert await members(other, "den") == {}
    assert await members(other) == {"ada": (MEMBER, 1)}
    assert await online(other, "ada", "bob", "eve") == ["ada"]
    assert here.conn.rooms == {"lab"}


async def test_a_role_that_never_arrived_is_learned(node, other, engine):
    ada = await joined(node, "ada")

    def rule(room, standing):
        room.grant(standing, OWNER)
        return room, None

    await engine.inner.decide("lab", "u:ada", rule)
    node.parts.divergences.note_all(ada.id)

    await node.advance(SOON)

    assert ada.conn.roles == {"lab": OWNER}


@pytest.fixture
async def unheard(node, make_node, engine, clock):
    """Have a call of another node's hub decide, of which no word reaches ``node``."""
    far = await make_node(state=engine.inner, pubsub=MemoryPubSub())

    async def decide(method, *args):
        deciding = asyncio.ensure_future(getattr(far.hub, method)(*args))
        await settle()
        await clock.advance(6)
        return await deciding

    return decide


@pytest.mark.parametrize(
    ("decision", "reason"),
    [
        (("kick_user_from_room", "ada", "lab"), "kicked"),
        (("ban", "lab", "ada"), "banned"),
        (("delete_room", "lab"), "kicked"),
    ],
)
async def test_a_decision_that_never_reached_this_node_takes_effect(
    node, other, unheard, decision, reason
):
    """The bus lost the word of it: the state is the truth, and stays it."""
    left = []
    node.hub.on_leave(lambda room_id, conn, why: left.append((room_id, conn.id, why.value)))
    ada, eve = await joined(node, "ada", "lab", "hall"), await joined(node, "eve", "hall")
    await unheard(*decision)
    assert ada.conn.rooms == {"lab", "hall"}, "it has not heard of it"
    ada.heard()

    await node.advance(NEXT_SWEEP)

    assert ada.conn.rooms == eve.conn.rooms == {"hall"}
    assert await members(other) == {}
    assert [m["data"] for m in ada.heard()] == [{"room": "lab", "reason": reason}]
    assert left == [("lab", ada.id, reason)]
    await other.hub.broadcast_room("lab", "room:lab", "message", 1)
    await settle()
    assert ada.heard() == []

    await node.advance(NEXT_SWEEP)
    assert await members(other) == {}
    assert await members(other, "hall") == {"ada": (MEMBER, 1), "eve": (MEMBER, 1)}


async def test_who_was_kicked_unheard_and_has_come_back_since_stays(node, other, unheard):
    ada = await joined(node, "ada")
    await unheard("kick_user_from_room", "ada", "lab")
    await node.advance(reconciliation.SWEEP_PERIOD - 5)
    await node.hub.join("lab", ada.id)

    await node.advance(NEXT_SWEEP)

    assert ada.conn.rooms == {"lab"}
    assert await members(other) == {"ada": (MEMBER, 1)}
    assert ada.heard() == []


async def test_a_seat_that_is_missing_since_the_state_failed_is_put_back(
    node, other, unheard, engine
):
    """It may have lost what it had last: whether somebody decided it can't be told."""
    ada = await joined(node, "ada", "lab", role=OWNER)
    await unheard("kick_user_from_room", "ada", "lab")
    engine.away = True
    with pytest.raises(Unavailable):
        await node.hub.room("lab")
    engine.away = False

    await node.advance(NEXT_SWEEP)

    assert ada.conn.rooms == {"lab"}
    assert await members(other) == {"ada": (OWNER, 1)}


async def test_a_ban_wins_whatever_has_failed(node, other, unheard, engine):
    ada = await joined(node, "ada", "lab", role=OWNER)
    await unheard("ban", "lab", "ada")
    engine.away = True
    with pytest.raises(Unavailable):
        await node.hub.room("lab")
    engine.away = False

    await node.advance(NEXT_SWEEP)

    assert ada.conn.rooms == frozenset()
    assert await members(other) == {}


async def test_a_failure_is_made_good_by_one_comparison_of_all(node, other, unheard, engine):
    """And from there on the state is the truth again."""
    ada = await joined(node, "ada")
    engine.away = True
    with pytest.raises(Unavailable):
        await node.hub.room("lab")
    engine.away = False
    await node.advance(NEXT_SWEEP)
    await unheard("kick_user_from_room", "ada", "lab")

    await node.advance(NEXT_SWEEP)

    assert ada.conn.rooms == frozenset()
    assert await members(other) == {}


async def test_a_state_that_lost_all_but_knows_the_newest_gets_the_others_back(node, other, engine):
    old = [await joined(node, f"u{n}", "lab", role=OWNER) for n in range(3)]
    await engine.inner.release(node.node.config.node_id, node.clock.wall())
    await joined(node, "new")

    await node.advance(NEXT_SWEEP)

    assert len(await members(other)) == 4
    assert all(client.conn.roles == {"lab": OWNER} for client in old)


async def test_a_state_that_can_not_say_what_it_has_is_the_truth_too(make_node, engine, clock):
    node = await make_node(state=Plain(engine))
    far = await make_node(state=engine.inner, pubsub=MemoryPubSub())
    ada = await joined(node, "ada", "lab", "hall")
    kicking = asyncio.ensure_future(far.hub.kick_user_from_room("ada", "lab"))
    await settle()
    await clock.advance(6)
    await kicking

    await node.advance(NEXT_SWEEP)

    assert ada.conn.rooms == {"hall"}
    assert await members(far) == {}


async def test_a_decision_that_is_on_its_way_here_is_not_undone(node, other, engine):
    """The state knows already that somebody was kicked; this node hears of it later."""
    ada = await joined(node, "ada")
    await node.advance(reconciliation.SWEEP_PERIOD - 1)
    engine.after.add("decide")  # done, and the effect here has to wait
    kicking = asyncio.ensure_future(node.hub.kick_user_from_room("ada", "lab"))
    await settle()
    await node.advance(2)
    engine.go_on()
    await kicking

    await node.advance(2 * reconciliation.RECHECK_DELAY)

    assert ada.conn.rooms == frozenset()
    assert await members(other) == {}


async def test_a_sweep_goes_page_by_page(node, engine, monkeypatch):
    monkeypatch.setattr(reconciliation, "PAGE_SIZE", 3)
    for n in range(7):
        await joined(node, f"u{n}")
    await engine.inner.release(node.node.config.node_id, node.clock.wall())
    for n in range(7):
        await joined(node, f"v{n}")
    engine.calls.clear()

    await node.advance(reconciliation.SWEEP_PERIOD)
    assert engine.calls.count("owned") == 1, "the next page comes later"
    await node.advance(NEXT_SWEEP - reconciliation.SWEEP_PERIOD)

    assert engine.calls.count("owned") == 3
    assert len(await members(node)) == 14


async def test_what_is_as_it_should_be_costs_a_sweep_one_call(node, engine):
    for n in range(7):
        await joined(node, f"u{n}")
    await joined(node, None)
    await node.connect(None)
    engine.calls.clear()

    await node.advance(NEXT_SWEEP)

    assert set(engine.calls) == {"renew", "owned"}


class Plain:
    """A ``StateStore`` that can't say what a node owns."""

    def __init__(self, inner):
        self.inner = inner

    def __getattr__(self, name):
        if name in ("owned", "inner"):
            raise AttributeError(name)
        return getattr(self.inner, name)


async def test_a_state_that_can_not_say_what_it_has_is_told_again(make_node, engine, monkeypatch):
    monkeypatch.setattr(reconciliation, "PAGE_SIZE", 2)
    node = await make_node(state=Plain(engine))
    assert not isinstance(Plain(engine), KnowsOwned)
    for n in range(5):
        await joined(node, f"u{n}")
    await engine.inner.release(node.node.config.node_id, node.clock.wall())

    await node.advance(NEXT_SWEEP)
    assert len(await members(node)) == 2, "a few at a time"
    await node.advance(2 * NEXT_SWEEP)

    assert len(await members(node)) == 5
    assert len(await online(node, *[f"u{n}" for n in range(5)])) == 5


async def test_a_sweep_that_the_state_does_not_answer_collects_no_tasks(node, engine):
    await joined(node, "ada")
    engine.before.add("owned")

    await node.advance(5 * reconciliation.SWEEP_PERIOD)

    assert engine.calls.count("owned") == 1
    engine.go_on()


# --- divergences


def test_divergences_of_one_connection_come_together():
    divergences = Divergences()

    divergences.note_seat("c1", "lab", "ada", member=False)
    divergences.note_presence("c2", "eve")
    divergences.note_seat("c1", "lab", "ada", member=True)
    divergences.note_seat("c1", "lab", "ada", member=False)
    divergences.note_presence("c1", "ada")
    divergences.note_all("c1")

    assert len(divergences) == 2
    assert divergences.pop() == ("c1", Divergence({"ada"}, {("lab", "ada"): True}, everything=True))
    assert divergences.pop() == ("c2", Divergence({"eve"}))
    assert divergences.pop() is None


def test_divergences_are_bounded(monkeypatch):
    monkeypatch.setattr(divergence_module, "MAX_DIVERGENCES", 2)
    divergences = Divergences()

    for conn_id in ("c1", "c2", "c3"):
        divergences.note_all(conn_id)
    divergences.note_presence("c1", "ada")

    assert len(divergences) == 2
    assert divergences.pop() == ("c1", Divergence({"ada"}, everything=True))
