// Node's own WebSocket against a server of ours: node --experimental-websocket FILE URL [SUBPROTOCOL]
// Prints what it found as one line of JSON.

const [url, subprotocol] = process.argv.slice(2);
const socket = subprotocol ? new WebSocket(url, subprotocol) : new WebSocket(url);
const inbox = [];
let wake = () => {};

socket.onmessage = ({ data }) => {
  inbox.push(data);
  wake();
};

async function receive(fits) {
  for (;;) {
    const at = inbox.findIndex((text) => fits(JSON.parse(text)));
    if (at >= 0) return JSON.parse(inbox.splice(at, 1)[0]);
    await new Promise((resolve) => (wake = resolve));
  }
}

function request(topic, data, id) {
  socket.send(JSON.stringify({ topic, data, id, ack: true }));
  return receive((message) => message.ref === id);
}

await new Promise((resolve, reject) => {
  socket.onopen = resolve;
  socket.onerror = () => reject(new Error("could not connect"));
});
const closed = new Promise((resolve) => (socket.onclose = resolve));

const welcome = subprotocol ? await receive((m) => m.event === "welcome") : null;
const echo = await request("echo", { text: "høi ☕" }, "r1");
const join = await request("system:join", { room: "r" }, "r2");
const big = "b".repeat(100_000);
await request("system:publish", { room: "r", data: big }, "r3");
const published = await receive((m) => m.topic === "room:r");
const refused = await request("nowhere", null, "r4");
socket.close(1000, "done");
const { code, reason, wasClean } = await closed;

console.log(
  JSON.stringify({
    protocol: socket.protocol,
    first: welcome && welcome.topic,
    echo: echo.data.echo,
    join: join.data,
    big: published.data === big,
    refused: refused.data.code,
    code,
    reason,
    wasClean,
  }),
);
