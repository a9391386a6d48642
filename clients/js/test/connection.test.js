/** How the connection comes, goes, and comes back. */

import assert from "node:assert/strict";
import { mock, test } from "node:test";

import { connect } from "../eyewall.js";
import { pass, settled } from "./scripted.js";
import { connected, cut, newClient, scene, standStill } from "./support.js";

function states(client) {
  const seen = [];
  client.onState((state, info) => seen.push([state, info]));
  return seen;
}

test("it connects with the subprotocol, and says who the hub says it is", async () => {
  const { hub } = scene;
  const client = newClient();
  const seen = states(client);
  assert.equal(client.state, "closed");
  client.connect();
  assert.equal(client.state, "connecting");
  await client.ready();

  assert.equal(hub.socket.protocol, "eyewall.v1.json");
  assert.equal(hub.socket.url.href, "ws://hub/ws");
  assert.deepEqual([client.userId, client.connId], ["ada", "c1"]);
  assert.deepEqual(seen.map(([state]) => state), ["connecting", "open"]);
});

test("`connect` starts at once, and takes a page's own address", async () => {
  const { hub } = scene;
  const client = connect("https://hub.example/ws?room=1", { WebSocket: hub.WebSocket });
  await settled();
  client.close();

  assert.equal(hub.socket.url.href, "wss://hub.example/ws?room=1");
});

test("without a WebSocket it says what it needs", () => {
  assert.throws(() => newClient({ WebSocket: null }), /hand one in/);
});

for (const code of [1001, 1006, 1011, 1012, 1013, 4000, 4401, 4408, 4413, 4499]) {
  test(`it comes back after ${code}`, async () => {
    const { hub } = scene;
    const client = await connected();
    hub.close(code, "bye");
    assert.equal(client.state, "waiting");

    await pass(0.5);

    assert.equal(client.state, "open");
    assert.equal(hub.sockets.length, 2);
  });
}

for (const code of [1000, 1002, 1005, 1008, 1009, 4500, 4501, 4503, 4999]) {
  test(`it stays away after ${code} until somebody asks`, async () => {
    const { hub } = scene;
    const client = await connected();
    const seen = states(client);
    hub.close(code, "bye");
    await pass(120);
    assert.deepEqual(seen, [["closed", { code, reason: "bye" }]]);
    assert.equal(hub.sockets.length, 1);

    client.connect();
    await settled();

    assert.equal(client.state, "open");
  });
}

test("it tells for how long it waits, and waits longer each time", async () => {
  const { hub } = scene;
  const client = await connected();
  const seen = states(client);
  hub.welcomes = false;
  hub.close();
  const [[state, { at, ...info }]] = seen;
  assert.equal(state, "waiting");
  assert.deepEqual(info, { delay: 0.5, asked: false, code: 1006, reason: "" });
  assert.equal(at, Date.now() + 500);

  for (const delay of [0.5, 1, 2, 4, 8, 16, 30, 30]) {
    assert.equal(seen.at(-1)[1].delay, delay);
    await pass(delay);
    hub.close();
  }
});

test("a connection that lasts starts the waits afresh, a short one does not", async () => {
  const { hub } = scene;
  const client = await connected();
  const seen = states(client);
  hub.close();
  await pass(0.5);
  hub.close();
  assert.equal(seen.at(-1)[1].delay, 1);

  await pass(1);
  await pass(5);
  hub.close();

  assert.equal(seen.at(-1)[1].delay, 0.5);
});

test("a hub that drains says when to come back, and that is when it comes", async () => {
  const { hub } = scene;
  const client = await connected();
  const seen = states(client);
  hub.send({ topic: "system:draining", event: "draining", data: { reconnect_in: 20 } });
  assert.deepEqual(seen, [["open", { draining: 20 }]]);
  hub.close(1012, "server_shutdown");
  assert.deepEqual([seen[1][1].delay, seen[1][1].asked], [20, true]);

  await pass(19.9);
  assert.equal(hub.sockets.length, 1);
  await pass(0.2);

  assert.equal(client.state, "open");
});

