/** Typing: what was said a moment ago is not said again. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { pass } from "./scripted.js";
import { connected, cut, newClient, scene, standStill } from "./support.js";

/** What the hub was told, in short. */
const told = () => scene.hub.asked("system:typing").map(({ data }) => [data.room, data.typing]);

async function typist() {
  scene.hub.answers["system:typing"] = {};
  return connected();
}

test("a key stroke is not sent while the one before it holds", async () => {
  const client = await typist();

  const [first, second] = await Promise.all([client.typing("r"), client.typing("r")]);
  await pass(2.4);
  const third = await client.typing("r");
  assert.deepEqual(told(), [["r", true]]);
  assert.deepEqual([second, third], [first, first]);
  await pass(0.2);
  await client.typing("r");

  assert.equal(told().length, 2);
});

test("half of the ttl that is given counts, and another ttl is another word", async () => {
  const client = await typist();

  await client.typing("r", true, { ttl: 20 });
  await pass(9.9);
  await client.typing("r", true, { ttl: 20 });
  assert.equal(told().length, 1);
  await client.typing("r");

  assert.equal(told().length, 2);
});

test("the end is always said, and what follows it", async () => {
  const client = await typist();

  for (const typing of [true, false, false, true]) await client.typing("r", typing);

  assert.deepEqual(told(), [["r", true], ["r", false], ["r", false], ["r", true]]);
});

test("another room, leaving, and a new connection begin anew", async () => {
  const { hub } = scene;
  hub.answers["system:leave"] = {};
  const client = await typist();

  for (const room of ["r", "s", "r"]) await client.typing(room);
  assert.equal(told().length, 3);
  await client.leave("r");
  await client.typing("r");
  assert.equal(told().length, 4);
  await cut();
  await client.typing("r");

  assert.equal(told().length, 5);
});

test("what was refused was not said", async () => {
  const client = await typist();
  scene.hub.answers["system:typing"] = { status: "nack", code: "not_a_member", error: "no" };

  for (let n = 0; n < 2; n++) {
    await assert.rejects(client.typing("r"), { code: "not_a_member" });
  }

  assert.equal(told().length, 2);
});

test("a clock that is set back silences nobody", async () => {
  const client = await typist();
  standStill(7200);

  await client.typing("r");
  standStill(-3600);
  await client.typing("r");

  assert.equal(told().length, 2);
});

test("without a connection it waits once, and a client that is closed refuses", async () => {
  const client = newClient();
  scene.hub.answers["system:typing"] = {};
  const waiting = [client.typing("r").catch((error) => error)];
  assert.equal((await waiting[0]).code, "connection_closed");

  client.connect();
  await Promise.all([client.typing("r"), client.typing("r"), pass(0)]);

  assert.deepEqual(told(), [["r", true]]);
});
