/** Tokens: clocks that go wrong, callbacks that do, and texts that must not show them. */

import assert from "node:assert/strict";
import { mock, test } from "node:test";
import { inspect } from "node:util";

import { Client, connect } from "../eyewall.js";
import { pass, settled } from "./scripted.js";
import { connected, newClient, scene } from "./support.js";

const HOUR = 3_600_000;
const refreshes = () => scene.hub.asked("system:refresh").length;

for (const [how, name, end, most] of [
  ["an hour ahead", "expires_at", -HOUR, 0],
  ["just so much ahead that 4 s seem left", "expiresAt", 4000, 5],
  ["an hour behind", "expires_at", 2 * HOUR, 0],
]) {
  test(`a clock that is ${how} asks for a token now and then`, async () => {
    let asked = 0;
    const token = () => {
      asked += 1;
      return { token: "t", [name]: new Date(Date.now() + end).toISOString() };
    };
    const client = await connected({ token });

    for (let n = 0; n < 20; n += 1) {
      await pass(10);
      scene.hub.send({ topic: "news" });
    }

    assert.ok(asked - 1 <= most, `${asked} times in 200 s`);
    assert.equal(client.state, "open");
  });
}

test("a hub whose clock differs is not asked each second, either", async () => {
  const tokens = [{ token: "t1", expires_in: 100 }];
  scene.hub.answers["system:refresh"] = { expires_at: new Date(-HOUR).toISOString() };
  await connected({ token: () => tokens.shift() ?? "t2" });

  await pass(200);

  assert.equal(refreshes(), 1);
});

test("a short life is enough for the first renewal; then there are pauses", async () => {
  await connected({ token: () => ({ token: "t", expires_in: 2 }) });
  await pass(1.7);
  assert.equal(refreshes(), 1);

  await pass(14);
  assert.equal(refreshes(), 1);
  await pass(1.5);
  assert.equal(refreshes(), 2);
  await pass(29);
  assert.equal(refreshes(), 2);
});

test("a clock that is set while the client runs changes nothing but one question", async (t) => {
  let skew = 0;
  const { now } = Date;
  t.mock.method(Date, "now", () => now() + skew);
  let asked = 0;
  const token = () => ({ token: `t${(asked += 1)}`, expires_in: 1000 });
  await connected({ token });
  skew = HOUR;

  await pass(900);

  assert.equal(refreshes(), 1);
  assert.equal(asked, 2);
});

test("a renewal whose callback hangs or throws is tried again, ever less often", async () => {
  const { hub } = scene;
  const answers = [
    () => ({ token: "t1", expires_in: 100 }),
    () => new Promise(() => {}),
    () => {
      throw new Error("mine");
    },
    () => ({ token: "t4", expires_in: 1000 }),
  ];
  const client = await connected({ token: () => answers.shift()() });
  const errors = [];
  client.onError((error) => errors.push(error.message));
  await pass(80);
  assert.deepEqual(errors, []);
  await pass(11);
  assert.deepEqual(errors, ["no token came in time"]);
  await pass(16);
  assert.deepEqual(errors, ["no token came in time", "mine"]);

  await pass(31);

  assert.deepEqual(hub.asked("system:refresh").map(({ data }) => data.token), ["t4"]);
  assert.equal(client.state, "open");
});

test("a token that comes too late takes the place of none", async () => {
  const { hub } = scene;
  let slow;
  const answers = [new Promise((resolve) => (slow = resolve)), { token: "new", expires_in: 900 }];
  const client = newClient({ token: () => answers.shift() });
  client.connect();
  await pass(11);
  assert.equal(client.state, "open");
  slow({ token: "old", expires_in: 900 });
  await settled();
  hub.close();
  await pass(1);

  assert.deepEqual(hub.sockets.map(({ url }) => url.searchParams.get("token")), ["new", "new"]);
});

// --- what is shown

test("a line's end around a token is none of it", async () => {
  await connected({ token: " s3cret\r\n" });
  await connected({ token: async () => "s3cret\n" });
  await connected({ token: async () => ({ token: "\ts3cret" }) });

  const shown = scene.hub.sockets.map(({ url }) => url.searchParams.get("token"));
  assert.deepEqual(shown, ["s3cret", "s3cret", "s3cret"]);
});

/** Whether it is a mistake of the caller's, and shows nothing that is secret. */
function isDiscreet(error) {
  const [text] = inspect(error, { depth: 9 }).split("\n    at");
  return error instanceof TypeError && !/s3|cret|53/.test(text);
}

const NONE = ["s3\ncret", "s3\u0000cret", "s3\u007fcret", 53, ["s3cret"], { access_token: "s3cret" }];
for (const token of NONE) {
  test(`a token that is none (${JSON.stringify(token)}) is told without it`, async () => {
    assert.throws(() => newClient({ token }), isDiscreet);
    const client = newClient({ token: async () => token });
    const errors = [];
    client.onError((error) => errors.push(error));
    client.connect();
    await settled();

    assert.ok(isDiscreet(errors[0]));
    assert.equal(client.state, "waiting");
    assert.equal(scene.hub.sockets.length, 0);
  });
}

for (const url of [
  "wss//ada:s3cret@hub/ws",
  "http://[s3cret/ws",
  "ftp://hub/ws?token=s3cret",
  "ws://hub:s3cret/ws",
  "ws://hub/ws?token=s3cret#part",
  "/ws?token=s3cret",
]) {
  test(`an address that is none (${url}) is told at once, without what is secret in it`, () => {
    const { WebSocket } = scene.hub;
    assert.throws(() => new Client(url, { WebSocket }), isDiscreet);
  });
}

test("an error that names the address shows no secret of it", async () => {
  class Refusing {
    constructor(url) {
      const error = new SyntaxError(`The URL '${url}' is invalid`);
      error.input = url;
      throw error;
    }
  }
  const said = mock.method(console, "error", () => {});
  const url = "wss://ada:pa55@hub/ws?key=k3y";
  const client = connect(url, { WebSocket: Refusing, token: () => "s3cret" });
  await settled();
  client.close();

  const [error] = said.mock.calls[0].arguments;
  assert.doesNotMatch(inspect(error), /s3cret|pa55|k3y/);
  assert.equal(error.message, "The URL 'wss://***@hub/ws?key=***&token=***' is invalid");
  assert.equal(error.name, "SyntaxError");
  assert.doesNotMatch(inspect(client, { depth: 9, showHidden: true }), /s3cret|pa55|k3y/);
});
