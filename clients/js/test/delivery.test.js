/** What comes in: handled once, in order, and acked when it has been handled. */

import assert from "node:assert/strict";
import { mock, test } from "node:test";

import { pass, settled } from "./scripted.js";
import { connected, cut, scene } from "./support.js";

function heard(client, topic = "room:r") {
  const seen = [];
  client.on(topic, ({ data }) => void seen.push(data));
  return seen;
}

function losses(client) {
  const seen = [];
  client.onLost((room, { epoch, offset, code }) => seen.push([room, epoch, offset, code]));
  return seen;
}

/** A client in room r, whose stream stands at 2. */
async function inRoom() {
  scene.hub.answers["system:join"] = { room: "r", epoch: "e1", offset: 2 };
  const client = await connected();
  await client.join("r");
  return client;
}

const recovered = (room, epoch, offset) => ({
  rooms: { [room]: { recovered: true, epoch, offset } },
});
const resumed = () => scene.hub.asked("system:resume");

// --- handlers and acks

test("each handler that fits gets a message, with what was left out", async () => {
  const { hub } = scene;
  const client = await connected();
  const seen = [];
  const stop = client.on("chat:*", (message) => void seen.push(["prefix", message]));
  const mine = (message) => void seen.push(["topic", message]);
  client.on("chat:said", mine);
  client.on("other", mine);
  client.on("*", (message) => void seen.push(["all", message]));

  hub.send({ topic: "chat:said" });
  const message = { topic: "chat:said", event: "message", data: null };
  assert.deepEqual(seen, [["prefix", message], ["topic", message], ["all", message]]);

  stop();
  client.off("chat:said", mine);
  hub.send({ topic: "chat:said" });
  assert.equal(seen.length, 4);
});

test("an ack goes out when all handlers are done, with the first result", async () => {
  const { hub } = scene;
  const client = await connected();
  let finish;
  client.on("ask", () => undefined);
  client.on("ask", () => new Promise((resolve) => (finish = resolve)));
  client.on("ask", () => "second");
  hub.send({ id: "m1", topic: "ask", ack: true });
  await settled();
  assert.deepEqual(hub.acks, []);

  finish({ n: 1 });
  await settled();

  const data = { message_id: "m1", status: "ok", result: { n: 1 } };
  assert.deepEqual(hub.acks, [{ ref: "m1", topic: "ask", event: "ack", data }]);
});

test("a message that nobody listens to is acked, one that asks for nothing is not", async () => {
  const { hub } = scene;
  await connected();

  hub.send({ id: "m1", topic: "ask", ack: true });
  hub.send({ id: "m2", topic: "ask" });
  await settled();

  assert.deepEqual(hub.acks.map(({ data }) => data), [{ message_id: "m1", status: "ok" }]);
});

for (const [how, handler] of [
  ["throws", () => { throw new Error("x".repeat(600)); }],
  ["rejects", async () => { throw new Error("x".repeat(600)); }],
]) {
  test(`a handler that ${how} makes a nack, stops no other, and is reported`, async () => {
    const { hub } = scene;
    const client = await connected();
    const errors = [];
    client.onError((error) => errors.push(error.message.length));
    client.on("ask", handler);
    const others = heard(client, "ask");

    hub.send({ id: "m1", topic: "ask", data: 1, ack: true });
    await settled();

    const data = { message_id: "m1", status: "nack", error: "x".repeat(500) };
    assert.deepEqual(hub.acks.map((ack) => ack.data), [data]);
    assert.deepEqual([others, errors], [[1], [600]]);
  });
}

test("a result that JSON can't hold is a nack", async () => {
  const { hub } = scene;
  const client = await connected();
  client.onError(() => {});
  client.on("ask", () => 1n);

  hub.send({ id: "m1", topic: "ask", ack: true });
  await settled();

  assert.equal(hub.acks[0].data.status, "nack");
});

test("without a callback for errors they stand on the console", async () => {
  const { hub } = scene;
  const said = mock.method(console, "error", () => {});
  const client = await connected();
  client.on("ask", () => assert.fail("mine"));

  hub.send({ topic: "ask" });
  await settled();

  assert.equal(said.mock.callCount(), 1);
});

