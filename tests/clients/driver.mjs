// A client in a process of its own: node --experimental-websocket driver.mjs URL OPTIONS
// Takes [number, name, arguments] as lines of JSON, and gives lines back: [number, outcome] for
// each, and [null, [kind, facts]] for what the client saw. The option `ws` names the folder where
// npm has put the package ws, whose WebSocket is taken then.

import { createRequire } from "node:module";
import { createInterface } from "node:readline";

import { Client } from "../../clients/js/eyewall.js";
import { start } from "./glue.mjs";

const [url, json] = process.argv.slice(2);
const { ws, ...options } = JSON.parse(json);
if (ws) options.WebSocket = createRequire(`${ws}/`)("ws");
const say = (...line) => process.stdout.write(`${JSON.stringify(line)}\n`);
const act = start(Client, url, (seen) => say(null, seen), options);

for await (const line of createInterface({ input: process.stdin })) {
  const [number, name, args] = JSON.parse(line);
  act(name, args).then((outcome) => say(number, outcome));
}
process.exit(0);