test("`connect` does not wait", async () => {
  const { hub } = scene;
  const client = await connected();
  hub.close();
  client.connect();
  await settled();
  assert.equal(client.state, "open");

  client.connect();
  await pass(60);

  assert.equal(hub.sockets.length, 2);
});

test("a hub that does not answer the handshake is given up", async () => {
  const { hub } = scene;
  hub.welcomes = false;
  const client = newClient();
  client.connect();

  await pass(9.9);
  assert.equal(client.state, "connecting");
  await pass(0.2);

  assert.equal(client.state, "waiting");
  assert.notEqual(hub.socket.closed, undefined);
});

test("a handshake that fails is over, whether or not the WebSocket closes", async () => {
  const { hub } = scene;
  hub.welcomes = false;
  const client = newClient();
  client.connect();
  await settled();
  hub.socket.close = () => hub.socket.onerror({}); // as Node's own does then
  hub.socket.onerror({});
  assert.equal(client.state, "waiting");
  hub.socket.onclose({ code: 1006, reason: "" });
  hub.welcomes = true;
  await pass(0.5);
  assert.equal(client.state, "open");

  hub.socket.onerror({}); // what it means, its close says

  assert.equal(client.state, "open");
  assert.equal(hub.sockets.length, 2);
});

test("a WebSocket that can't be made is reported, and tried again", async () => {
  const { hub } = scene;
  class Refusing {
    constructor() {
      throw new Error("insecure");
    }
  }
  const client = newClient({ WebSocket: Refusing });
  const errors = [];
  client.onError((error) => errors.push(error.message));

  client.connect();
  await settled();

  assert.deepEqual(errors, ["insecure"]);
  assert.equal(client.state, "waiting");
  assert.equal(hub.sockets.length, 0);
});

test("closing is for good, and forgets rooms and session", async () => {
  const { hub } = scene;
  const client = await connected();
  await client.join("r");
  const seen = states(client);
  client.close();
  client.close();
  assert.deepEqual(seen, [["closed", { code: 1000, reason: "normal" }]]);
  assert.equal(hub.socket.closed, 1000);
  await pass(100);

  client.connect();
  await settled();

  assert.equal(client.state, "open");
  assert.deepEqual(hub.asked("system:resume"), []);
  await cut();
  assert.deepEqual(hub.asked("system:resume")[0].data, { session: "s2", rooms: {} });
});

test("closing while it connects or waits ends that, too", async () => {
  const { hub } = scene;
  const client = newClient();
  client.connect();
  client.close();
  await pass(100);
  assert.equal(hub.sockets.length, 0);

  client.connect();
  await settled();
  hub.close();
  client.close();
  await pass(100);

  assert.equal(hub.sockets.length, 1);
  assert.equal(client.state, "closed");
});

test("`ready` waits for the connection, or the next one, and fails with the end", async () => {
  const { hub } = scene;
  const client = newClient();
  await assert.rejects(client.ready(), { code: "connection_closed" });
  client.connect();
  assert.equal(await client.ready(), client);
  hub.close();
  const ready = client.ready();
  await pass(0.5);
  await ready;

  hub.close();
  const never = client.ready();
  client.close();

  await assert.rejects(never, { code: "connection_closed" });
});

test("a silent hub is asked for a sign of life, and given up when none comes", async () => {
  const { hub } = scene;
  hub.answers["system:resume"] = null;
  const client = await connected();

  await pass(30); // something had come: the welcome
  assert.deepEqual(hub.asked("system:resume"), []);
  await pass(30);
  assert.deepEqual(hub.asked("system:resume")[0].data, { rooms: {} });
  assert.equal(client.state, "open");
  await pass(10);

  assert.equal(client.state, "waiting");
});

