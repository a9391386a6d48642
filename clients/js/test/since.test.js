/** Joining with what was said before: it comes first, in order, each message once. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { ReorderBuffer, Replay } from "../eyewall.js";
import { pass, settled } from "./scripted.js";
import { connected, cut, newClient, scene } from "./support.js";

function heard(client, topic = "room:r") {
  const seen = [];
  client.on(topic, ({ data }) => void seen.push(data));
  return seen;
}

function losses(client) {
  const seen = [];
  client.onLost((room, { code }) => seen.push([room, code]));
  return seen;
}

const range = (first, last) => Array.from({ length: last - first + 1 }, (_, n) => first + n);
const place = (offset, epoch = "e1") => ({ epoch, offset });
const said = (offset, more = {}) => ({ room: "r", ...place(offset), recovered: true, ...more });
const joins = () => scene.hub.asked("system:join");
const resumed = () => scene.hub.asked("system:resume");

/** A hub whose room has messages from `first` to `last`. */
function keeps(first, last) {
  scene.hub.answers["system:join"] = () => {
    for (const offset of range(first, last)) scene.hub.tell(offset);
    return said(last, { recovered: first === 1 });
  };
}

/** A client that has asked to join, and was not answered yet. */
async function joining(since = "start", options = {}) {
  const { hub } = scene;
  hub.answers["system:join"] = null;
  const client = await connected();
  const seen = heard(client);
  const answer = client.join("r", { since, ...options });
  answer.catch(() => {});
  await settled();
  return { hub, client, seen, answer };
}

// --- what comes

test("the handlers get what is kept before the answer, and then what is live", async () => {
  keeps(1, 3);
  const client = await connected();
  const seen = heard(client);

  const answer = await client.join("r", { since: "start" });
  scene.hub.tell(4);

  assert.deepEqual(seen, [1, 2, 3, 4]);
  assert.equal(answer.recovered, true);
  assert.deepEqual(joins()[0].data, { room: "r", since: "start" });
});

test("a number and a place go out as they are, and nothing of it where none is given", async () => {
  keeps(1, 1);
  const client = await connected();

  const stream = { room: "r", epoch: "e1", offset: 3 };
  for (const since of [0, 5, stream, null, undefined]) await client.join("r", { since });
  await client.join("r");

  const asked = joins().map(({ data }) => data.since);
  assert.deepEqual(asked, [0, 5, place(3), undefined, undefined, undefined]);
  assert.deepEqual(joins()[3].data, { room: "r" });
});

test("the answer says when it was not all, and nothing else does", async () => {
  keeps(3, 4);
  const client = await connected();
  const seen = heard(client);
  const lost = losses(client);

  const answer = await client.join("r", { since: "start" });

  assert.deepEqual([seen, answer.recovered, lost], [[3, 4], false, []]);
});

test("a hub that does not know of it has sent nothing", async () => {
  scene.hub.answers["system:join"] = { room: "r", ...place(4) };
  const client = await connected();

  assert.equal((await client.join("r", { since: "start" })).recovered, false);
});

test("a room without history is joined", async () => {
  const { hub } = scene;
  hub.answers["system:join"] = { room: "r", recovered: false };
  const client = await connected();
  await client.join("r", { since: "start" });
  await cut();

  assert.deepEqual(resumed()[0].data.rooms, { r: {} });
});

test("who has left gets it again, and so does a new client", async () => {
  keeps(1, 3);
  const client = await connected();
  const seen = heard(client);
  await client.join("r", { since: "start" });
  await client.leave("r");

  await client.join("r", { since: "start" });
  assert.deepEqual(seen, [1, 2, 3, 1, 2, 3]);
  const other = newClient();
  other.connect();
  const theirs = heard(other);
  await other.join("r", { since: "start" });

  assert.deepEqual(theirs, [1, 2, 3]);
});

