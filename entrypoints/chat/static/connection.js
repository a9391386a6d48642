/**
 * One WebSocket to an eyewall hub, which comes back by itself.
 *
 * The page hands in two callbacks: `state(State)` at every change of the connection,
 * and `message(Envelope)` for everything that is no answer to a request.
 *
 * @typedef {{id?: string, ref?: string, topic: string, event?: string, data?: any, ack?: boolean}} Envelope
 * @typedef {{name: "connecting" | "online" | "draining" | "offline" | "stopped",
 *            retryAt?: number, wait?: number, asked?: boolean, code?: number,
 *            reason?: string}} State
 */

const PROTOCOL = "eyewall.v1.json";

const FIRST_WAIT = 0.5; // seconds: the first try comes within this time
const LONGEST_WAIT = 30;
const SETTLED = 5; // a connection that lives so long starts the waits afresh
const HANDSHAKE = 10;
const ANSWER = 15; // a private message may wait 5 s for each of those before it
const QUIET = 15; // never ask for a sign of life more often than this
const SEEN = 512; // ids of messages that were handled, so that a repeat is only acked
const SESSION = 60; // seconds that a hub surely keeps the session of who was cut off

/** Whether the hub wants this client back after it closed with `code`. */
export function comesBack(code) {
  return (
    code === 1001 ||
    code === 1006 ||
    (code >= 1011 && code <= 1013) ||
    (code >= 4000 && code <= 4499)
  );
}

/** Exponential back-off with full jitter, in seconds; `attempt` counts from 0. */
export function backoff(attempt, random = Math.random) {
  return random() * Math.min(LONGEST_WAIT, FIRST_WAIT * 2 ** attempt);
}

/** A request that was refused, or one whose answer never came. */
export class RequestError extends Error {
  /** @param {string} code the hub's code, or `offline` (never sent), `lost` or `timeout` */
  constructor(code, text, data = {}) {
    super(text);
    this.code = code;
    this.data = data;
  }

  /** True where nobody can know whether the hub has handled the request. */
  get inDoubt() {
    return this.code === "lost" || this.code === "timeout";
  }
}

export class Connection {
  /** @type {State} */
  state = { name: "offline" };
  /** Who the hub says we are. */
  userId = null;
  /** Whether the hub still knows our requests of before, so that they may be repeated. */
  resumed = false;

  #url;
  #on;
  #socket = null;
  #attempt = 0;
  #drainWait = null;
  #before = null; // the last welcome: {session, node_id, ...}
  #lostAt = 0;
  #heartbeat = 30;
  #heard = 0;
  #probing = false;
  #pending = new Map(); // request id -> {resolve, reject, timer}
  #seen = new Set();
  #timers = { retry: 0, handshake: 0, settled: 0, watch: 0 };

  /** @param {{state: (s: State) => void, message: (m: Envelope) => void}} on */
  constructor(url, on) {
    this.#url = url;
    this.#on = on;
    window.addEventListener("online", this.#nudge);
    document.addEventListener("visibilitychange", this.#nudge);
  }

  get online() {
    return this.state.name === "online";
  }

  /** Connect now, whatever the back-off says. */
  start() {
    if (!this.#socket) this.#open();
  }

  /** Leave for good. */
  stop() {
    window.removeEventListener("online", this.#nudge);
    document.removeEventListener("visibilitychange", this.#nudge);
    const socket = this.#release();
    socket?.close(1000);
    this.#become({ name: "stopped", code: 1000, reason: "normal" });
  }

  /**
   * Send a request and wait for its answer.
   *
   * The same `id` may be sent again: within a session the hub handles it once.
   * @returns {Promise<object>} the data of the ack
   */
  request(topic, data, { id = newId(), timeout = ANSWER } = {}) {
    if (!this.#socket || !["online", "draining"].includes(this.state.name)) {
      return Promise.reject(new RequestError("offline", "There is no connection."));
    }
    return this.#ask(topic, data, id, timeout);
  }

  #ask(topic, data, id, timeout) {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(
        () => this.#settle(id, new RequestError("timeout", "No answer came.")),
        timeout * 1000,
      );
      this.#pending.set(id, { resolve, reject, timer });
      this.#send({ id, topic, data, ack: true });
    });
  }

  #send(envelope) {
    this.#socket.send(JSON.stringify(envelope));
  }

  // --- the life of a socket