test("an id is handled once, and acked each time", async () => {
  const { hub } = scene;
  const client = await connected();
  const seen = heard(client, "ask");

  for (let n = 0; n < 3; n += 1) {
    hub.send({ id: "m1", topic: "ask", data: 1, ack: true });
    await settled();
  }
  hub.send({ id: "m2", topic: "ask", data: 2 });
  hub.send({ id: "m2", topic: "ask", data: 2 });
  await settled();

  assert.deepEqual(seen, [1, 2]);
  assert.deepEqual(hub.acks.map(({ ref }) => ref), ["m1", "m1", "m1"]);
});

test("a repeat while the first is in work gives one ack, to who asked last", async () => {
  const { hub } = scene;
  const client = await connected();
  let finish;
  let runs = 0;
  client.on("ask", () => {
    runs += 1;
    return new Promise((resolve) => (finish = resolve));
  });
  hub.send({ id: "m1", topic: "ask", ack: true });
  hub.send({ id: "m1", topic: "ask", ack: true });
  await cut();
  hub.send({ id: "m1", topic: "ask", ack: true });

  finish("done");
  await settled();

  assert.equal(runs, 1);
  assert.deepEqual(hub.acks.map(({ data }) => data.result), ["done"]);
});

test("an ack does not go to a connection that did not ask for it", async () => {
  const { hub } = scene;
  const client = await connected();
  let finish;
  client.on("ask", () => new Promise((resolve) => (finish = resolve)));
  hub.send({ id: "m1", topic: "ask", ack: true });
  await cut();

  finish();
  await settled();

  assert.deepEqual(hub.acks, []);
});

test("what is no envelope is reported, and disturbs nothing", async () => {
  const { hub } = scene;
  const client = await connected();
  const errors = [];
  client.onError((error) => errors.push(error.code));

  for (const data of ["{", "null", "7", "[]", '{"topic": 1}', new ArrayBuffer(2)]) {
    hub.socket.onmessage({ data });
  }

  assert.deepEqual(errors, Array(6).fill("invalid_envelope"));
  assert.equal(client.state, "open");
});

// --- rooms with history

test("messages of a room are handled once and in order, whatever comes again", async () => {
  const { hub } = scene;
  const client = await inRoom();
  const seen = heard(client);

  for (const offset of [3, 4, 4, 3, 5]) hub.tell(offset, { id: undefined });

  assert.deepEqual(seen, [3, 4, 5]);
  assert.deepEqual(resumed(), []);
});

test("a message that was handled before is acked when it asks again", async () => {
  const { hub } = scene;
  const client = await inRoom();
  const seen = heard(client);

  hub.tell(3, { ack: true });
  await settled();
  hub.tell(3, { ack: true });
  hub.tell(2, { ack: true }); // so long ago that its id is forgotten

  assert.deepEqual(seen, [3]);
  assert.deepEqual(hub.acks.map(({ ref }) => ref), ["e1-3", "e1-3", "e1-2"]);
});

test("a jump of the offset is filled before anything after it is handled", async () => {
  const { hub } = scene;
  const client = await inRoom();
  const seen = heard(client);
  hub.answers["system:resume"] = null;

  hub.tell(5, { ack: true });
  hub.tell(6);
  await settled();
  assert.deepEqual([seen, hub.acks], [[], []]);
  const rooms = { r: { epoch: "e1", offset: 2 } };
  assert.deepEqual(resumed().map(({ data }) => data), [{ rooms }]);
  for (const offset of [3, 4, 5, 6]) hub.tell(offset);
  hub.answer(resumed()[0], recovered("r", "e1", 6));
  hub.tell(7);
  await settled();

  assert.deepEqual(seen, [3, 4, 5, 6, 7]);
  assert.equal(resumed().length, 1);
  // What was replayed does not ask for its ack; what asked for it came ahead of its turn.
  assert.deepEqual(hub.acks.map(({ ref }) => ref), ["e1-5"]);
});

test("places that nothing was sent for are of messages for others", async () => {
  const { hub } = scene;
  const client = await inRoom();
  const seen = heard(client);
  const lost = losses(client);
  hub.answers["system:resume"] = () => {
    for (const offset of [4, 6, 7]) hub.tell(offset);
    return recovered("r", "e1", 8);
  };

  hub.tell(4);
  await settled();
  hub.tell(9);

  assert.deepEqual([seen, lost], [[4, 6, 7, 9], []]);
});

test("a gap that the hub tells of is filled", async () => {
  const { hub } = scene;
  const client = await inRoom();
  const seen = heard(client);
  hub.answers["system:resume"] = () => {
    hub.tell(3);
    return recovered("r", "e1", 3);
  };

  hub.send({ topic: "system:gap", event: "gap", data: { room: "r", epoch: "e1", offset: 2 } });
  await settled();

  assert.deepEqual(seen, [3]);
});

