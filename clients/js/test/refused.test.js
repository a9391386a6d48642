/** Not let in, as opposed to: no network. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { EyewallError } from "../eyewall.js";
import { pass, settled } from "./scripted.js";
import { connected, cut, newClient, scene } from "./support.js";

/** Turn the next clients away, in one of the ways that can be seen. */
function refuse(how = 4504) {
  const { hub } = scene;
  hub.welcomes = false;
  hub.refused = [];
  hub.accept = (socket) => {
    hub.sockets.push(socket);
    if (hub.welcomes) {
      delete hub.accept;
      hub.sockets.pop();
      hub.accept(socket);
    } else {
      hub.refused.push(socket.url.searchParams.get("token"));
      if (how >= 1000) hub.close(how, how === 4504 ? "auth_failed" : "");
      else socket.answered(null, { statusCode: how, headers: { "retry-after": "7" } });
    }
  };
}

/** A WebSocket like that of `ws`, which tells what was answered instead. */
function telling(WebSocket) {
  return class extends WebSocket {
    on(event, listener) {
      assert.equal(event, "unexpected-response");
      this.answered = listener;
    }
  };
}

const secret = (token) => () => token;

test("after 4504 it is not let in: `ready` rejects, and it stays away", async () => {
  const { hub } = scene;
  refuse();
  const client = newClient({ token: "bad" });
  client.connect();
  const { message, code } = await client.ready().catch((error) => error);
  assert.equal(code, "unauthorized");
  assert.match(message, /not let in: closed with 4504 auth_failed/);
  assert.equal(client.lastError.code, "unauthorized");
  await pass(120);

  assert.deepEqual([client.state, hub.sockets.length], ["closed", 1]);
});

test("a hub that is not there is another thing: `ready` waits", async () => {
  const { hub } = scene;
  refuse(1006);
  const client = newClient();
  assert.equal(client.lastError, null);
  client.connect();
  await settled();
  assert.deepEqual([client.state, client.lastError.code], ["waiting", "unavailable"]);
  const ready = client.ready();
  hub.welcomes = true;
  await pass(1);

  assert.equal(await ready, client);
  assert.equal(client.lastError, null);
});

test("`setToken` brings it back, with its rooms", async () => {
  const { hub } = scene;
  const client = await connected({ token: "t1" });
  await client.join("r");
  refuse();
  hub.close();
  await pass(0.5);
  assert.equal(client.state, "closed");
  hub.welcomes = true;
  client.setToken(" t2\n");
  assert.equal(client.state, "connecting");
  await client.ready();

  assert.deepEqual(hub.refused, ["t1"]);
  assert.equal(hub.socket.url.searchParams.get("token"), "t2");
  assert.deepEqual(hub.asked("system:resume").map(({ data }) => data.rooms), [{ r: {} }]);
});

test("what waited fails, and does not go out under another's name", async () => {
  const { hub } = scene;
  const client = await connected({ token: "ada" });
  const errors = [];
  client.onError((error) => errors.push(error.message));
  refuse();
  hub.close();
  client.send("say", "ada's");
  const asked = client.request("ask", "ada's", { timeout: Infinity }).catch((error) => error);
  await pass(0.5);
  const { code, message, cause } = await asked;
  assert.equal(code, "connection_closed");
  assert.match(message, /not let in/);
  assert.equal(cause, client.lastError);
  assert.deepEqual(errors, ["1 not sent"]);
  assert.throws(() => client.send("say", 1), { code: "connection_closed", cause });
  hub.welcomes = true;
  client.setToken("ben");
  await client.ready();

  assert.deepEqual([hub.asked("say"), hub.asked("ask")], [[], []]);
});

for (const [how, tokens, shown, state] of [
  ["another one is let in", ["old", "new"], ["old"], "open"],
  ["the same again is not shown", ["old", "old"], ["old"], "closed"],
  ["none after none is not tried again", [null, null], [null], "closed"],
  ["only once", ["one", "two", "three"], ["one", "two"], "closed"],
]) {
  test(`a callback is asked once more: ${how}`, async () => {
    const { hub } = scene;
    refuse();
    const given = [...tokens];
    const client = newClient({ token: async () => given.shift() });
    let last;
    client.onState((_, info) => (last = info));
    client.connect();
    await settled();
    hub.welcomes = state === "open";
    const { code } = (await Promise.all([client.ready().catch((e) => e), pass(60)]))[0];

    assert.deepEqual([client.state, hub.refused], [state, shown]);
    assert.equal(code, state === "open" ? undefined : "unauthorized");
    if (state === "closed") assert.deepEqual(last, { code: 4504, reason: "auth_failed" });
    assert.equal(given.length, tokens.length - 2, "nor is it asked for more");
  });
}

