// Clients of Node: node --experimental-websocket node.cjs LIBRARY MODULES WAYS
//
// For each of the WAYS (JSON: a list of {url, deflate, slow}) one connection asks for its
// messages and a close. Prints a line of JSON: what each got. MODULES is where npm has put
// the libraries.

const { createRequire } = require("node:module");

const [library, modules, ways] = process.argv.slice(2);
const load = createRequire(`${modules}/`);
const GO = '{"topic": "go"}';

/** Calls back with each text, and with the code and whether it was compressed. */
const libraries = {
  builtin({ url }, onText, onEnd) {
    const socket = new WebSocket(url);
    socket.onopen = () => socket.send(GO);
    socket.onmessage = ({ data }) => onText(data);
    socket.onclose = ({ code }) => onEnd(code, socket.extensions !== "");
  },

  ws({ url, deflate }, onText, onEnd) {
    const socket = new (load("ws"))(url, { perMessageDeflate: deflate });
    socket.on("error", () => {});
    socket.on("open", () => socket.send(GO));
    socket.on("message", (data) => onText(data.toString()));
    socket.on("close", (code) => onEnd(code, socket.extensions !== ""));
  },

  "faye-websocket"({ url, deflate }, onText, onEnd) {
    const extensions = deflate ? [load("permessage-deflate")] : [];
    const socket = new (load("faye-websocket").Client)(url, [], { extensions });
    socket.on("open", () => socket.send(GO));
    socket.on("message", ({ data }) => onText(data));
    socket.on("close", ({ code }) => onEnd(code, deflate));
  },

  websocket({ url }, onText, onEnd) {
    const client = new (load("websocket").client)();
    client.on("connectFailed", () => onEnd(1006, false));
    client.on("connect", (connection) => {
      connection.on("error", () => {});
      connection.on("message", ({ utf8Data }) => onText(utf8Data));
      connection.on("close", (code) => onEnd(code, false));
      connection.sendUTF(GO);
    });
    client.connect(url);
  },
};

function work(milliseconds) {
  const until = performance.now() + milliseconds;
  while (performance.now() < until);
}

function run(way) {
  const texts = [];
  const onText = (text) => {
    texts.push(text);
    if (way.slow) work(2);
  };
  return new Promise((resolve) => {
    const onEnd = (code, compressed) => resolve({ texts, code, compressed });
    libraries[library](way, onText, onEnd);
  });
}

(async () => {
  const found = [];
  for (const way of JSON.parse(ways)) found.push(await run(way));
  console.log(JSON.stringify(found));
})();