  #open() {
    clearTimeout(this.#timers.retry);
    this.#become({ name: "connecting" });
    const socket = new WebSocket(this.#url, PROTOCOL);
    this.#socket = socket;
    // What an abandoned socket still reports is nobody's business any more.
    const current = (handle) => (event) => socket === this.#socket && handle(event);
    socket.onmessage = current((event) => this.#receive(event.data));
    socket.onclose = current((event) => this.#closed(event.code, event.reason));
    this.#timers.handshake = setTimeout(() => this.#abandon(), HANDSHAKE * 1000);
  }

  async #welcome(welcome) {
    clearTimeout(this.#timers.handshake);
    const socket = this.#socket;
    this.userId = welcome.user_id;
    this.#heartbeat = welcome.heartbeat || this.#heartbeat;
    // First of all take the old session back: then the hub knows a repeated request.
    this.resumed = this.#before !== null && (await this.#resume(this.#before, welcome));
    if (socket !== this.#socket) return;
    this.#before = welcome;
    this.#timers.settled = setTimeout(() => (this.#attempt = 0), SETTLED * 1000);
    this.#timers.watch = setInterval(() => this.#watch(), 5000);
    if (this.#drainWait === null) this.#become({ name: "online" });
  }

  async #resume(before, now) {
    const away = (performance.now() - this.#lostAt) / 1000;
    try {
      await this.#ask("system:resume", { session: before.session, rooms: {} }, newId(), HANDSHAKE);
    } catch {
      return false;
    }
    // The answer does not say whether the hub knew the session: a new node can't have.
    return before.node_id === now.node_id && away < SESSION;
  }

  /** Give up a socket that stays silent; its own close could take minutes. */
  #abandon() {
    this.#socket?.close();
    this.#closed(1006, "");
  }

  #closed(code, reason) {
    if (this.state.name !== "connecting") this.#lostAt = performance.now();
    this.#release();
    if (!comesBack(code)) {
      this.#become({ name: "stopped", code, reason });
      return;
    }
    const asked = this.#drainWait !== null; // the hub spreads its clients over time
    const wait = this.#drainWait ?? backoff(this.#attempt++);
    this.#drainWait = null;
    this.#timers.retry = setTimeout(() => this.#open(), wait * 1000);
    this.#become({ name: "offline", retryAt: Date.now() + wait * 1000, wait, asked, code, reason });
  }

  /** Forget the socket, its timers, and what waits for its answers. */
  #release() {
    const socket = this.#socket;
    this.#socket = null;
    for (const timer of Object.values(this.#timers)) clearTimeout(timer);
    for (const id of [...this.#pending.keys()]) {
      this.#settle(id, new RequestError("lost", "The connection was lost."));
    }
    return socket;
  }

  #become(state) {
    this.state = state;
    this.#on.state(state);
  }

  // --- signs of life

  /** The network is back, or somebody looks at the page again: don't wait any longer. */
  #nudge = () => {
    if (document.hidden) return;
    if (this.state.name === "offline" && !this.state.asked) this.#open();
    else if (this.online) this.#probe();
  };

  #watch() {
    const quiet = (performance.now() - this.#heard) / 1000;
    if (quiet > Math.max(this.#heartbeat, QUIET)) this.#probe();
  }

  /** Ask for any answer at all: a page does not see the hub's pings. */
  async #probe() {
    if (this.#probing) return;
    const socket = this.#socket;
    this.#probing = true;
    try {
      await this.request("system:presence", { users: [] }, { timeout: HANDSHAKE });
    } catch (error) {
      if (error.code === "timeout" && socket === this.#socket) this.#abandon();
    } finally {
      this.#probing = false;
    }
  }

  // --- what comes in

  #receive(text) {
    this.#heard = performance.now();
    /** @type {Envelope} */
    const envelope = JSON.parse(text);
    const { topic, event, ref, data } = envelope;
    if (event === "ack" || event === "error") {
      this.#answer(data?.message_id ?? ref, event, data ?? {});
    } else if (topic === "system:welcome") {
      this.#welcome(data);
    } else if (topic === "system:draining") {
      this.#drainWait = data.reconnect_in;
      this.#become({ name: "draining", wait: data.reconnect_in });
    } else {
      this.#deliver(envelope);
    }
  }

  #answer(id, event, data) {
    const refused = event === "error" || data.status === "nack";
    this.#settle(id, refused ? new RequestError(data.code, data.error, data) : data);
  }

  #settle(id, outcome) {
    const waiting = this.#pending.get(id);
    if (!waiting) return;
    this.#pending.delete(id);
    clearTimeout(waiting.timer);
    if (outcome instanceof RequestError) waiting.reject(outcome);
    else waiting.resolve(outcome);
  }

  /** Hand a message to the page once, and say so each time that the hub asks. */
  #deliver(envelope) {
    const { id, topic, ack } = envelope;
    if (!ack) {
      this.#on.message(envelope);
      return;
    }
    if (!this.#seen.has(id)) {
      this.#on.message(envelope);
      this.#seen.add(id);
      if (this.#seen.size > SEEN) this.#seen.delete(this.#seen.values().next().value);
    }
    this.#send({ ref: id, topic, event: "ack", data: { message_id: id, status: "ok" } });
  }
}

/** A new message id. `randomUUID` is missing where the page came over plain HTTP. */
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