test("a gap in a room that is not known begins where the hub says", async () => {
  const { hub } = scene;
  await connected();

  hub.send({ topic: "system:gap", event: "gap", data: { room: "new", epoch: "e1", offset: 7 } });

  assert.deepEqual(resumed()[0].data, { rooms: { new: { epoch: "e1", offset: 7 } } });
});

test("a gap that can't be filled now is asked for again, but not at each message", async () => {
  const { hub } = scene;
  const client = await inRoom();
  const seen = heard(client);
  const away = { status: "nack", code: "unavailable", error: "no" };
  hub.answers["system:resume"] = away;
  for (const offset of [4, 5, 6]) hub.tell(offset);
  await settled();
  for (const offset of [7, 8, 9]) hub.tell(offset);
  assert.equal(resumed().length, 1);
  hub.answers["system:resume"] = { ...away, code: "rate_limited", retry_after: 10 };
  await pass(1);
  assert.equal(resumed().length, 2);

  hub.answers["system:resume"] = () => {
    for (const offset of [3, 4, 5, 6, 7, 8, 9]) hub.tell(offset);
    return recovered("r", "e1", 9);
  };
  await pass(9);
  assert.equal(resumed().length, 2);
  await pass(1);

  assert.deepEqual(seen, [3, 4, 5, 6, 7, 8, 9]);
});

test("when the hub can't fill a gap at all, that is told, and it goes on", async () => {
  const { hub } = scene;
  const client = await inRoom();
  const seen = heard(client);
  const lost = losses(client);
  hub.answers["system:resume"] = { status: "nack", code: "forbidden", error: "no" };

  hub.tell(5);
  await settled();
  hub.tell(6);
  hub.tell(8);

  assert.deepEqual([seen, lost], [[6], [["r", undefined, undefined, undefined]]]);
  assert.equal(resumed().length, 2);
});

test("another epoch is told, and taken", async () => {
  const { hub } = scene;
  const client = await inRoom();
  const seen = heard(client);
  const lost = losses(client);

  hub.tell(1, { epoch: "e2" });
  hub.tell(2, { epoch: "e2" });

  assert.deepEqual([seen, lost], [[1, 2], [["r", "e2", 1, undefined]]]);
});

test("joining again tells of what is missing", async () => {
  const { hub } = scene;
  const client = await inRoom();
  const lost = losses(client);
  hub.answers["system:resume"] = null;
  hub.answers["system:join"] = { room: "r", epoch: "e1", offset: 4 };
  await client.join("r");
  assert.deepEqual(resumed()[0].data, { rooms: { r: { epoch: "e1", offset: 2 } } });

  hub.answers["system:join"] = { room: "r", epoch: "e2", offset: 4 };
  await client.join("r");

  assert.deepEqual(lost.at(-1), ["r", "e2", 4, undefined]);
});

test("a message that follows the join's answer at once is no gap", async () => {
  const { hub } = scene;
  const client = await connected();
  const seen = heard(client);
  hub.answers["system:join"] = (_, request) => {
    hub.answer(request, { room: "r", epoch: "e1", offset: 2 });
    hub.tell(3);
    return null;
  };

  await client.join("r");

  assert.deepEqual([seen, resumed()], [[3], []]);
});

// --- after a cut

test("the session and all rooms are resumed, and what was missed comes in between", async () => {
  const { hub } = scene;
  const client = await inRoom();
  const seen = heard(client);
  const lost = losses(client);
  hub.answers["system:join"] = { room: "plain" };
  await client.join("plain");
  hub.answers["system:join"] = { room: "left" };
  await client.join("left");
  await client.leave("left");
  hub.tell(3);
  hub.answers["system:resume"] = () => {
    assert.equal(client.state, "connecting");
    hub.tell(4);
    hub.tell(5);
    return { rooms: { ...recovered("r", "e1", 5).rooms, plain: { recovered: false } } };
  };

  await cut();
  hub.tell(6);

  const rooms = { r: { epoch: "e1", offset: 3 }, plain: {} };
  assert.deepEqual(resumed().map(({ data }) => data), [{ session: "s1", rooms }]);
  assert.deepEqual(seen, [3, 4, 5, 6]);
  assert.deepEqual(lost, [["plain", undefined, undefined, undefined]]);
});