test("once more is once for each time that it was let in", async () => {
  const { hub } = scene;
  let number = 0;
  const client = await connected({ token: () => `t${(number += 1)}` });
  for (const shown of [["t1"], ["t2"]]) {
    refuse();
    hub.close();
    await pass(0.6);
    hub.welcomes = true;
    await pass(6);
    assert.equal(client.state, "open");
    assert.deepEqual(hub.refused, shown);
  }
});

test("a token that is known to last is not kept when it was refused", async () => {
  const { hub } = scene;
  const given = ["t1", "t2"];
  const client = await connected({ token: () => ({ token: given.shift(), expires_in: 1000 }) });
  refuse();
  hub.close();
  await pass(0.5);
  hub.welcomes = true;
  await pass(1);

  assert.deepEqual([client.state, hub.refused], ["open", ["t1"]]);
  assert.equal(hub.socket.url.searchParams.get("token"), "t2");
});

test("a callback that gives up is believed", async () => {
  const { hub } = scene;
  const errors = [];
  const wrong = new EyewallError("unauthorized", "log in again");
  const client = newClient({ token: () => Promise.reject(wrong) });
  client.onError((error) => errors.push(error));
  client.connect();
  assert.equal(await client.ready().catch((error) => error), wrong);
  await pass(60);
  assert.deepEqual([client.state, hub.sockets.length, errors], ["closed", 0, []]);

  client.setToken(secret("t"));
  await client.ready();

  assert.equal(client.lastError, null);
});

test("a callback that gives up shows no secret", async () => {
  const wrong = new EyewallError("forbidden", "not at /login?key=s3cret");
  const client = newClient({ token: () => Promise.reject(wrong) });
  client.connect();
  const { code, message } = await client.ready().catch((error) => error);

  assert.deepEqual([code, message], ["forbidden", "not at /login?key=***"]);
});

test("a token that comes while an older one is refused is not too late", async () => {
  const { hub } = scene;
  refuse();
  const client = newClient({ token: "old" });
  client.connect();
  await pass(0.5);
  client.setToken("passed over");
  client.setToken("new");
  await pass(0.5);
  assert.equal(client.state, "closed");
  assert.deepEqual(hub.refused, ["old", "new"]);

  let slow;
  client.setToken(() => new Promise((resolve) => (slow = resolve)));
  await settled();
  client.setToken("newer");
  slow("slow");
  await settled();
  assert.deepEqual(hub.refused, ["old", "new", "newer"]);

  const { accept } = hub;
  hub.accept = (socket) => {
    client.setToken("newest"); // on the very way
    hub.accept = accept;
    accept(socket);
  };
  client.setToken("last");
  await settled();
  assert.equal(client.state, "waiting");
  await pass(3);
  assert.deepEqual(hub.refused, ["old", "new", "newer", "last", "newest"]);
  assert.equal(client.state, "closed");
});

test("one that the application has closed is brought back by no token", async () => {
  const { hub } = scene;
  const client = await connected({ token: "old" });
  await client.join("r");
  refuse();
  hub.close();
  await pass(0.5);
  assert.equal(client.lastError.code, "unauthorized");
  client.close();
  assert.equal(client.lastError.code, "connection_closed");
  assert.equal(client.lastError.cause.code, "unauthorized");
  hub.welcomes = true;
  client.setToken("new");
  await pass(60);
  assert.deepEqual([client.state, hub.sockets.length], ["closed", 2]);

  client.connect();
  await client.ready();
  assert.equal(hub.socket.url.searchParams.get("token"), "new");
  assert.equal(hub.asked("system:resume").length, 0);
});

test("where the connection is open a new token is shown there", async () => {
  const { hub } = scene;
  const client = await connected({ token: () => ({ token: "t1", expires_in: 1000 }) });
  client.setToken("t2");
  await settled();
  assert.deepEqual(hub.asked("system:refresh").map(({ data }) => data.token), ["t2"]);
  await pass(900);
  assert.equal(hub.asked("system:refresh").length, 1, "the old one is not renewed any more");
  client.setToken(null);
  client.setToken(async () => ({ token: "t3", expires_in: 100 }));
  await pass(90);

  const shown = hub.asked("system:refresh").map(({ data }) => data.token);
  assert.deepEqual(shown, ["t2", "t3", "t3"]);
  assert.deepEqual([client.state, hub.sockets.length], ["open", 1]);
});

test("of two that are given one after the other, the last one counts", async () => {
  const { hub } = scene;
  const answers = [];
  hub.answers["system:refresh"] = (_, message) => (answers.push(message), null);
  const client = await connected({ token: "t1" });
  client.setToken(async () => ({ token: "t2", expires_in: 1000 }));
  await settled();
  client.setToken(async () => ({ token: "t3", expires_in: 1000 }));
  await settled();
  for (const message of answers.reverse()) hub.answer(message, {});
  await settled();
  await cut();
  assert.equal(hub.socket.url.searchParams.get("token"), "t3");

  let slow;
  client.setToken(() => new Promise((resolve) => (slow = resolve)));
  hub.close();
  await pass(2);
  client.setToken(() => "t5");
  slow("t4");
  await settled();

  assert.equal(hub.socket.url.searchParams.get("token"), "t5");
});

