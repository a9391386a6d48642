/** A message of one user is never sent as another user. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { pass, settled } from "./scripted.js";
import { connected, scene } from "./support.js";

const OPTIONS = { timeout: Infinity };

/** A client of ada's that was cut off: one request is without an answer, two messages wait. */
async function away(options) {
  const { hub } = scene;
  const client = await connected(options);
  const errors = [];
  client.onError(({ code, message }) => errors.push([code, message]));
  hub.answers.asked = null;
  const asked = client.request("asked", 1, OPTIONS).catch((error) => error);
  hub.close();
  client.send("said", 2);
  const waiting = client.request("waiting", 3, OPTIONS).catch((error) => error);
  await settled();
  hub.requests = [];
  return { hub, client, errors, asked, waiting };
}

const topics = ({ requests }) => requests.map(({ topic }) => topic);

test("what was said before the token of another user was given fails", async () => {
  const { hub, client, errors, asked, waiting } = await away({ token: "adas" });
  hub.user = "bob";
  client.setToken("bobs");
  client.send("bob said", 4);
  const answer = client.request("bob asks", 5, OPTIONS);
  await pass(2);

  for (const failed of [await asked, await waiting]) {
    assert.equal(failed.code, "connection_closed");
    assert.match(failed.message, /another user/);
  }
  assert.match(errors[0].join(" "), /^connection_closed 1 not sent: .* another user now$/);
  assert.equal(errors.length, 1);
  assert.equal((await answer).status, "ok");
  assert.deepEqual(topics(hub), ["system:resume", "bob said", "bob asks"]);
});

test("a new token of the same user lets it go out", async () => {
  const { hub, client, errors, waiting } = await away({ token: "t1" });
  client.setToken("t2");
  await pass(2);

  assert.equal((await waiting).status, "ok");
  assert.deepEqual(topics(hub), ["system:resume", "asked", "said", "waiting"]);
  assert.deepEqual(errors, []);
});

test("where a callback changes the user, all that waits fails, each time", async () => {
  const { hub, client, waiting } = await away({ token: () => scene.hub.user });
  for (const user of ["bob", "cleo"]) {
    hub.user = user;
    await pass(2);
    assert.equal(client.userId, user);
    assert.equal((await client.request("now", user)).status, "ok");
    hub.close();
    client.send("said", user);
  }
  hub.user = "ada";
  await pass(4);

  assert.equal((await waiting).code, "connection_closed");
  const resume = "system:resume";
  assert.deepEqual(topics(hub), [resume, "now", resume, "now", resume]);
});

test("a token of another user that the open connection was shown counts from the next on", async () => {
  const { hub } = scene;
  hub.answers["system:refresh"] = { status: "nack", code: "forbidden", error: "another user" };
  hub.answers.asked = null;
  const client = await connected({ token: "adas" });
  client.onError(() => {});
  const before = client.request("asked", 1, OPTIONS).catch((error) => error);
  hub.user = "bob";
  client.setToken("bobs");
  await settled();
  hub.close();
  client.send("bob said");
  await pass(2);

  assert.equal((await before).code, "connection_closed");
  assert.deepEqual(topics(hub), ["asked", "system:refresh", "system:resume", "bob said"]);
});

test("a client that is closed when it hears of it sends nothing", async () => {
  const { hub, client } = await away({ token: "adas" });
  client.onError(() => client.close());
  hub.user = "bob";
  client.setToken("bobs");
  await pass(2);

  assert.deepEqual([client.state, topics(hub)], ["closed", []]);
});

test("after the end everything begins anew", async () => {
  const { hub, client } = await away({ token: () => scene.hub.user });
  client.close();
  hub.user = "bob";
  client.connect();
  client.send("bob said");
  await pass(2);

  assert.deepEqual(topics(hub), ["bob said"]);
});
