/** The parts that need neither a socket nor a clock. */

import assert from "node:assert/strict";
import { test } from "node:test";

import {
  Client,
  EyewallError,
  Outbox,
  Positions,
  Recent,
  backoff,
  comesBack,
  matches,
  newId,
} from "../eyewall.js";

test("it comes back after the codes that protocol.md names, and after no other", () => {
  const back = [1001, 1006, 1011, 1012, 1013, 4000, 4401, 4408, 4413, 4499];
  const away = [1000, 1002, 1005, 1007, 1008, 1009, 1010, 1014, 3999, 4500, 4501, 4503, 4999];

  assert.deepEqual([...away, ...back].filter(comesBack), back);
});

test("the waits double up to half a minute, with full jitter", () => {
  const attempts = [0, 1, 2, 5, 6, 7, 50, 5000];

  assert.deepEqual(attempts.map((n) => backoff(n, () => 0)), Array(8).fill(0));
  assert.deepEqual(attempts.map((n) => backoff(n, () => 1)), [0.5, 1, 2, 16, 30, 30, 30, 30]);
});

test("by itself it waits at random", () => {
  const waits = Array.from({ length: 20 }, () => backoff(50));

  assert.ok(new Set(waits).size > 1);
  assert.ok(waits.every((wait) => wait >= 0 && wait < 30));
});

test("a pattern is a topic, a prefix, or all but what is the hub's own", () => {
  const cases = [
    ["chat:said", "chat:said", true],
    ["chat:said", "chat:said:more", false],
    ["chat:*", "chat:said", true],
    ["chat:*", "chat:a:b", true],
    ["chat:*", "chat", false],
    ["chat:*", "chatter:said", false],
    ["*", "chat:said", true],
    ["*", "system:kicked", false],
    ["system:*", "system:kicked", true],
  ];
  for (const [pattern, topic, fits] of cases) {
    assert.equal(matches(pattern, topic), fits, `${pattern} ${topic}`);
  }
});

test("ids do not repeat and can't be guessed", () => {
  const ids = new Set(Array.from({ length: 100 }, newId));

  assert.equal(ids.size, 100);
  for (const id of ids) assert.match(id, /^[0-9a-f]{32}$/);
});

test("the oldest is forgotten first", () => {
  const recent = new Recent(2);
  for (const id of ["a", "b", "c"]) recent.add(id, id.toUpperCase());

  assert.deepEqual(["a", "b", "c"].map((id) => recent.get(id)), [undefined, "B", "C"]);
  assert.deepEqual(["b", "b", "c"].map((id) => recent.take(id)), ["B", undefined, "C"]);
});

test("the outbox keeps the order, gives back what is taken back, and has a bound", () => {
  const outbox = new Outbox(3);
  const key = {};
  outbox.add("one");
  outbox.add("two", key);
  outbox.add("three");

  assert.throws(() => outbox.add("four"), { name: "EyewallError", code: "overloaded" });
  outbox.remove(key);
  outbox.add("five");

  assert.deepEqual(outbox.take().map(({ text }) => text), ["one", "three", "five"]);
  assert.equal(outbox.size, 0);
});

const at = (offset, epoch = "e1", room = "r") => ({ room, epoch, offset });

test("a stream is taken in its order, once", () => {
  const positions = new Positions();
  positions.join("r", at(2));

  const fates = [3, 4, 4, 3, 6, 5, 6].map((offset) => positions.take(at(offset)));

  assert.deepEqual(fates, ["next", "next", "repeat", "repeat", "gap", "next", "next"]);
  assert.deepEqual(positions.get("r"), { epoch: "e1", offset: 6 });
});

test("a gap moves nothing", () => {
  const positions = new Positions();
  positions.join("r", at(2));

  assert.equal(positions.take(at(9)), "gap");
  assert.deepEqual(positions.get("r"), { epoch: "e1", offset: 2 });
});

test("the first message of an unknown room tells where it stands", () => {
  const positions = new Positions();

  assert.equal(positions.take(at(7)), "first");
  assert.equal(positions.take(at(8)), "next");
  assert.deepEqual(positions.rooms, ["r"]);
});

test("another epoch is another stream", () => {
  const positions = new Positions();
  positions.join("r", at(7));

  assert.equal(positions.take(at(1, "e2")), "changed");
  assert.deepEqual(positions.get("r"), { epoch: "e2", offset: 1 });
});

test("joining tells what is missing", () => {
  const positions = new Positions();

  assert.equal(positions.join("r", at(2)), "here");
  assert.equal(positions.join("r", at(2)), "here");
  assert.equal(positions.join("r", at(4)), "gap");
  assert.deepEqual(positions.get("r"), { epoch: "e1", offset: 2 });
  assert.equal(positions.join("r", at(1, "e2")), "changed");
  assert.deepEqual(positions.get("r"), { epoch: "e2", offset: 1 });
});

test("a room that keeps no history is resumed without a place", () => {
  const positions = new Positions();
  positions.join("plain", {});
  positions.join("r", at(2));
  positions.join("left", {});
  positions.forget("left");

  assert.deepEqual(positions.ask(), { plain: {}, r: { epoch: "e1", offset: 2 } });
  assert.deepEqual(positions.ask(["r"]), { r: { epoch: "e1", offset: 2 } });
  assert.equal(positions.join("plain", {}), "here");
});

test("a room of any name is a room", () => {
  const positions = new Positions();
  positions.join("__proto__", at(2));

  assert.deepEqual(Object.keys(positions.ask()), ["__proto__"]);
});

test("an error has what the refusal said", () => {
  const error = new EyewallError("rate_limited", "slow", { retry_after: 3, fields: { a: [] } });

  assert.ok(error instanceof Error);
  assert.deepEqual([error.code, error.message, error.retryAfter], ["rate_limited", "slow", 3]);
  assert.deepEqual(error.fields, { a: [] });
});

test("an error without a text names its fields", () => {
  const fields = Object.fromEntries(Array.from({ length: 99 }, (_, n) => [`f${n}`, ["no"]]));

  assert.equal(new EyewallError("validation", "", { fields: { a: [] } }).message, "validation: a");
  assert.match(new EyewallError("validation", "", { fields }).message, /: f0, f1, .*f7$/);
  assert.equal(new EyewallError("validation", "", { fields: null }).message, "validation");
  assert.equal(new EyewallError("validation", "no", { fields }).message, "no");
});

test("a time that is longer than any timer does not end at once", async () => {
  class Silent {
    close() {}
  }
  const client = new Client("ws://hub/ws", { WebSocket: Silent });
  client.connect();
  let error = null;
  const asked = client.request("echo", null, { timeout: 1e9 }).catch((reason) => (error = reason));

  await new Promise((resolve) => setTimeout(resolve, 10)); // a timer that overflows rings at 1 ms
  assert.equal(error, null);
  client.close();
  await asked;

  assert.equal(error.code, "connection_closed");
});
