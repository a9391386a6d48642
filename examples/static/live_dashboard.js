/** The page of the live dashboard: its state is one value per offset of the room. */

import { connect } from "/eyewall.js";

const ROOM = "metrics";
const KEPT = 120; // values on the chart
const ROWS = 8;
const STATES = {
  connecting: "Connecting…",
  open: "Live",
  waiting: "Offline, trying again. What is missed comes later.",
  closed: "Disconnected",
};

const $ = (id) => document.getElementById(id);
const time = (at) => new Date(at).toLocaleTimeString();
const values = new Map(); // offset -> value, the newest KEPT of them

const client = connect("/ws");
client.on("metrics:value", take);
client.onLost(begin); // the server was restarted, or the connection was lost for too long
client.onState((state) => {
  document.body.dataset.state = state;
  $("state").textContent = STATES[state];
});
// The newest value comes before the answer to the join: the page shows it at once.
await client.join(ROOM, { since: 1, timeout: Infinity });
await load();

function take({ data, stream }) {
  values.set(stream.offset, data);
  show();
}

async function load() {
  const { messages } = await client.history(ROOM, { limit: KEPT, timeout: Infinity });
  for (const { data, stream } of messages) values.set(stream.offset, data);
  show();
}

function begin() {
  values.clear();
  return load();
}

function show() {
  const known = [...values].sort(([a], [b]) => a - b);
  for (const [offset] of known.splice(0, known.length - KEPT)) values.delete(offset);
  if (!known.length) return;
  const [, last] = known.at(-1);
  $("requests").textContent = last.requests;
  $("latency").textContent = last.latency.toFixed(1);
  $("viewers").textContent = last.viewers;
  draw(known.map(([, value]) => value));
  list(known.slice(-ROWS).reverse());
}

function draw(known) {
  const numbers = known.map(({ requests }) => requests);
  const [low, high] = [Math.min(...numbers), Math.max(...numbers)];
  const y = (number) => 96 - (92 * (number - low)) / (high - low || 1);
  const step = 100 / (numbers.length - 1 || 1);
  const points = numbers.map((number, n) => `${n * step},${y(number)}`);
  const line = `M${points.join("L")}`;
  const chart = $("chart");
  chart.querySelector(".line").setAttribute("d", line);
  chart.querySelector(".area").setAttribute("d", `${line}V100H0Z`);
  const range = `between ${low} and ${high}`;
  chart.setAttribute("aria-label", `The last ${numbers.length} values are ${range}`);
  $("range").textContent = range;
  $("from").textContent = time(known[0].at);
  $("to").textContent = time(known.at(-1).at);
}

function list(newest) {
  const rows = newest.map(([offset, { at, requests, latency }]) => {
    const row = document.createElement("tr");
    row.dataset.offset = offset;
    row.append(...[time(at), requests, `${latency.toFixed(1)} ms`].map(cell));
    return row;
  });
  $("rows").replaceChildren(...rows);
}

function cell(text, column) {
  const found = document.createElement(column ? "td" : "th");
  if (!column) found.scope = "row";
  found.textContent = text;
  return found;
}
