/** A hub, a clock that stands still, and clients that are closed at the end. */

import { afterEach, beforeEach, mock } from "node:test";

import { Hub, pass } from "./scripted.js";

export const scene = { hub: null };
let clients = [];

beforeEach(() => {
  mock.timers.enable({ apis: ["setTimeout", "setInterval", "Date"] });
  mock.method(Math, "random", () => 1); // every wait takes its longest
  scene.hub = new Hub();
});

afterEach(() => {
  for (const client of clients) client.close();
  clients = [];
  mock.timers.reset();
  mock.restoreAll();
});

/** A client that is not connected yet. */
export function newClient(options) {
  const client = scene.hub.client(options);
  clients.push(client);
  return client;
}

/** A client that is connected. */
export async function connected(options) {
  const client = newClient(options);
  client.connect();
  await pass(0);
  return client;
}

/** Cut the connection, and come back after the wait: of the third cut in a row it is 2 s. */
export async function cut() {
  scene.hub.close();
  await pass(2);
}

/** Let time go by, in seconds, in which nothing runs: the timers ring late, afterwards. */
export function standStill(seconds) {
  mock.timers.setTime(Date.now() + seconds * 1000);
}