test("who is in already gets it again, after what was live until then", async () => {
  const { hub, client, seen, answer } = await joining();
  for (const offset of [1, 2]) hub.tell(offset);
  hub.answer(joins()[0], said(2));
  await answer;

  const again = client.join("r", { since: "start" });
  await settled();
  for (const offset of [3, 1, 2, 2, 1, 3]) hub.tell(offset);
  hub.answer(joins()[1], said(3));
  hub.tell(2);
  hub.tell(4);

  assert.equal((await again).recovered, true);
  assert.deepEqual(seen, [1, 2, 3, 1, 2, 3, 4], "the first 3 was live");
});

test("two joins get it one after the other", async () => {
  const { hub, client, seen } = await joining();
  client.join("r", { since: 1 });
  await settled();
  for (const offset of [1, 2]) hub.tell(offset);
  hub.answer(joins()[0], said(2));
  hub.tell(2);
  hub.answer(joins()[1], said(2));
  hub.tell(3);

  assert.deepEqual(seen, [1, 2, 2, 3]);
});

test("places that nothing was sent for hold up nothing", async () => {
  const { hub, seen, answer } = await joining();
  for (const offset of [2, 4, 5]) hub.tell(offset);
  assert.deepEqual(seen, [2]);
  hub.answer(joins()[0], said(6));
  hub.tell(7);

  assert.equal((await answer).recovered, true);
  assert.deepEqual(seen, [2, 4, 5, 7]);
  assert.deepEqual(resumed(), []);
});

test("so it is where something was trimmed in the middle", async () => {
  const { hub, seen, answer } = await joining();
  for (const offset of [1, 4, 5]) hub.tell(offset);
  hub.answer(joins()[0], said(5, { recovered: false }));
  hub.tell(6);

  assert.equal((await answer).recovered, false);
  assert.deepEqual(seen, [1, 4, 5, 6]);
});

test("what there is no room for aside is asked for, also where it was handled before", async () => {
  const { hub, client, seen, answer } = await joining();
  const all = [1, ...range(3, 300)];
  for (const offset of all) hub.tell(offset);
  hub.answers["system:resume"] = ({ rooms }) => {
    for (const offset of range(rooms.r.offset + 1, 300)) hub.tell(offset);
    return { rooms: { r: said(300) } };
  };
  hub.answer(joins()[0], said(300));
  await answer;
  await settled();
  assert.deepEqual(seen, all);

  await client.leave("r");
  client.join("r", { since: "start" });
  await settled();
  for (const offset of all) hub.tell(offset);
  hub.answer(joins()[1], said(300));
  await settled();

  assert.deepEqual(seen, [...all, ...all]);
  assert.equal(resumed().length, 2);
});

test("a message that asks for an ack overtakes the replay, and is handled once", async () => {
  const { hub, seen } = await joining();
  hub.tell(3, { ack: true });
  await settled();
  assert.deepEqual(hub.acks, []);
  for (const offset of [1, 2, 3]) hub.tell(offset);
  await settled();
  assert.deepEqual(hub.acks.map(({ ref }) => ref), ["e1-3"]); // the hub need not ask again
  hub.answer(joins()[0], said(3));
  hub.tell(3, { ack: true });
  await settled();

  assert.deepEqual(seen, [1, 2, 3]);
  assert.deepEqual(hub.acks.map(({ ref }) => ref), ["e1-3", "e1-3"]);
});

test("one that was handled before is acked at once where a replay goes back", async () => {
  keeps(1, 3);
  const client = await connected();
  await client.join("r", { since: "start" });
  scene.hub.answers["system:join"] = null;
  client.join("r", { since: "start" }).catch(() => {});
  await settled();
  scene.hub.tell(1);
  scene.hub.tell(3, { ack: true });
  await settled();

  assert.deepEqual(scene.hub.acks.map(({ ref }) => ref), ["e1-3"]);
});

test("a repeat that asks for an ack begins no replay", async () => {
  keeps(1, 3);
  const client = await connected();
  const seen = heard(client);
  await client.join("r", { since: "start" });
  scene.hub.answers["system:join"] = null;
  client.join("r", { since: 1 });
  await settled();
  scene.hub.tell(2, { ack: true });
  for (const offset of [3, 4]) scene.hub.tell(offset);
  scene.hub.answer(joins()[1], said(4));
  await settled();

  assert.deepEqual(seen, [1, 2, 3, 3, 4]);
  assert.deepEqual(scene.hub.acks.map(({ ref }) => ref), ["e1-2"]);
});

