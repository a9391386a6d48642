/** A hub that does what the test says, at the other end of a WebSocket without a network. */

import { mock } from "node:test";

import { Client } from "../eyewall.js";

/** Let everything that waits for a promise only go on. */
export const settled = async () => {
  for (let turn = 0; turn < 20; turn += 1) await null;
};

/** Let time go by, in seconds; what it sets off has happened then. */
export async function pass(seconds) {
  await settled();
  // In steps: a timer that is set by another one counts from the end of the step.
  for (let left = Math.round(seconds * 1000); left > 0; left -= 250) {
    mock.timers.tick(Math.min(left, 250));
    await settled();
  }
}

export class Hub {
  sockets = [];
  /** What came in, on all connections: the requests, and the acks to our own messages. */
  requests = [];
  acks = [];
  /** Topic -> what is answered to a request: data, or null for no answer at all. */
  answers = {};
  welcomes = true;
  user = "ada";
  heartbeat = 30;

  constructor() {
    const hub = this;
    this.WebSocket = class extends Socket {
      constructor(url, protocol) {
        super(hub, url, protocol);
      }
    };
  }

  client(options = {}) {
    return new Client("ws://hub/ws", { WebSocket: this.WebSocket, ...options });
  }

  get socket() {
    return this.sockets.at(-1);
  }

  asked(topic) {
    return this.requests.filter((request) => request.topic === topic);
  }

  send(message) {
    this.socket.onmessage({ data: JSON.stringify(message) });
  }

  /** A message of a room that keeps history. */
  tell(offset, { room = "r", epoch = "e1", ...more } = {}) {
    const stream = { room, epoch, offset };
    this.send({ id: `${epoch}-${offset}`, topic: `room:${room}`, data: offset, stream, ...more });
  }

  close(code = 1006, reason = "") {
    const { socket } = this;
    socket.readyState = 3;
    socket.onclose({ code, reason });
  }

  accept(socket) {
    this.sockets.push(socket);
    if (!this.welcomes) return;
    const number = this.sockets.length;
    socket.readyState = 1;
    const data = { conn_id: `c${number}`, user_id: this.user, session: `s${number}` };
    const welcome = { ...data, heartbeat: this.heartbeat, max_message_size: 1000, server: "x" };
    this.send({ topic: "system:welcome", event: "welcome", data: welcome });
  }

  receive(message) {
    if (message.event === "ack") {
      this.acks.push(message);
      return;
    }
    this.requests.push(message);
    const answer = message.topic in this.answers ? this.answers[message.topic] : {};
    const data = typeof answer === "function" ? answer(message.data, message) : answer;
    if (data !== null && message.ack) this.answer(message, data);
  }

  answer({ id, topic }, data) {
    const full = { message_id: id, status: "ok", ...data };
    this.send({ topic, ref: id, event: "ack", data: full });
  }
}

class Socket {
  readyState = 0;
  bufferedAmount = 0;

  constructor(hub, url, protocol) {
    this.hub = hub;
    this.url = new URL(url);
    this.protocol = protocol;
    queueMicrotask(() => hub.accept(this));
  }

  send(text) {
    if (this.readyState !== 1) throw new Error("it is not open");
    this.hub.receive(JSON.parse(text));
  }

  close(code = 1005) {
    this.readyState = 3;
    this.closed = code;
  }
}
