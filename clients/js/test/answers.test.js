/** What is an answer, and what is the application's own, whatever it is called. */

import assert from "node:assert/strict";
import { mock, test } from "node:test";

import { pass, settled } from "./scripted.js";
import { connected, cut, scene } from "./support.js";

function heard(client, topic = "*") {
  const seen = [];
  client.on(topic, ({ event, data }) => void seen.push([event, data]));
  return seen;
}

function errors(client) {
  const seen = [];
  client.onError((error) => seen.push(error.code));
  return seen;
}

const EVENTS = ["error", "ack", "join", "leave", "typing", "gap", "kicked", "draining", "welcome"];

for (const event of EVENTS) {
  for (const topic of ["orders", "room:r", "room:r:more"]) {
    test(`an application's event ${event} on ${topic} is a message`, async () => {
      const { hub } = scene;
      const client = await connected();
      const seen = heard(client);
      const failed = errors(client);
      const data = { code: "E17", message_id: "order-5", status: "nack", reconnect_in: 3 };

      hub.send({ id: "m1", topic, event, data, ack: true });
      await settled();

      assert.deepEqual(seen, [[event, data]]);
      assert.deepEqual(failed, []);
      assert.equal(client.state, "open");
      assert.deepEqual(hub.acks.map(({ ref, data: { status } }) => [ref, status]), [["m1", "ok"]]);
    });
  }
}

for (const event of ["error", "ack"]) {
  test(`${event} in a room with history moves its place on`, async () => {
    const { hub } = scene;
    hub.answers["system:join"] = { room: "r", epoch: "e1", offset: 2 };
    const client = await connected();
    await client.join("r");
    const seen = heard(client, "room:r");

    hub.tell(3, { event, data: { code: "E17" } });
    hub.tell(4);
    hub.tell(3, { event, data: { code: "E17" } });
    await settled();

    assert.deepEqual(seen, [[event, { code: "E17" }], ["message", 4]]);
    assert.deepEqual(hub.asked("system:resume"), []);
  });

  test(`a stored ${event} is handled once and acked as often as it comes`, async () => {
    const { hub } = scene;
    const client = await connected();
    const seen = heard(client);
    const stored = { id: "m1", topic: "orders", event, data: { code: 7 }, ack: true };

    hub.send(stored);
    await settled();
    await cut();
    hub.send(stored);
    await settled();

    assert.equal(seen.length, 1);
    assert.deepEqual(hub.acks.map(({ ref }) => ref), ["m1", "m1"]);
  });

  test(`${event} with an id of its own answers what it names`, async () => {
    const { hub } = scene;
    const client = await connected();
    const seen = heard(client);
    hub.answers.echo = null;
    const asked = client.request("echo").catch(({ code }) => ({ code }));
    const [{ id }] = hub.asked("echo");

    hub.send({ id: "m1", topic: "echo", event, ref: id, data: { code: "forbidden" } });

    assert.equal((await asked).code, "forbidden");
    assert.deepEqual(seen, []);
  });
}

test("an ack that was left without data, or without a topic, is an answer", async () => {
  const { hub } = scene;
  const client = await connected();
  hub.answers.echo = null;
  const asked = [client.request("echo"), client.request("echo")];
  const [one, two] = hub.asked("echo");

  hub.send({ topic: "echo", event: "ack", ref: one.id });
  hub.send({ event: "ack", ref: two.id });

  assert.deepEqual(await Promise.all(asked), [{}, {}]);
});

test("what answers a request that nobody waits for is no message, unless it is an error", async () => {
  const { hub } = scene;
  const client = await connected();
  const seen = heard(client);
  const failed = errors(client);
  hub.answers.echo = null;
  const asked = client.request("echo", null, { timeout: 1 });
  await Promise.all([assert.rejects(asked, { code: "ack_timeout" }), pass(1)]);
  const [{ id }] = hub.asked("echo");

  hub.send({ topic: "echo", event: "ack", ref: id });
  hub.answer({ id, topic: "echo" }, {});
  hub.send({ event: "ack", ref: "never" });
  hub.send({ event: "ack" });
  assert.deepEqual(seen, []);
  const data = { code: "forbidden", error: "no" };
  hub.send({ topic: "echo", event: "error", ref: id, data });

  assert.deepEqual([seen, failed], [[["error", data]], ["forbidden"]]);
});