test("what the hub can't give back is told, with where the room stands", async () => {
  const { hub } = scene;
  const client = await inRoom();
  const seen = heard(client);
  const lost = losses(client);
  hub.answers["system:resume"] = { rooms: { r: { recovered: false, epoch: "e2", offset: 9 } } };

  await cut();
  hub.tell(10, { epoch: "e2" });

  assert.deepEqual(lost, [["r", "e2", 9, undefined]]);
  assert.deepEqual(seen, [10]);
  await cut();
  assert.deepEqual(resumed()[1].data.rooms, { r: { epoch: "e2", offset: 10 } });
});

test("a room that does not let us in any more is told, and not asked for again", async () => {
  const { hub } = scene;
  const client = await inRoom();
  const lost = losses(client);
  const refused = { recovered: false, code: "join_forbidden" };
  hub.answers["system:resume"] = { rooms: { r: refused } };

  await cut();
  await cut();

  assert.deepEqual(lost, [["r", undefined, undefined, "join_forbidden"]]);
  assert.deepEqual(resumed()[1].data.rooms, {});
});

test("a room that can't be resumed just now is asked for again", async () => {
  const { hub } = scene;
  const client = await inRoom();
  const seen = heard(client);
  const lost = losses(client);
  hub.answers["system:resume"] = { rooms: { r: { recovered: false, code: "unavailable" } } };
  hub.close();
  await pass(0.5);
  assert.equal(client.state, "open");
  hub.answers["system:resume"] = () => {
    hub.tell(3);
    return recovered("r", "e1", 3);
  };

  await pass(1);

  assert.deepEqual(resumed()[1].data, { rooms: { r: { epoch: "e1", offset: 2 } } });
  assert.deepEqual([seen, lost], [[3], []]);
});

test("who was kicked does not come back by a resume", async () => {
  const { hub } = scene;
  const client = await inRoom();
  const kicked = heard(client, "system:kicked");
  const data = { room: "r", reason: "kicked" };
  hub.send({ topic: "system:kicked", event: "kicked", data });

  await cut();

  assert.deepEqual(kicked, [data]);
  assert.deepEqual(resumed()[0].data.rooms, {});
});

test("the old session is asked for until a resume has succeeded", async () => {
  const { hub } = scene;
  const client = await inRoom();
  hub.answers["system:resume"] = null;
  await cut();
  hub.close();
  await pass(1);
  hub.answers["system:resume"] = { status: "nack", code: "unavailable", error: "no" };
  hub.close();
  await pass(2);
  assert.equal(client.state, "waiting");
  hub.answers["system:resume"] = recovered("r", "e1", 2);
  await pass(4);
  assert.equal(client.state, "open");
  hub.close();
  await pass(8);

  const sessions = resumed().map(({ data }) => data.session);
  assert.deepEqual(sessions, ["s1", "s1", "s1", "s1", "s5"]);
});

test("a resume that falls silent is given up, one that brings messages is not", async () => {
  const { hub } = scene;
  const client = await inRoom();
  hub.answers["system:resume"] = null;
  await cut();
  for (const offset of [3, 4, 5]) {
    await pass(9);
    hub.tell(offset);
  }
  assert.equal(client.state, "connecting");
  assert.equal(hub.sockets.length, 2);

  await pass(20);

  assert.notEqual(hub.sockets[1].closed, undefined);
});

test("where the hub knows no resume the rooms are joined, and the loss is told", async () => {
  const { hub } = scene;
  const client = await inRoom();
  await client.join("closed");
  const lost = losses(client);
  const refusal = { status: "nack", error: "no" };
  hub.answers["system:resume"] = { ...refusal, code: "handler_not_found" };
  hub.answers["system:join"] = ({ room }) =>
    room === "r" ? { room, epoch: "e2", offset: 4 } : { ...refusal, code: "room_full" };

  await cut();

  assert.equal(client.state, "open");
  assert.deepEqual(lost, [
    ["r", "e2", 4, undefined],
    ["closed", undefined, undefined, "room_full"],
  ]);
});

test("a room that was left during the resume is not taken up again", async () => {
  const { hub } = scene;
  const client = await inRoom();
  hub.answers["system:resume"] = null;
  hub.tell(5);
  await client.leave("r");

  hub.answer(resumed()[0], recovered("r", "e1", 5));
  await cut();

  assert.deepEqual(resumed()[1].data.rooms, {});
});