test("a join that is given up takes nothing from a resume that is under way", async () => {
  keeps(1, 2);
  const client = await connected();
  const seen = heard(client);
  await client.join("r", { since: "start" });
  scene.hub.answers["system:join"] = scene.hub.answers["system:resume"] = null;
  scene.hub.tell(5);
  await settled();
  const answer = client.join("r", { since: 0, timeout: 1 });
  answer.catch(() => {});
  await settled();
  for (const offset of [3, 5]) scene.hub.tell(offset);
  await pass(2);
  await assert.rejects(answer, { code: "ack_timeout" });

  scene.hub.answer(resumed()[0], { rooms: { r: said(6) } });
  scene.hub.tell(7);

  assert.deepEqual(seen, [1, 2, 3, 5, 7]);
});

test("a gap that the hub tells of meanwhile is filled when it is over", async () => {
  const { hub, answer } = await joining();
  hub.tell(1);
  hub.send({ topic: "system:gap", event: "gap", data: { room: "r", ...place(1) } });
  await settled();
  assert.deepEqual(resumed(), []);
  hub.answer(joins()[0], said(1));
  await answer;
  await settled();

  assert.deepEqual(resumed().map(({ data }) => data.rooms), [{ r: place(1) }]);
});

test("a refusal rejects, and leaves nothing", async () => {
  const { hub, client, seen, answer } = await joining();
  hub.answer(joins()[0], { status: "nack", code: "join_forbidden", error: "no" });

  await assert.rejects(answer, { code: "join_forbidden" });
  await cut();
  assert.deepEqual(resumed()[0].data.rooms, {});
  assert.deepEqual([seen, client.state], [[], "open"]);
});

test("while messages come the answer is waited for, and then no longer", async () => {
  const { hub, seen, answer } = await joining("start", { timeout: 3 });
  let isOver = false;
  answer.catch(() => (isOver = true));
  for (const offset of [1, 2]) {
    await pass(2);
    hub.tell(offset);
  }
  await pass(2.5);
  assert.equal(isOver, false);
  hub.tell(3);
  await pass(6.5);

  await assert.rejects(answer, { code: "ack_timeout" });
  hub.tell(4);
  assert.deepEqual(seen, [1, 2, 3, 4]);
});

test("what comes too late is taken where it is missing, whatever its ids", async () => {
  keeps(1, 4);
  const client = await connected();
  const seen = heard(client);
  await client.join("r", { since: "start" });
  await client.leave("r");
  scene.hub.answers["system:join"] = null;
  const answer = client.join("r", { since: "start", timeout: 1 });
  await settled();
  scene.hub.tell(1);
  scene.hub.tell(3);
  scene.hub.answers["system:resume"] = () => {
    for (const offset of [2, 3, 4]) scene.hub.tell(offset);
    return { rooms: { r: said(4) } };
  };
  answer.catch(() => {});
  await pass(3);

  await assert.rejects(answer, { code: "ack_timeout" });
  await settled();
  assert.deepEqual(seen, [1, 2, 3, 4, 1, 2, 3, 4]);
});

// --- after a cut

test("cut before anything came it asks for the same again", async () => {
  const { hub, seen, answer } = await joining(3);
  hub.answers["system:join"] = () => {
    hub.tell(7);
    return said(7);
  };
  await cut();

  assert.equal((await answer).recovered, true);
  assert.deepEqual(joins().map(({ data }) => data.since), [3, 3]);
  assert.deepEqual(resumed()[0].data.rooms, {});
  assert.deepEqual(seen, [7]);
});

test("a join while away is made when it is back", async () => {
  keeps(1, 2);
  const client = await connected();
  const seen = heard(client);
  scene.hub.close();
  const answer = client.join("r", { since: "start" });
  await pass(2);

  assert.equal((await answer).recovered, true);
  assert.deepEqual(seen, [1, 2]);
});

