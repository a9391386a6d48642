/** A room that the application has left is not taken up again; and what an end leaves behind. */

import assert from "node:assert/strict";
import { after, test } from "node:test";

import { pass, settled } from "./scripted.js";
import { connected, cut, newClient, scene } from "./support.js";

const unhandled = [];
process.on("unhandledRejection", (error) => unhandled.push(error));
after(() => assert.deepEqual(unhandled, []));

const inRooms = async (...rooms) => {
  const client = await connected();
  for (const room of rooms) await client.join(room);
  return client;
};
const resumed = () => scene.hub.asked("system:resume").map(({ data }) => Object.keys(data.rooms));

test("a leave that timed out while away is one", async () => {
  const { hub } = scene;
  const client = await inRooms("r", "other");
  hub.welcomes = false;
  hub.close();
  const left = client.leave("r", { timeout: 1 });
  await Promise.all([assert.rejects(left, { code: "ack_timeout" }), pass(1)]);

  hub.welcomes = true;
  hub.close();
  await pass(2);

  assert.equal(client.state, "open");
  assert.deepEqual(resumed(), [["other"]]);
  await cut();
  assert.deepEqual(resumed()[1], ["other"]);
});

test("nobody has to wait for a leave", async () => {
  const client = await inRooms("r");
  scene.hub.close();
  void client.leave("r", { timeout: 0.1 });
  await pass(0.5);
  void client.leave("r");
  client.close();
  void client.leave("r");
  await new Promise(setImmediate);

  assert.deepEqual(unhandled, []);
});

for (const [how, stop] of [
  ["is under way", () => {}],
  ["timed out", () => pass(6)],
  ["was taken back", (controller) => controller.abort()],
]) {
  test(`a leave that ${how} at a cut is one`, async () => {
    const { hub } = scene;
    const client = await inRooms("r", "other");
    hub.answers["system:leave"] = null;
    const controller = new AbortController();
    void client.leave("r", { signal: controller.signal });
    await stop(controller);
    delete hub.answers["system:leave"];

    await cut();
    await cut();

    assert.deepEqual(resumed(), [["other"], ["other"]]);
  });
}

test("with the outbox full, too", async () => {
  const { hub } = scene;
  const client = await connected({ outbox: 1 });
  await client.join("r");
  hub.close();
  client.send("one");

  await assert.rejects(client.leave("r"), { code: "overloaded" });
  await pass(1);

  assert.deepEqual(resumed(), [[]]);
});

test("what is still to be done in a room is done before it is left", async () => {
  const { hub } = scene;
  const client = await inRooms("r");
  hub.close();
  const said = client.publish("r", "bye");
  const left = client.leave("r");

  await pass(0.5);
  await Promise.all([said, left]);

  assert.deepEqual(resumed(), [["r"]]);
  const topics = hub.requests.slice(-2).map(({ topic }) => topic);
  assert.deepEqual(topics, ["system:publish", "system:leave"]);
  await cut();
  assert.deepEqual(resumed()[1], []);
});

test("a room that is joined again after it was left is one to be in", async () => {
  const { hub } = scene;
  const client = await inRooms("r");
  hub.answers["system:leave"] = null;
  void client.leave("r", { timeout: 1 });
  await pass(1);
  await client.join("r");
  await cut();
  assert.deepEqual(resumed(), [["r"]]);

  hub.close();
  void client.leave("r");
  const joined = client.join("r");
  delete hub.answers["system:leave"];
  await pass(4);
  await joined;
  await cut();

  assert.deepEqual(resumed().at(-1), ["r"]);
});

for (const [code, rooms] of [["unavailable", ["r"]], ["rate_limited", ["r"]], ["not_a_member", []]]) {
  test(`a leave that is refused with ${code} leaves ${rooms.length ? "nothing" : "it"}`, async () => {
    const { hub } = scene;
    const client = await inRooms("r");
    hub.answers["system:leave"] = { status: "nack", code, error: "no" };

    await assert.rejects(client.leave("r"), { code });
    await cut();

    assert.deepEqual(resumed(), [rooms]);
  });
}

test("what still comes from a room that was left does not bring it back", async () => {
  const { hub } = scene;
  hub.answers["system:join"] = { room: "r", epoch: "e1", offset: 2 };
  const client = await inRooms("r");
  const seen = [];
  client.on("room:r", ({ data }) => void seen.push(data));
  hub.answers["system:leave"] = null;
  void client.leave("r", { timeout: 1 });
  hub.tell(3);
  await pass(1);

  hub.tell(4);
  hub.tell(9);
  hub.send({ topic: "system:gap", event: "gap", data: { room: "r", epoch: "e1", offset: 4 } });
  await settled();
  assert.deepEqual([seen, resumed()], [[3, 4, 9], []]);
  await cut();
  assert.deepEqual(resumed(), [[]]);
  hub.tell(10); // the hub's own code has joined us again
  await cut();

  assert.deepEqual(resumed()[1], ["r"]);
});

test("a room that is left while it is resumed is left at the hub, too", async () => {
  const { hub } = scene;
  const client = await inRooms("r");
  hub.answers["system:resume"] = null;
  await cut();
  void client.leave("r", { timeout: 0.1 });
  await pass(0.5);
  assert.deepEqual(hub.asked("system:leave"), []);

  hub.answer(hub.asked("system:resume")[0], { rooms: { r: { recovered: false } } });

  assert.deepEqual(hub.asked("system:leave").map(({ data }) => data), [{ room: "r" }]);
  await cut();
  assert.deepEqual(resumed()[1], []);
});