test("an error without an id may be to a `send`, or the application's: both are told", async () => {
  const { hub } = scene;
  const client = await connected();
  const seen = heard(client, "orders");
  const failed = errors(client);

  hub.send({ topic: "orders", event: "error", data: { code: "E17" } });
  hub.send({ topic: "orders", event: "error", data: "plain" });
  hub.send({ topic: "system:error", event: "error", data: { code: "invalid_json", error: "no" } });
  hub.send({ id: "m1", topic: "system:error", event: "error", data: { code: "x", error: "no" } });

  assert.deepEqual(seen, [["error", { code: "E17" }], ["error", "plain"]]);
  assert.deepEqual(failed, ["E17", "invalid_json", "x"]);
});

test("a notice of the hub that says nothing is reported, and disturbs nothing", async () => {
  const { hub } = scene;
  const client = await connected();
  const failed = errors(client);
  const seen = heard(client);

  for (const topic of ["system:draining", "system:gap", "system:kicked", "system:welcome"]) {
    hub.send({ topic });
  }
  for (const seconds of [-1, "x", null]) {
    hub.send({ topic: "system:draining", data: { reconnect_in: seconds } });
  }
  hub.send({ topic: "news", stream: 5 });
  await settled();
  client.send("one");

  assert.equal(failed.length, 3);
  assert.deepEqual(seen, [["message", null]]);
  assert.equal(hub.asked("one").length, 1);
});

test("a hub can't keep a client away for ever", async () => {
  const { hub } = scene;
  const client = await connected();
  let delay;
  client.onState((_, info) => (delay = info.delay));

  hub.send({ topic: "system:draining", data: { reconnect_in: 1e12 } });
  hub.close(1012);

  assert.equal(delay, 3600);
});

// --- registrations

test("each registration of a function is undone by itself", async () => {
  const { hub } = scene;
  const client = await connected();
  const seen = [];
  const mine = ({ data }) => void seen.push(data);
  const stops = [client.on("a", mine), client.on("a", mine), client.on("*", mine)];

  hub.send({ topic: "a", data: 1 });
  stops[0]();
  stops[0]();
  hub.send({ topic: "a", data: 2 });
  client.off("a", mine);
  client.off("b", mine);
  hub.send({ topic: "a", data: 3 });
  stops[1]();
  client.off("a", mine);
  hub.send({ topic: "a", data: 4 });

  assert.deepEqual(seen, [1, 1, 1, 2, 2, 3, 4]);
});

test("`off` undoes the last registration first", async () => {
  const { hub } = scene;
  const client = await connected();
  const seen = [];
  const first = () => void seen.push("first");
  client.on("a", first);
  client.on("a", () => void seen.push("between"));
  client.on("a", first);

  client.off("a", first);
  hub.send({ topic: "a" });

  assert.deepEqual(seen, ["first", "between"]);
});

test("callbacks for states, losses and errors are undone by themselves, too", async () => {
  const { hub } = scene;
  const client = await connected();
  const counts = { state: 0, lost: 0, error: 0 };
  const ends = ["State", "Lost", "Error"].map((name) => {
    const count = () => (counts[name.toLowerCase()] += 1);
    client[`on${name}`](count);
    return client[`on${name}`](count);
  });
  for (const end of ends) {
    end();
    end();
  }

  hub.send({ topic: "system:error", event: "error", data: { code: "x" } });
  hub.tell(1);
  hub.tell(1, { epoch: "e2" });
  hub.close();

  assert.deepEqual(counts, { state: 1, lost: 1, error: 1 });
});

test("a handler may end itself and others while it is called", async () => {
  const { hub } = scene;
  const client = await connected();
  const seen = [];
  const ends = [];
  ends.push(
    client.on("a", () => {
      seen.push("first");
      for (const end of ends) end();
    }),
    client.on("a", () => void seen.push("ended")),
  );
  client.on("a", () => void seen.push("last"));

  hub.send({ topic: "a" });
  hub.send({ topic: "a" });

  assert.deepEqual(seen, ["first", "last", "last"]);
});

test("whatever a handler throws is a nack, and reported", async () => {
  const { hub } = scene;
  mock.method(console, "error", () => {});
  const client = await connected();
  const thrown = [undefined, null, 5, Object.create(null), Symbol("s"), { message: { a: 1 } }];
  const reported = [];
  client.onError((error) => reported.push(error));
  client.on("ask", ({ data }) => {
    throw thrown[data];
  });

  for (const n of thrown.keys()) hub.send({ id: `m${n}`, topic: "ask", data: n, ack: true });
  await settled();

  assert.deepEqual(hub.acks.map(({ data }) => data.status), thrown.map(() => "nack"));
  assert.deepEqual(reported, thrown);
});
