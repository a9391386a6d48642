/** Sending and asking, with a connection and without. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { pass, settled } from "./scripted.js";
import { connected, cut, newClient, scene, standStill } from "./support.js";

test("a request resolves with the ack's data", async () => {
  const { hub } = scene;
  hub.answers.echo = (data) => ({ echo: data.text });
  const client = await connected();

  const answer = await client.request("echo", { text: "hi" }, { event: "say", version: "v2" });

  assert.equal(answer.echo, "hi");
  const [{ id, ...sent }] = hub.asked("echo");
  const expected = { topic: "echo", event: "say", version: "v2", data: { text: "hi" }, ack: true };
  assert.deepEqual(sent, expected);
  assert.match(id, /^[0-9a-f]{32}-\d+$/);
});

test("a refusal rejects with its code, fields and pause", async () => {
  const { hub } = scene;
  const client = await connected();
  const refused = { status: "nack", code: "validation", error: "no", fields: { text: ["long"] } };
  hub.answers.echo = { ...refused, retry_after: 2 };

  const expected = { code: "validation", message: "no", fields: { text: ["long"] }, retryAfter: 2 };
  await assert.rejects(client.request("echo"), expected);
});

test("an error is the answer, too", async () => {
  const { hub } = scene;
  const client = await connected();
  hub.answers.echo = null;
  const asked = client.request("echo");
  const [{ id }] = hub.asked("echo");

  hub.send({ topic: "echo", ref: id, event: "error", data: { code: "forbidden", error: "no" } });

  await assert.rejects(asked, { code: "forbidden" });
});

test("where ref and message_id differ, message_id counts", async () => {
  const { hub } = scene;
  const client = await connected();
  hub.answers.echo = null;
  const asked = client.request("echo");
  const [{ id }] = hub.asked("echo");

  const data = { message_id: id, status: "ok", n: 1 };
  hub.send({ topic: "echo", ref: "another", event: "ack", data });

  assert.equal((await asked).n, 1);
});

test("an answer that came while the page stood still counts", async () => {
  const { hub } = scene;
  const client = await connected();
  hub.answers.echo = null;
  const asked = client.request("echo", null, { timeout: 3 });
  await settled();

  standStill(60);
  await pass(1); // the timer rings first
  hub.answer(hub.asked("echo")[0], { n: 1 });
  assert.equal((await asked).n, 1);
  const late = client.request("echo", null, { timeout: 3 });
  await settled();
  standStill(60);
  await Promise.all([assert.rejects(late, { code: "ack_timeout" }), pass(6)]);
});

test("a request without an answer ends in time, and its late answer is of no use", async () => {
  const { hub } = scene;
  const client = await connected();
  hub.answers.echo = null;
  const asked = client.request("echo", null, { timeout: 3 });

  await Promise.all([assert.rejects(asked, { code: "ack_timeout" }), pass(3)]);
  hub.answer(hub.asked("echo")[0], {});
  await cut();

  assert.equal(hub.asked("echo").length, 1);
});

test("without saying so a request waits five seconds", async () => {
  const { hub } = scene;
  const client = await connected();
  hub.answers.echo = null;
  let error = null;
  client.request("echo").catch((reason) => (error = reason));

  await pass(4.9);
  assert.equal(error, null);
  await pass(0.2);

  assert.equal(error.code, "ack_timeout");
});

test("a request can wait for ever, and be taken back", async () => {
  const { hub } = scene;
  const client = await connected();
  hub.answers.echo = null;
  const stop = new AbortController();
  const asked = client.request("echo", null, { timeout: Infinity, signal: stop.signal });

  await pass(3600);
  stop.abort(new Error("enough"));

  await assert.rejects(asked, { message: "enough" });
  const never = client.request("echo", null, { signal: stop.signal });
  await assert.rejects(never, { message: "enough" });
  assert.equal(hub.asked("echo").length, 1);
});

test("a request that was under way at a cut is sent again under its id", async () => {
  const { hub } = scene;
  const client = await connected();
  hub.answers.echo = null;
  const asked = client.request("echo", { n: 1 });

  hub.answers.echo = { n: 1 };
  await cut();

  assert.equal((await asked).n, 1);
  const [first, second] = hub.asked("echo");
  assert.deepEqual(first, second);
});

test("what an old connection still says is not heard", async () => {
  const { hub } = scene;
  const client = await connected();
  hub.answers.echo = null;
  const asked = client.request("echo");
  const old = hub.socket;
  await cut();

  const data = { message_id: hub.asked("echo")[0].id, status: "ok", from: "old" };
  old.onmessage({ data: JSON.stringify({ topic: "echo", event: "ack", data }) });
  old.onclose({ code: 1000 });
  hub.answer(hub.asked("echo")[1], { from: "new" });

  assert.equal((await asked).from, "new");
  assert.equal(client.state, "open");
});

test("a join that was under way is asked anew: its answer is about one connection", async () => {
  const { hub } = scene;
  const client = await connected();
  hub.answers["system:join"] = null;
  const asked = client.join("r");

  hub.answers["system:join"] = { room: "r", members: 1 };
  await cut();

  assert.equal((await asked).members, 1);
  const ids = hub.asked("system:join").map(({ id }) => id);
  assert.equal(new Set(ids).size, 2);
});

test("a request that left from the outbox is sent again, too", async () => {
  const { hub } = scene;
  const client = await connected();
  hub.answers.echo = null;
  hub.close();
  const asked = client.request("echo");
  await pass(0.5);
  hub.answers.echo = {};
  await cut();

  await asked;
  assert.equal(hub.asked("echo").length, 2);
});

test("an id may be used again, and has its own time", async () => {
  const { hub } = scene;
  const client = await connected();
  await client.request("echo", 1, { id: "mine" });
  await pass(4);
  hub.answers.echo = null;
  const asked = client.request("echo", 2, { id: "mine" });
  await pass(3);

  hub.answer(hub.asked("echo")[1], { n: 2 });

  assert.equal((await asked).n, 2);
});

test("what is sent into a closing connection goes to the next one", async () => {
  const { hub } = scene;
  const client = await connected();
  hub.socket.readyState = 2;
  client.send("one");

  await cut();

  assert.equal(hub.asked("one").length, 1);
});

test("a publish that was under way keeps its id", async () => {
  const { hub } = scene;
  const client = await connected();
  hub.answers["system:publish"] = null;
  client.publish("r", 1).catch(() => {});

  await cut();

  const ids = hub.asked("system:publish").map(({ id }) => id);
  assert.deepEqual(ids, [ids[0], ids[0]]);
});

test("after a cut come the session, the unanswered, and the outbox in its order", async () => {
  const { hub } = scene;
  const client = await connected();
  hub.answers.asked = null;
  const asked = client.request("asked");
  hub.requests.length = 0;
  hub.answers.asked = {};

  hub.close();
  client.send("one", { n: 1 });
  const later = client.request("two");
  client.send("three");
  await pass(0.5);
  await Promise.all([asked, later]);

  const topics = hub.requests.map(({ topic }) => topic);
  assert.deepEqual(topics, ["system:resume", "asked", "one", "two", "three"]);
  assert.equal(hub.requests[0].data.session, "s1");
  assert.deepEqual(hub.asked("one"), [{ topic: "one", data: { n: 1 } }]);
});

test("before the first connection everything waits", async () => {
  const { hub } = scene;
  const client = newClient();
  client.connect();
  client.send("one");
  const asked = client.request("two");

  await asked;

  assert.deepEqual(hub.requests.map(({ topic }) => topic), ["one", "two"]);
});

test("what is changed after it was sent goes out as it was", async () => {
  const { hub } = scene;
  const client = await connected();
  hub.close();
  const data = { n: 1 };
  client.send("one", data);
  data.n = 2;

  await pass(0.5);

  assert.deepEqual(hub.asked("one")[0].data, { n: 1 });
});

test("the outbox is bounded, for requests too", async () => {
  const { hub } = scene;
  const client = await connected({ outbox: 2 });
  hub.close();
  client.send("one");
  const stop = new AbortController();
  const taken = assert.rejects(client.request("two", null, { signal: stop.signal }));

  assert.throws(() => client.send("three"), { code: "overloaded" });
  await assert.rejects(client.request("three"), { code: "overloaded" });
  stop.abort();
  await taken;
  client.send("four");
  await pass(0.5);

  assert.deepEqual(hub.requests.slice(1).map(({ topic }) => topic), ["one", "four"]);
});

test("no more requests are under way than a hub remembers", async () => {
  const { hub } = scene;
  const client = await connected();
  hub.answers.echo = null;
  for (let n = 0; n < 256; n += 1) client.request("echo").catch(() => {});

  await assert.rejects(client.request("echo"), { code: "overloaded" });
  hub.answer(hub.requests[0], {});
  client.request("echo").catch(() => {});

  assert.equal(hub.asked("echo").length, 257);
});

test("a socket that takes nothing any more is not filled", async () => {
  const { hub } = scene;
  const client = await connected();
  hub.socket.bufferedAmount = 17 * 2 ** 20;

  assert.throws(() => client.send("one"), { code: "overloaded" });
});

test("what is larger than the hub takes is not sent: it would end the connection", async () => {
  const { hub } = scene;
  const client = await connected();

  assert.throws(() => client.send("one", "é".repeat(500)), { code: "message_too_big" });
  client.send("one", "e".repeat(900));
  await assert.rejects(client.request("two", "e".repeat(1000)), { code: "message_too_big" });

  assert.equal(hub.requests.length, 1);
});

test("what JSON can't hold is refused to the caller", async () => {
  const client = await connected();

  assert.throws(() => client.send("one", 1n), TypeError);
  await assert.rejects(client.request("two", 1n), TypeError);
});

test("two requests can't have one id at the same time", async () => {
  const { hub } = scene;
  const client = await connected();
  hub.answers.echo = null;
  client.request("echo", 1, { id: "mine" }).catch(() => {});

  await assert.rejects(client.request("echo", 2, { id: "mine" }), { code: "validation" });
});

test("the refusal of a message without an answer is reported", async () => {
  const { hub } = scene;
  const client = await connected();
  const errors = [];
  client.onError((error) => errors.push(error));
  client.send("chat:say", 1);

  hub.send({ topic: "chat:say", event: "error", data: { code: "rate_limited", error: "slow" } });

  assert.deepEqual(errors.map(({ code }) => code), ["rate_limited"]);
});

test("the end rejects what was not answered, and tells of what was not sent", async () => {
  const { hub } = scene;
  const client = await connected();
  const errors = [];
  client.onError((error) => errors.push(error.code));
  hub.answers.echo = null;
  const asked = client.request("echo");
  hub.close();
  const waiting = client.request("echo");
  client.send("one");

  client.close();

  await assert.rejects(asked, { code: "connection_closed" });
  await assert.rejects(waiting, { code: "connection_closed" });
  assert.deepEqual(errors, ["connection_closed"]);
  assert.throws(() => client.send("two"), { code: "connection_closed" });
  await assert.rejects(client.request("two"), { code: "connection_closed" });
});

test("the hub's own requests say what protocol.md wants", async () => {
  const { hub } = scene;
  const client = await connected();
  await client.join("r");
  await client.leave("r");
  await client.publish("r", { text: "hi" }, { event: "said" });
  await client.members("r", { limit: 5, cursor: "2" });
  await client.presence(["ada"]);
  await client.presence({ room: "r" });
  await client.typing("r");
  await client.typing("r", false, { ttl: 3 });
  await client.history("r", { since: { epoch: "e", offset: 4 }, limit: 7 });

  assert.deepEqual(
    hub.requests.map(({ topic, data }) => [topic, data]),
    [
      ["system:join", { room: "r" }],
      ["system:leave", { room: "r" }],
      ["system:publish", { room: "r", event: "said", data: { text: "hi" } }],
      ["system:members", { room: "r", limit: 5, cursor: "2" }],
      ["system:presence", { users: ["ada"] }],
      ["system:presence", { room: "r" }],
      ["system:typing", { room: "r", typing: true }],
      ["system:typing", { room: "r", typing: false, ttl: 3 }],
      ["system:history", { room: "r", since: { epoch: "e", offset: 4 }, limit: 7 }],
    ],
  );
});

test("a hub that drains while it is being resumed is told nothing new", async () => {
  const { hub } = scene;
  const client = await connected();
  hub.close();
  client.send("one");
  hub.answers["system:resume"] = () => {
    hub.send({ topic: "system:draining", event: "draining", data: { reconnect_in: 1 } });
    return {};
  };
  await pass(0.5);
  assert.deepEqual([client.state, hub.asked("one")], ["open", []]);
  delete hub.answers["system:resume"];
  hub.close(1012);
  await pass(1);

  assert.equal(hub.asked("one").length, 1);
});

test("what is asked while the hub drains waits for the next one", async () => {
  const { hub } = scene;
  const client = await connected();
  hub.answers.early = null;
  const early = client.request("early");
  hub.send({ topic: "system:draining", event: "draining", data: { reconnect_in: 2 } });
  const late = client.request("late");
  client.send("sent");
  const tooLate = { status: "nack", code: "overloaded", error: "draining" };
  hub.answer(hub.asked("early")[0], tooLate);
  await settled();
  assert.equal(hub.requests.length, 1);

  hub.answers.early = {};
  hub.close(1012);
  await pass(2);
  await Promise.all([early, late]);

  const topics = hub.requests.slice(2).map(({ topic }) => topic);
  assert.deepEqual(topics, ["early", "late", "sent"]);
});