test("one that is given while the rooms are resumed is shown when that is done", async () => {
  const { hub } = scene;
  const client = await connected({ token: "t1" });
  await client.join("r");
  let resume;
  hub.answers["system:resume"] = (_, message) => ((resume = message), null);
  await cut();
  client.setToken("t2");
  await settled();
  assert.equal(hub.asked("system:refresh").length, 0);
  hub.answer(resume, { rooms: {} });
  await settled();

  assert.deepEqual(hub.asked("system:refresh").map(({ data }) => data.token), ["t2"]);
});

test("a text whose end the hub tells is not shown again", async () => {
  const { hub } = scene;
  hub.answers["system:refresh"] = () => ({ expires_at: new Date(Date.now() + 100_000) });
  const client = await connected({ token: "t1" });
  client.setToken("t2");
  await pass(99);

  assert.equal(hub.asked("system:refresh").length, 1);
  assert.equal(client.state, "open");
});

test("a token that is refused there is reported, and the connection stays", async () => {
  const { hub } = scene;
  hub.answers["system:refresh"] = { status: "nack", code: "forbidden", error: "another user's" };
  const client = await connected({ token: "t1" });
  const errors = [];
  client.onError(({ code }) => errors.push(code));
  client.setToken("t2");
  await pass(100);

  assert.deepEqual([client.state, errors], ["open", ["forbidden"]]);
  assert.equal(hub.asked("system:refresh").length, 1);
});

test("an expired token is waited out by none but a new one", async () => {
  const { hub } = scene;
  const client = await connected({ token: "t1" });
  hub.close(4401, "token_expired");
  assert.deepEqual([client.state, client.lastError.code], ["closed", "unauthorized"]);

  client.setToken("t2");
  await client.ready();

  assert.equal(hub.socket.url.searchParams.get("token"), "t2");
});

for (const code of [1008, 4501, 4503]) {
  test(`after ${code} \`ready\` rejects, and a token brings nothing back`, async () => {
    const { hub } = scene;
    const client = await connected({ token: "t1" });
    hub.close(code, "because");
    const error = await client.ready().catch((e) => e);
    assert.equal(error.code, "connection_closed");
    assert.equal(error.message, `closed with ${code} because`);
    await assert.rejects(client.request("ask"), error);
    client.setToken("t2");
    await pass(60);
    assert.deepEqual([client.state, hub.sockets.length], ["closed", 1]);

    client.connect();
    await client.ready();
  });
}

test("a token waits for the client to be connected", async () => {
  const client = newClient();
  client.setToken("t1");
  await settled();
  assert.equal(client.state, "closed");
  client.connect();
  await client.ready();
  assert.equal(scene.hub.socket.url.searchParams.get("token"), "t1");
  client.close();
  assert.equal(client.lastError.code, "connection_closed");
  client.setToken("t2");
  await settled();

  assert.equal(client.state, "closed", "closing it is the application's own wish");
});

for (const [status, code] of [[401, "unauthorized"], [403, "forbidden"]]) {
  test(`where the WebSocket tells of HTTP ${status}, that is a refusal, too`, async () => {
    const { hub } = scene;
    refuse(status);
    const client = newClient({ WebSocket: telling(hub.WebSocket), token: "t" });
    client.connect();
    const error = await client.ready().catch((e) => e);
    assert.deepEqual([error.code, error.message], [code, `not let in: HTTP ${status}`]);
    await pass(60);

    assert.deepEqual([client.state, hub.sockets.length], ["closed", 1]);
    assert.equal(hub.socket.closed, 1005);
  });
}

test("where the WebSocket tells of HTTP 503, it comes back when the hub has time", async () => {
  const { hub } = scene;
  refuse(503);
  const client = newClient({ WebSocket: telling(hub.WebSocket) });
  client.connect();
  await settled();
  assert.equal(client.lastError.message, "no connection to the hub: HTTP 503");
  hub.welcomes = true;
  await pass(7);
  assert.equal(client.state, "waiting");
  await pass(0.5);

  assert.equal(client.state, "open");
});

test("a callback that fails is no refusal, and its error is to be found", async () => {
  const failed = new Error("mine, see /login?key=s3cret");
  const client = newClient({ token: () => Promise.reject(failed) });
  client.onError(() => {});
  client.connect();
  await settled();

  assert.equal(client.state, "waiting");
  assert.equal(client.lastError.code, "unavailable");
  assert.equal(client.lastError.cause.message, "mine, see /login?key=***");
});

test("a wrong token is told at once, and changes nothing", async () => {
  const client = await connected({ token: "t1" });

  assert.throws(() => client.setToken(5), TypeError);
  assert.throws(() => client.setToken("s3\ncret"), (error) => !/s3|cret/.test(error.message));
  assert.equal(client.state, "open");
});