test("requests keep their order over many cuts", async () => {
  const { hub } = scene;
  const client = await connected();
  hub.answers["system:join"] = hub.answers["system:publish"] = null;
  const joined = client.join("r", { timeout: 60 });
  const said = client.publish("r", 1, { timeout: 60 });
  for (let n = 0; n < 3; n += 1) await cut();
  delete hub.answers["system:join"];
  delete hub.answers["system:publish"];
  await pass(2);
  hub.close();
  await pass(8);
  await Promise.all([joined, said]);

  const topics = hub.requests.map(({ topic }) => topic).filter((t) => t !== "system:resume");
  assert.ok(topics.length >= 8);
  topics.forEach((topic, n) => assert.equal(topic, ["system:join", "system:publish"][n % 2]));
});

// --- what an end leaves behind

test("a room that has no place any more is told, and not asked for again", async () => {
  const { hub } = scene;
  const client = await inRooms("r");
  const lost = [];
  client.onLost((room, { code }) => lost.push([room, code]));
  hub.answers["system:resume"] = { rooms: { r: { recovered: false, code: "room_full" } } };

  await cut();
  await cut();

  assert.deepEqual(lost, [["r", "room_full"]]);
  assert.deepEqual(resumed()[1], []);
});

test("a gap whose answer does not come is asked for again", async () => {
  const { hub } = scene;
  hub.answers["system:join"] = { room: "r", epoch: "e1", offset: 2 };
  await inRooms("r");
  hub.answers["system:resume"] = null;
  hub.tell(4);
  for (let n = 0; n < 8; n += 1) {
    await pass(8);
    hub.send({ topic: "news" }); // it lives
  }

  assert.equal(resumed().filter(([room]) => room === "r").length, 2);
});

const stages = {
  connecting: () => {},
  "on the way": () => settled(),
  open: () => settled(),
  waiting: async () => {
    await settled();
    scene.hub.close();
  },
  resuming: async () => {
    await settled();
    scene.hub.answers["system:resume"] = null;
    await cut();
  },
  "catching up later": async (client) => {
    await settled();
    await client.join("r");
    scene.hub.answers["system:resume"] = { status: "nack", code: "rate_limited", retry_after: 500 };
    scene.hub.tell(1);
    scene.hub.tell(3);
    await settled();
  },
};
for (const [name, reach] of Object.entries(stages)) {
  test(`closing while it is ${name} leaves no timer and no promise`, async (t) => {
    const alive = new Set();
    const { setTimeout: set, setInterval: every, clearTimeout: clear } = globalThis;
    const keep = (how) => (callback, wait) => {
      const timer = how((...args) => {
        if (how === set) alive.delete(timer);
        callback(...args);
      }, wait);
      alive.add(timer);
      return timer;
    };
    t.mock.method(globalThis, "setTimeout", keep(set));
    t.mock.method(globalThis, "setInterval", keep(every));
    t.mock.method(globalThis, "clearTimeout", (timer) => {
      alive.delete(timer);
      clear(timer);
    });
    scene.hub.welcomes = name !== "on the way";
    const client = newClient({ token: async () => ({ token: "t", expires_in: 900 }) });
    client.connect();
    await reach(client);
    const asked = [
      client.request("echo", null, { timeout: 100 }),
      client.join("x"),
      client.publish("x"),
      client.leave("x"),
    ].map((promise) => promise.then(() => "answered", ({ code }) => code));
    const before = scene.hub.sockets.length;

    client.close();
    client.close();
    client.connect();
    client.close();
    await settled();

    for (const outcome of await Promise.all(asked)) {
      assert.ok(["answered", "connection_closed", "ack_timeout"].includes(outcome), outcome);
    }
    assert.equal(alive.size, 0);
    await pass(600);
    assert.equal(scene.hub.sockets.length, before);
    assert.equal(client.state, "closed");
  });
}

test("whoever is told of a state may close and connect", async () => {
  const { hub } = scene;
  let asked = 0;
  const client = newClient({ token: () => `t${(asked += 1)}` });
  const end = client.onState((state) => state === "connecting" && client.close());
  client.connect();
  await pass(60);
  assert.deepEqual([client.state, hub.sockets.length, asked], ["closed", 0, 0]);
  end();

  client.onState((state) => state === "closed" && client.connect());
  client.connect();
  client.connect();
  await settled();
  hub.close(4503);
  await settled();

  assert.deepEqual([client.state, hub.sockets.length], ["open", 2]);
});

test("a machine that slept reads what has come before it gives a connection up", async (t) => {
  const { hub } = scene;
  let skew = 0;
  const { now } = Date;
  t.mock.method(Date, "now", () => now() + skew);
  const client = await connected();
  hub.answers["system:resume"] = null;
  await pass(60);
  const [request] = hub.asked("system:resume");
  assert.ok(request);
  await pass(9);
  skew = 60_000;
  await pass(1.2); // the timer rings, a minute late
  hub.answer(request, { rooms: {} });
  await pass(5);
  assert.equal(client.state, "open");

  await pass(60);
  skew += 60_000;
  await pass(10);

  assert.notEqual(hub.sockets[0].closed, undefined);
});