for (const [since, first, whole] of [
  ["start", 1, true],
  ["start", 2, false],
  [3, 4, true],
  [4, 4, false],
  [9, 1, true],
  [place(3), 4, true],
  [place(2), 4, false],
  [place(3, "old"), 4, false],
]) {
  const name = JSON.stringify(since);
  test(`cut in the middle it says itself if that was all: ${name} from ${first}`, async () => {
    const { hub, client, seen, answer } = await joining(since, { timeout: 60 });
    const lost = losses(client);
    for (const offset of range(first, 5)) hub.tell(offset);
    hub.answers["system:resume"] = () => {
      hub.tell(6);
      return { rooms: { r: said(6) } };
    };
    hub.answers["system:join"] = said(6);
    await cut();

    assert.equal((await answer).recovered, whole);
    assert.deepEqual(resumed()[0].data.rooms, { r: place(5) });
    assert.deepEqual(joins()[1].data.since, place(6));
    assert.deepEqual([seen, lost], [range(first, 6), []]);
  });
}

test("what was lost on the way is not said to have come", async () => {
  const { hub, client, answer } = await joining();
  const lost = losses(client);
  hub.tell(1);
  hub.answers["system:resume"] = { rooms: { r: said(9, { recovered: false }) } };
  hub.answers["system:join"] = said(9);
  await cut();

  assert.equal((await answer).recovered, false);
  assert.deepEqual(lost, [["r", undefined]]);
});

test("a member whose replay had not begun asks for it again", async () => {
  keeps(1, 2);
  const client = await connected();
  const seen = heard(client);
  await client.join("r", { since: 0 });
  scene.hub.answers["system:join"] = null;
  const answer = client.join("r", { since: "start" });
  await settled();
  scene.hub.tell(3);
  scene.hub.answers["system:resume"] = { rooms: { r: said(3) } };
  keeps(1, 3);
  await cut();

  assert.equal((await answer).recovered, true);
  assert.equal(joins().at(-1).data.since, "start");
  assert.deepEqual(seen, [1, 2, 3, 1, 2, 3]);
});

test("after its answer it goes on from where it is", async () => {
  keeps(1, 2);
  const client = await connected();
  const seen = heard(client);
  await client.join("r", { since: "start" });
  scene.hub.answers["system:resume"] = () => {
    scene.hub.tell(3);
    return { rooms: { r: said(3) } };
  };
  await cut();

  assert.deepEqual(joins().length, 1);
  assert.deepEqual(seen, [1, 2, 3]);
});

// --- the parts

test("aside there is room for so many messages and characters", () => {
  const aside = new ReorderBuffer();
  for (let offset = 300; offset > 0; offset -= 1) aside.keep({ room: "a", offset }, offset, 1);
  aside.keep({ room: "b", offset: 7 }, 7, 1);

  assert.deepEqual(aside.take("b"), { messages: [], missing: 7 });
  const { messages, missing } = aside.take("a");
  assert.deepEqual(messages.map(({ offset }) => offset), range(45, 300));
  assert.equal(missing, 1);
  aside.keep({ room: "a", offset: 1 }, 1, 8 * 2 ** 20);
  aside.keep({ room: "a", offset: 1 }, 1, 1);
  aside.keep({ room: "a", offset: 2 }, 2, 1);
  assert.equal(aside.take("a").missing, 2);
  aside.keep({ room: "a", offset: 2 }, 2, 1);
  assert.equal(aside.take("a").messages.length, 1);
});

test("a replay that is asked for where we are nowhere begins anew", () => {
  const replay = new Replay("start");
  replay.received(place(5), true);
  assert.deepEqual(replay.sinceFor(place(9)), place(9));
  assert.equal(replay.isWhole(said(9)), false);

  assert.equal(replay.sinceFor(null), "start");
  assert.equal(replay.isWhole(said(9)), true);
  assert.equal(replay.isWhole(said(9, { recovered: 1 })), false);
});