test("a page that stood still hears what has come before it gives the hub up", async () => {
  const { hub } = scene;
  hub.answers["system:resume"] = null;
  const client = await connected();
  await pass(60);
  assert.equal(hub.asked("system:resume").length, 1);

  standStill(120);
  await pass(1); // the timer rings, and the answer is still to be read
  hub.send({ topic: "news" });
  await pass(15);
  assert.equal(client.state, "open");
  while (hub.asked("system:resume").length < 2) await pass(1);
  const seen = states(client);
  standStill(120);
  await pass(3); // nothing is to be read

  assert.equal(seen[0][0], "waiting");
});

test("any answer is a sign of life, and one that talks is not asked", async () => {
  const { hub } = scene;
  const client = await connected();
  hub.answers["system:resume"] = { status: "nack", code: "handler_not_found", error: "no" };
  for (let n = 0; n < 10; n += 1) await pass(30);
  assert.equal(client.state, "open");
  const asked = hub.asked("system:resume").length;
  assert.ok(asked > 1);

  for (let n = 0; n < 10; n += 1) {
    hub.send({ topic: "news" });
    await pass(29);
  }

  assert.equal(hub.asked("system:resume").length, asked);
  assert.equal(hub.sockets.length, 1);
});

test("the browser's events end the wait, and have an open connection proved", async () => {
  const { hub } = scene;
  const listeners = new Map();
  globalThis.addEventListener = (name, listener) => listeners.set(name, listener);
  globalThis.removeEventListener = (name) => listeners.delete(name);
  const fire = (type) => listeners.get(type)?.({ type });
  try {
    const client = await connected();
    hub.close();
    fire("offline");
    await settled();
    assert.equal(client.state, "waiting");
    fire("online");
    await settled();
    assert.equal(client.state, "open");

    hub.requests.length = 0;
    hub.answers["system:resume"] = null;
    fire("offline");
    fire("online");
    assert.equal(hub.requests.length, 1);
    hub.answer(hub.requests[0], {});
    await pass(12);
    assert.equal(client.state, "open");
    hub.requests.length = 0;
    fire("offline");
    assert.deepEqual(hub.asked("system:resume")[0].data, { rooms: {} });
    await pass(10);
    assert.equal(client.state, "waiting");

    delete hub.answers["system:resume"];
    fire("online");
    await settled();
    hub.send({ topic: "system:draining", event: "draining", data: { reconnect_in: 20 } });
    hub.close(1012);
    fire("online");
    await settled();
    assert.equal(client.state, "waiting");
    client.close();
    assert.equal(listeners.size, 0);
  } finally {
    delete globalThis.addEventListener;
    delete globalThis.removeEventListener;
  }
});

test("a page that is looked at again does not wait, one that is hidden does", async () => {
  let look;
  const document = { addEventListener: (_, listener) => (look = listener) };
  globalThis.document = { ...document, removeEventListener() {}, hidden: true };
  try {
    const { hub } = scene;
    const client = await connected();
    hub.close();
    look({ type: "visibilitychange" });
    assert.equal(client.state, "waiting");
    globalThis.document.hidden = false;
    look({ type: "visibilitychange" });
    await settled();

    assert.equal(client.state, "open");
    client.close();
  } finally {
    delete globalThis.document;
  }
});

test("a callback that throws keeps nobody else from being told", async () => {
  const { hub } = scene;
  const said = mock.method(console, "error", () => {});
  const client = await connected();
  client.onState(() => {
    throw new Error("mine");
  });
  const seen = states(client);

  await cut();

  assert.deepEqual(seen.map(([state]) => state), ["waiting", "connecting", "open"]);
  assert.equal(said.mock.callCount(), 3);
  assert.equal(hub.sockets.length, 2);
});

// --- the token

const tokenOf = ({ url }) => url.searchParams.get("token");

test("a token goes along, in the query", async () => {
  const { hub } = scene;
  await connected({ token: "t/1&2" });

  assert.equal(tokenOf(hub.socket), "t/1&2");
});

test("a token that is only a value can't be renewed: it stays away after 4401", async () => {
  const { hub } = scene;
  const client = await connected({ token: "t" });

  hub.close(4401, "token_expired");

  assert.equal(client.state, "closed");
});

test("a callback is asked for a token again after 4401 or a failed handshake only", async () => {
  const { hub } = scene;
  let count = 0;
  const client = await connected({ token: async () => `t${(count += 1)}` });
  await cut();
  assert.deepEqual(hub.sockets.map(tokenOf), ["t1", "t1"]);
  hub.close(4401);
  await pass(1);
  assert.equal(tokenOf(hub.socket), "t2");

  hub.welcomes = false;
  hub.close();
  await pass(2);
  assert.equal(tokenOf(hub.socket), "t2");
  hub.close(); // a browser does not say that this was a 401
  hub.welcomes = true;
  await pass(4);

  assert.equal(tokenOf(hub.socket), "t3");
  assert.equal(client.state, "open");
});

test("a token that has run out is not taken along", async () => {
  const { hub } = scene;
  let count = 0;
  const token = () => ({ token: `t${(count += 1)}`, expiresIn: 60 });
  hub.answers["system:refresh"] = null;
  await connected({ token });
  hub.close();
  await pass(0.5);
  assert.equal(tokenOf(hub.socket), "t1");

  hub.welcomes = false;
  hub.close();
  mock.timers.tick(51_000);
  await pass(0);

  assert.notEqual(tokenOf(hub.socket), "t1");
});

test("a callback that fails or hangs is tried again with the next connection", async () => {
  const { hub } = scene;
  const answers = [
    () => Promise.reject(new Error("no network")),
    () => new Promise(() => {}),
    () => "t3",
  ];
  const client = newClient({ token: () => answers.shift()() });
  const errors = [];
  client.onError((error) => errors.push(error.message));
  client.connect();
  await settled();
  assert.deepEqual(errors, ["no network"]);
  await pass(0.5); // the second try hangs
  await pass(10);
  assert.equal(client.state, "waiting");

  await pass(1);

  assert.equal(tokenOf(hub.socket), "t3");
  assert.equal(client.state, "open");
});

for (const name of ["expiresIn", "expires_in"]) {
  test(`a token with ${name} is renewed in band before its end`, async () => {
    const { hub } = scene;
    let count = 0;
    const token = () => ({ token: `t${(count += 1)}`, [name]: 100 });
    await connected({ token });
    await pass(79);
    assert.deepEqual(hub.asked("system:refresh"), []);
    await pass(2);
    assert.deepEqual(hub.asked("system:refresh").map(({ data }) => data), [{ token: "t2" }]);

    await pass(80);

    assert.equal(hub.asked("system:refresh").length, 2);
    assert.equal(hub.sockets.length, 1);
  });
}

test("without an end in the callback's answer the hub's own counts", async () => {
  const { hub } = scene;
  const tokens = [{ token: "t1", expires_at: new Date(100_000).toISOString() }, "t2", "t3"];
  hub.answers["system:refresh"] = () => ({ expires_at: new Date(200_000).toISOString() });
  await connected({ token: () => tokens.shift() });

  await pass(81);
  assert.deepEqual(hub.asked("system:refresh").map(({ data }) => data.token), ["t2"]);
  await pass(96);

  assert.deepEqual(hub.asked("system:refresh").map(({ data }) => data.token), ["t2", "t3"]);
});

test("the end that the callback gives counts, for it is by this machine's clock", async () => {
  const { hub } = scene;
  let count = 0;
  const token = () => ({ token: `t${(count += 1)}`, expires_in: 100 });
  hub.answers["system:refresh"] = { expires_at: new Date(0).toISOString() };
  await connected({ token });

  await pass(81);
  await pass(60);

  assert.equal(hub.asked("system:refresh").length, 1);
});

test("a refresh that is refused is reported, and tried again", async () => {
  const { hub } = scene;
  hub.answers["system:refresh"] = { status: "nack", code: "unauthorized", error: "no" };
  const client = await connected({ token: () => ({ token: "t", expiresIn: 100 }) });
  const errors = [];
  client.onError((error) => errors.push(error.code));

  await pass(81);
  await pass(16);

  assert.deepEqual(errors, ["unauthorized", "unauthorized"]);
  assert.equal(client.state, "open");
});
