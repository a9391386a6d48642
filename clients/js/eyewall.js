/**
 * The client of an eyewall hub: one connection that comes back by itself.
 *
 *     import { connect } from "./eyewall.js";
 *
 *     const client = connect("/ws");
 *     client.on("room:general", ({ data }) => console.log(data));
 *     await client.join("general");
 *     await client.publish("general", { text: "hello" });
 *
 * Rules of this file:
 *
 * 1. A connection is an object of its own (`Link`). What one that was given up still
 *    reports is nobody's business any more: everything asks `link === this.#link` first.
 * 2. After a cut the order is fixed: the session and the rooms are resumed, then requests
 *    without an answer go out again under their ids, then what has waited in the outbox.
 * 3. A place in a room's stream is looked at and moved in one step, without waiting.
 *
 * Times are seconds, as everywhere in the protocol.
 */

const PROTOCOL = "eyewall.v1.json";
const OPEN = 1; // a WebSocket's readyState

const FIRST_WAIT = 0.5; // the first try comes within this time
const LONGEST_WAIT = 30;
const SETTLED = 5; // a connection that lives so long starts the waits afresh
const HANDSHAKE = 10; // for the token, the handshake and each sign of life while resuming
const QUIET = 15; // never ask for a sign of life more often than this
const HEARTBEAT = 30; // where the hub does not say how often it pings
const TOKEN_MARGIN = 10; // a token that ends sooner is not taken along any more
const REFRESH_AT = 0.8; // of the time that a token has left
const REFRESH_PAUSE = 1; // at least, between two tries
const LONGEST_TIMER = 2 ** 31 - 1; // milliseconds; beyond it a timer rings at once

const IN_FLIGHT = 256; // requests without an answer: as many as a hub remembers of a session
const OUTBOX = 256; // messages that wait for the connection: some minutes of somebody typing
const SEEN = 1024; // ids of handled messages: more than a hub repeats at once after a cut
const MAX_BUFFERED = 16 * 2 ** 20; // bytes held back by the socket: 16 of the largest messages
const LONGEST_ERROR = 500; // characters of a handler's error that go into a nack

// --- what went wrong

/** What the hub refused, or what could not be done; `code` is the protocol's. */
export class EyewallError extends Error {
  name = "EyewallError";

  /** @param {object} data of the refusal: `code`, `error`, and what stands beside them */
  constructor(code, text, data = {}) {
    super(text || code);
    this.code = code;
    this.fields = data.fields;
    this.retryAfter = data.retry_after;
    this.data = data;
  }
}

const refusal = (data) => new EyewallError(data.code ?? "nacked", data.error, data);

// --- the parts that need neither a socket nor a clock

/** Whether the hub wants this client back after it closed with `code`. */
export function comesBack(code) {
  if (code >= 4000) return code <= 4499;
  return code === 1001 || code === 1006 || (code >= 1011 && code <= 1013);
}

/** Exponential back-off with full jitter, in seconds; `attempt` counts from 0. */
export function backoff(attempt, random = Math.random) {
  return random() * Math.min(LONGEST_WAIT, FIRST_WAIT * 2 ** attempt);
}

/** Whether a subscription to `pattern` takes `topic`; `*` takes all but the hub's own. */
export function matches(pattern, topic) {
  if (pattern === "*") return !topic.startsWith("system:");
  return pattern.endsWith(":*") ? topic.startsWith(pattern.slice(0, -1)) : topic === pattern;
}

/** A map that forgets what is oldest when it grows beyond `bound`. */
export class Recent {
  #kept = new Map();
  #bound;

  constructor(bound) {
    this.#bound = bound;
  }

  get(key) {
    return this.#kept.get(key);
  }

  add(key, value) {
    this.#kept.set(key, value);
    if (this.#kept.size > this.#bound) this.#kept.delete(this.#kept.keys().next().value);
  }
}

/** What waits for the connection, in order. `key` is there for what can be taken back. */
export class Outbox {
  #waiting = [];
  #bound;

  constructor(bound) {
    this.#bound = bound;
  }

  get size() {
    return this.#waiting.length;
  }

  /** Throws an EyewallError `overloaded` when it is full. */
  add(text, key = null) {
    if (this.size >= this.#bound) {
      throw new EyewallError("overloaded", `${this.#bound} messages wait already`);
    }
    this.#waiting.push({ text, key });
  }

  remove(key) {
    this.#waiting = this.#waiting.filter((entry) => entry.key !== key);
  }

  /** Empty it, and return what was in it. */
  take() {
    return this.#waiting.splice(0);
  }
}

/**
 * The rooms that this client is in, and how far it has come in each.
 *
 * A room that keeps no history has no place: null.
 */
export class Positions {
  #places = new Map();

  has(room) {
    return this.#places.has(room);
  }

  get(room) {
    return this.#places.get(room) ?? null;
  }

  get rooms() {
    return [...this.#places.keys()];
  }

  set(room, { epoch, offset } = {}) {
    this.#places.set(room, epoch === undefined ? null : { epoch, offset });
  }

  forget(room) {
    this.#places.delete(room);
  }

  /** What `system:resume` wants to know of these rooms. */
  ask(rooms = this.rooms) {
    return Object.fromEntries(rooms.map((room) => [room, this.get(room) ?? {}]));
  }

  /**
   * A message of a stream has come; move on to it unless it is a repeat or a gap is before it.
   *
   * `first`: nothing was known of this room. `changed`: the stream is another one, and what
   * came before this message may have been missed.
   * @returns {"next" | "first" | "changed" | "repeat" | "gap"}
   */
  take({ room, epoch, offset }) {
    const place = this.get(room);
    if (place?.epoch === epoch && offset <= place.offset) return "repeat";
    if (place?.epoch === epoch && offset > place.offset + 1) return "gap";
    this.set(room, { epoch, offset });
    if (place === null) return "first";
    return place.epoch === epoch ? "next" : "changed";
  }

  /**
   * We are in a room, as the hub says, whose stream stands at `now`.
   *
   * @returns {"here" | "gap" | "changed"} `gap`: we have not had all of it
   */
  join(room, now) {
    const place = this.get(room);
    if (place === null || now.epoch === undefined) this.set(room, now);
    else if (place.epoch === now.epoch) return now.offset > place.offset ? "gap" : "here";
    else this.set(room, now);
    return place === null ? "here" : "changed";
  }
}

// --- small things

/** Call back after some seconds. */
function later(seconds, callback) {
  return setTimeout(callback, Math.min(LONGEST_TIMER, seconds * 1000));
}

function envelope(topic, data, { event, headers, namespace, version }) {
  return { topic, event, headers, namespace, version, data };
}

const noAnswer = (topic) => new EyewallError("ack_timeout", `no answer to ${topic} came`);
const closedError = () => new EyewallError("connection_closed", "the connection is closed");

/** The envelope in a frame; null if there is none. */
function parse(text) {
  try {
    const message = JSON.parse(text);
    return typeof message?.topic === "string" || message?.event === "ack" ? message : null;
  } catch {
    return null;
  }
}

/** What a token callback gave: a token, or one with its end as token endpoints name it. */
function readToken(found) {
  if (found === null || typeof found !== "object") return { token: found };
  const { token, expires_in: seconds = found.expiresIn, expires_at: end = found.expiresAt } = found;
  if (seconds !== undefined) return { token, expires: Date.now() + seconds * 1000 };
  return { token, expires: end ? new Date(end).getTime() : undefined };
}

/** The ack to a message, as JSON; throws a TypeError for a result that JSON can't hold. */
function ackTo({ id, topic }, answer) {
  return JSON.stringify({ ref: id, topic, event: "ack", data: { message_id: id, ...answer } });
}

function nackTo(message, error) {
  const text = String(error?.message ?? error).slice(0, LONGEST_ERROR);
  return ackTo(message, { status: "nack", error: text });
}

/** Whether it may go better in a moment. */
function isPassing({ code }) {
  return ["unavailable", "overloaded", "rate_limited", "internal"].includes(code);
}

/** Whether a request is about one connection: on another its old answer would be of no use. */
function isOfConnection({ topic }) {
  return topic.startsWith("system:") && topic !== "system:publish";
}

/** An id that nobody can guess; `randomUUID` is missing where a page came over plain HTTP. */
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// --- the client

/** One connection: from the first try to reach the hub until its socket is gone. */
class Link {
  socket = null;
  welcome = null;
  open = false;
  heard = false; // whether anything came since we looked last
  draining = null; // seconds after which the hub wants us back
  asks = new Map(); // requests of the client itself, which end with the link
  resuming = new Set(); // rooms that a resume is under way for
  timers = {}; // deadline, settled, watch, probe, refresh
}

/** A client that is connected, or on its way to be. See `Client`. */
export function connect(url, options) {
  const client = new Client(url, options);
  client.connect();
  return client;
}

export class Client {
  /** What the hub calls us: the user, and this connection; null until it has said so. */
  userId = null;
  connId = null;

  #url;
  #WebSocket;
  #tokens;
  #token = null; // {token, expires?}: the last one, `expires` by this machine's clock
  #state = "closed";
  #link = null;
  #session = null; // the one to be resumed
  #attempt = 0;
  #retry = 0;
  #asked = false; // whether the hub named the time that is waited for
  #prefix = newId();
  #count = 0;
  #pending = new Map(); // id -> request, in the order in which they were made
  #outbox;
  #positions = new Positions();
  #seen = new Recent(SEEN); // id -> {answer, link}: what became of it, and who waits for that
  #handlers = []; // [pattern, handler], in the order in which they came
  #listeners = { state: new Set(), lost: new Set(), error: new Set() };

  /**
   * @param {string | URL} url of the hub's socket; relative to the page where there is one
   * @param {{token?: any, outbox?: number, WebSocket?: any}} options
   */
  constructor(url, { token = null, outbox = OUTBOX, WebSocket = globalThis.WebSocket } = {}) {
    if (!WebSocket) throw new TypeError("there is no WebSocket here: hand one in as an option");
    this.#url = new URL(url, globalThis.location?.href);
    this.#url.protocol = this.#url.protocol.replace("http", "ws");
    this.#tokens = token;
    this.#outbox = new Outbox(outbox);
    this.#WebSocket = WebSocket;
  }

  /** @returns {"connecting" | "open" | "waiting" | "closed"} */
  get state() {
    return this.#state;
  }

  /** Connect now: the first time, after the end, or instead of waiting any longer. */
  connect() {
    if (this.#link !== null) return;
    if (this.#state === "closed") this.#watchBrowser("addEventListener");
    this.#dial();
  }

  /** Leave for good, with all rooms; what was not answered is rejected. */
  close() {
    const link = this.#link;
    this.#release();
    this.#positions = new Positions();
    this.#session = null;
    link?.socket?.close(1000);
    this.#end({ code: 1000, reason: "normal" });
  }

  /** Resolves when the connection is open; rejects when it has ended for good. */
  ready() {
    return new Promise((resolve, reject) => {
      const look = (state) => {
        if (state !== "open" && state !== "closed") return;
        this.#listeners.state.delete(look);
        if (state === "open") resolve(this);
        else reject(closedError());
      };
      this.#listeners.state.add(look);
      look(this.#state);
    });
  }

  // --- listening

  /** Hand messages of a topic, or of a `prefix:*`, to `handler`; returns how to undo it. */
  on(topic, handler) {
    this.#handlers.push([topic, handler]);
    return () => this.off(topic, handler);
  }

  off(topic, handler) {
    this.#handlers = this.#handlers.filter(([t, h]) => t !== topic || h !== handler);
  }

  onState(callback) {
    return this.#listen("state", callback);
  }

  onLost(callback) {
    return this.#listen("lost", callback);
  }

  onError(callback) {
    return this.#listen("error", callback);
  }

  #listen(what, callback) {
    this.#listeners[what].add(callback);
    return () => this.#listeners[what].delete(callback);
  }

  #tell(what, ...facts) {
    for (const callback of [...this.#listeners[what]]) {
      try {
        callback(...facts);
      } catch (error) {
        console.error(error); // of a callback, and not for it: it might be the one for errors
      }
    }
  }

  /** Something failed that nobody waits for. */
  #report(error) {
    if (this.#listeners.error.size) this.#tell("error", error);
    else console.error(error);
  }

  #become(state, info = {}) {
    this.#state = state;
    this.#tell("state", state, info);
  }

  // --- sending

  /** Send without asking for an answer; while there is no connection it waits in the outbox. */
  send(topic, data = null, options = {}) {
    this.#go(JSON.stringify(envelope(topic, data, options)), null);
  }

  /**
   * Send a request; resolves with the data of its ack.
   *
   * A cut does not end it: it is sent again under its id, until its time is over.
   */
  request(topic, data = null, options = {}) {
    return this.#request(topic, data, options, () => {});
  }

  async #request(topic, data, options, answered) {
    const { id = this.#nextId(), timeout = 5, signal, ...more } = options;
    signal?.throwIfAborted();
    if (this.#pending.has(id)) throw new EyewallError("validation", `a request ${id} is under way`);
    if (this.#pending.size >= IN_FLIGHT) {
      throw new EyewallError("overloaded", `${IN_FLIGHT} requests wait for their answers already`);
    }
    const message = { ...envelope(topic, data, more), id, ack: true };
    const request = { id, message, text: JSON.stringify(message), answered, sent: false };
    const answer = new Promise((resolve, reject) => Object.assign(request, { resolve, reject }));
    this.#pending.set(id, request);
    try {
      request.sent = this.#go(request.text, request);
    } catch (error) {
      this.#pending.delete(id);
      throw error;
    }
    const abort = () => this.#reject(request, signal.reason);
    signal?.addEventListener("abort", abort);
    const late = () => this.#reject(request, noAnswer(topic));
    const timer = timeout < Infinity ? later(timeout, late) : 0;
    return answer.finally(() => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", abort);
    });
  }

  #nextId() {
    this.#count += 1;
    return `${this.#prefix}-${this.#count}`;
  }

  /** Whether what is sent now may leave now: a hub that drains takes on nothing new. */
  get #isReady() {
    const link = this.#link;
    return Boolean(link?.open) && link.draining === null && link.socket.readyState === OPEN;
  }

  /** Send now or when there is a connection again; returns whether it has left. */
  #go(text, key) {
    if (this.#state === "closed") throw closedError();
    const most = this.#link?.welcome?.max_message_size;
    if (most && text.length * 3 > most && new TextEncoder().encode(text).length > most) {
      throw new EyewallError("message_too_big", `the hub takes messages of up to ${most} bytes`);
    }
    if (!this.#isReady) {
      this.#outbox.add(text, key);
      return false;
    }
    if (this.#link.socket.bufferedAmount > MAX_BUFFERED) {
      throw new EyewallError("overloaded", "the connection does not take what was sent already");
    }
    this.#write(this.#link, text);
    return true;
  }

  #write(link, text) {
    // One that is just closing will say so: whoever waits for an answer then asks again.
    if (link.socket.readyState === OPEN) link.socket.send(text);
  }

  #resolve(request, data) {
    this.#pending.delete(request.id);
    request.answered(data);
    request.resolve(data);
  }

  #reject(request, error) {
    this.#pending.delete(request.id);
    if (!request.sent) this.#outbox.remove(request);
    request.reject(error);
  }

  // --- rooms, presence, history: the hub's own requests

  join(room, options = {}) {
    return this.#request("system:join", { room }, options, (answer) => this.#joined(room, answer));
  }

  leave(room, options = {}) {
    return this.#request("system:leave", { room }, options, () => this.#positions.forget(room));
  }

  publish(room, data = null, { event, ...options } = {}) {
    return this.request("system:publish", { room, event, data }, options);
  }

  members(room, { limit, cursor, ...options } = {}) {
    return this.request("system:members", { room, limit, cursor }, options);
  }

  /** @param {string[] | {room: string}} whom users, or all of a room */
  presence(whom, options = {}) {
    return this.request("system:presence", Array.isArray(whom) ? { users: whom } : whom, options);
  }

  typing(room, typing = true, { ttl, ...options } = {}) {
    return this.request("system:typing", { room, typing, ttl }, options);
  }

  history(room, { since, limit, ...options } = {}) {
    return this.request("system:history", { room, since, limit }, options);
  }

  /** Called with the answer, before any message that follows it. */
  #joined(room, answer) {
    const found = this.#positions.join(room, answer);
    if (found === "gap") this.#catchUp(this.#link, room);
    if (found === "changed") this.#tellLost(room, answer);
  }

  #tellLost(room, { epoch, offset, code }) {
    this.#tell("lost", room, { epoch, offset, code });
  }

  // --- the life of a link

  async #dial() {
    clearTimeout(this.#retry);
    const link = new Link();
    this.#link = link;
    this.#expect(link);
    this.#become("connecting");
    try {
      const url = await this.#address();
      if (link === this.#link) this.#plug(link, url);
    } catch (error) {
      if (link !== this.#link) return;
      this.#report(error);
      this.#closed(link, 1006, "");
    }
  }

  #plug(link, url) {
    const socket = new this.#WebSocket(url, PROTOCOL);
    link.socket = socket;
    socket.onmessage = ({ data }) => link === this.#link && this.#receive(link, data);
    socket.onclose = ({ code, reason }) => this.#closed(link, code, reason);
    // Node's own says nothing more of a handshake that failed; elsewhere its close follows.
    socket.onerror = () => link.welcome === null && this.#giveUp(link);
  }

  /** Give up a link that has stayed silent for too long on its way to being open. */
  #expect(link) {
    link.heard = false;
    const look = () => (link.heard ? this.#expect(link) : this.#giveUp(link));
    link.timers.deadline = later(HANDSHAKE, look);
  }

  async #welcome(link, welcome) {
    link.welcome = welcome;
    this.userId = welcome.user_id;
    this.connId = welcome.conn_id;
    if (this.#session !== null) await this.#resumeAll(link);
    if (link === this.#link) this.#open(link);
  }

  #open(link) {
    const { session, heartbeat } = link.welcome;
    clearTimeout(link.timers.deadline);
    this.#session = session;
    link.open = true;
    link.heard = true;
    link.timers.settled = later(SETTLED, () => (this.#attempt = 0));
    const quiet = Math.max(QUIET, heartbeat || HEARTBEAT);
    link.timers.watch = setInterval(() => this.#watch(link), quiet * 1000);
    this.#planRefresh(link);
    if (this.#isReady) this.#sendAgain(link);
    this.#become("open", link.draining === null ? {} : { draining: link.draining });
  }

  #sendAgain(link) {
    for (const request of [...this.#pending.values()].filter(({ sent }) => sent)) {
      if (isOfConnection(request.message)) this.#rename(request);
      this.#write(link, request.text);
    }
    for (const { text, key } of this.#outbox.take()) {
      if (key !== null) key.sent = true;
      this.#write(link, text);
    }
  }

  #rename(request) {
    this.#pending.delete(request.id);
    request.id = this.#nextId();
    request.text = JSON.stringify({ ...request.message, id: request.id });
    this.#pending.set(request.id, request);
  }

  #giveUp(link) {
    if (link !== this.#link) return;
    this.#closed(link, 1006, "");
    link.socket?.close(); // which may take minutes: nobody waits for it
  }

  #closed(link, code, reason) {
    if (link !== this.#link) return;
    this.#release();
    // A browser does not tell why a handshake failed: it may have been the token.
    if (link.welcome === null || code === 4401) this.#token = null;
    if (!comesBack(code) || (code === 4401 && typeof this.#tokens === "string")) {
      this.#end({ code, reason });
      return;
    }
    this.#asked = link.draining !== null; // the hub spreads its clients over time
    const delay = this.#asked ? link.draining : backoff(this.#attempt++);
    const at = Date.now() + delay * 1000;
    this.#retry = later(delay, () => this.#dial());
    this.#become("waiting", { delay, at, asked: this.#asked, code, reason });
  }

  /** Let go of the link; what the client itself has asked there, nobody waits for any more. */
  #release() {
    clearTimeout(this.#retry);
    const link = this.#link;
    this.#link = null;
    for (const timer of Object.values(link?.timers ?? {})) clearTimeout(timer);
  }

  #end(info) {
    if (this.#state === "closed") return;
    this.#watchBrowser("removeEventListener");
    const unsent = this.#outbox.take().filter(({ key }) => key === null).length;
    const requests = [...this.#pending.values()];
    this.#become("closed", info);
    for (const request of requests) this.#reject(request, closedError());
    if (unsent) this.#report(new EyewallError("connection_closed", `${unsent} not sent`));
  }

  // --- the token

  async #address() {
    const url = new URL(this.#url);
    const token = typeof this.#tokens === "function" ? await this.#freshToken() : this.#tokens;
    // No header can be set from a browser.
    if (token) url.searchParams.set("token", token);
    return url.href;
  }

  async #freshToken() {
    const ends = this.#token?.expires ?? Infinity;
    if (this.#token === null || ends < Date.now() + TOKEN_MARGIN * 1000) {
      this.#token = readToken(await this.#tokens());
    }
    return this.#token.token;
  }

  #planRefresh(link) {
    const ends = this.#token?.expires;
    if (ends === undefined) return;
    const left = (ends - Date.now()) / 1000;
    const wait = Math.max(REFRESH_PAUSE, left * REFRESH_AT);
    link.timers.refresh = later(wait, () => this.#refresh(link));
  }

  async #refresh(link) {
    try {
      const fresh = readToken(await this.#tokens());
      if (link !== this.#link) return;
      const { expires_at: ends } = await this.#ask(link, "system:refresh", { token: fresh.token });
      if (ends) fresh.expires ??= Date.parse(ends);
      this.#token = fresh;
    } catch (error) {
      this.#report(error); // and try again, until the hub says 4401
    }
    if (link === this.#link) this.#planRefresh(link);
  }

  // --- signs of life: a page sees nothing of the hub's pings

  #watch(link) {
    if (!link.heard) this.#probe(link);
    link.heard = false;
  }

  /** Ask for any answer at all; a refusal is one, too. */
  #probe(link) {
    if (link.timers.probe) return;
    link.timers.probe = later(HANDSHAKE, () => this.#giveUp(link));
    this.#ask(link, "system:resume", { rooms: {} }).catch(() => {});
  }

  #watchBrowser(how) {
    globalThis[how]?.("online", this.#nudge);
    globalThis[how]?.("offline", this.#nudge);
    globalThis.document?.[how]("visibilitychange", this.#nudge);
  }

  /** The network came or went, or somebody looks at the page again. */
  #nudge = ({ type }) => {
    if (type === "visibilitychange" && document.hidden) return;
    if (this.#state === "open") this.#probe(this.#link);
    else if (this.#state === "waiting" && type !== "offline" && !this.#asked) this.#dial();
  };

  // --- resuming

  /** Ask for what was missed. */
  #resume(link, rooms, { session, attempt = 1 } = {}) {
    const data = { session, rooms: this.#positions.ask(rooms) };
    for (const room of rooms) link.resuming.add(room);
    return this.#ask(link, "system:resume", data, (answer) => {
      for (const room of rooms) {
        const found = answer.rooms?.[room] ?? { recovered: false };
        if (isPassing(found)) {
          this.#catchUpLater(link, room, backoff(attempt), attempt);
        } else {
          link.resuming.delete(room);
          this.#resumed(room, found);
        }
      }
    });
  }

  /** Take the session and the rooms up again; gives the link up if it is of no use. */
  async #resumeAll(link) {
    const { rooms } = this.#positions;
    try {
      await this.#resume(link, rooms, { session: this.#session });
    } catch (error) {
      if (isPassing(error)) this.#giveUp(link);
      else await this.#rejoin(link, rooms);
    }
  }

  /** Where the hub can't resume: join the plain way, and say that something may be missing. */
  async #rejoin(link, rooms) {
    link.resuming.clear();
    const joins = rooms.map((room) =>
      this.#ask(link, "system:join", { room }, (answer) =>
        this.#resumed(room, { ...answer, recovered: false }),
      ).catch(({ code }) => link === this.#link && this.#resumed(room, { code })),
    );
    await Promise.all(joins);
  }

  #resumed(room, { recovered, epoch, offset, code }) {
    if (!this.#positions.has(room)) return; // left meanwhile
    const now = { epoch, offset };
    // All that was for us came before this answer: what is missing yet, was not for us.
    const isBehind = !recovered || this.#positions.join(room, now) === "gap";
    if (code !== undefined) this.#positions.forget(room);
    else if (isBehind) this.#positions.set(room, now);
    if (!recovered) this.#tellLost(room, { ...now, code });
  }

  /** Messages are missing before the newest of a room: have them sent again. */
  async #catchUp(link, room, attempt = 1) {
    if (link.resuming.has(room)) return;
    try {
      await this.#resume(link, [room], { attempt });
    } catch (error) {
      if (link !== this.#link) return;
      if (isPassing(error)) {
        this.#catchUpLater(link, room, error.retryAfter ?? backoff(attempt), attempt);
      } else {
        link.resuming.delete(room);
        this.#positions.set(room);
        this.#tellLost(room, {});
      }
    }
  }

  /** The room stays marked until then, or each further message of it would ask. */
  #catchUpLater(link, room, seconds, attempt) {
    later(seconds, () => {
      link.resuming.delete(room);
      if (link !== this.#link || !this.#positions.has(room)) return;
      this.#catchUp(link, room, attempt + 1);
    });
  }

  /** A request of the client itself: it ends with the link, and waits for nothing else. */
  #ask(link, topic, data, answered = () => {}) {
    const id = this.#nextId();
    return new Promise((resolve, reject) => {
      link.asks.set(id, { resolve, reject, answered });
      this.#write(link, JSON.stringify({ id, topic, data, ack: true }));
    });
  }

  // --- what comes in

  #receive(link, text) {
    link.heard = true;
    clearTimeout(link.timers.probe);
    link.timers.probe = 0;
    const message = parse(text);
    if (message === null) {
      this.#report(new EyewallError("invalid_envelope", "the hub sent what is no envelope"));
      return;
    }
    const { topic, event, ref, data } = message;
    if (event === "ack") this.#answered(link, data?.message_id ?? ref, data ?? {});
    else if (event === "error" && data?.code) this.#refused(link, ref, data);
    else if (topic === "system:welcome") this.#welcome(link, data);
    else if (topic === "system:draining") this.#drains(link, data.reconnect_in);
    else if (topic === "system:gap") this.#gap(link, data);
    else this.#deliver(link, message);
  }

  #answered(link, id, data) {
    if (data.status === "nack") {
      this.#refused(link, id, data);
      return;
    }
    const ask = link.asks.get(id);
    if (ask !== undefined) {
      link.asks.delete(id);
      ask.answered(data);
      ask.resolve(data);
    } else if (this.#pending.has(id)) {
      this.#resolve(this.#pending.get(id), data);
    }
  }

  #refused(link, id, data) {
    const error = refusal(data);
    const request = this.#pending.get(id);
    if (link.asks.has(id)) {
      link.asks.get(id).reject(error);
      link.asks.delete(id);
    } else if (request === undefined) {
      this.#report(error); // to a message that did not ask for an answer
    } else if (link.draining === null || error.code !== "overloaded") {
      this.#reject(request, error);
    } // else it was too late for this hub, and goes to the next under its id
  }

  #drains(link, seconds) {
    link.draining = seconds;
    this.#become(this.#state, { draining: seconds });
  }

  #gap(link, { room, epoch, offset }) {
    if (!this.#positions.has(room)) this.#positions.set(room, { epoch, offset });
    this.#catchUp(link, room);
  }

  #deliver(link, message) {
    const { id, topic, data, stream } = message;
    if (topic === "system:kicked") this.#positions.forget(data.room);
    const fate = stream ? this.#positions.take(stream) : "next";
    if (fate === "gap") {
      this.#catchUp(link, stream.room);
    } else if (fate === "repeat" || (id !== undefined && this.#seen.get(id) !== undefined)) {
      this.#ackAgain(link, message);
    } else {
      if (fate === "changed") this.#tellLost(stream.room, stream);
      this.#handle(link, message);
    }
  }

  async #handle(link, message) {
    const { id, ack } = message;
    const handling = { answer: null, link: ack ? link : null };
    if (id !== undefined) this.#seen.add(id, handling);
    handling.answer = await this.#run(message);
    if (handling.link !== null) this.#write(handling.link, handling.answer);
  }

  /** Let the handlers run; returns the ack. */
  async #run(message) {
    const full = { event: "message", data: null, ...message };
    const handlers = this.#handlers.filter(([pattern]) => matches(pattern, message.topic));
    // The first steps of all run at once, so that messages are begun in their order.
    const done = await Promise.allSettled(handlers.map(async ([, handler]) => handler(full)));
    const failed = done.filter(({ status }) => status === "rejected");
    for (const { reason } of failed) this.#report(reason);
    if (failed.length) return nackTo(message, failed[0].reason);
    const result = message.ack ? done.find(({ value }) => value !== undefined)?.value : undefined;
    try {
      return ackTo(message, { status: "ok", result });
    } catch (error) {
      this.#report(error);
      return nackTo(message, error);
    }
  }

  /** It was handled, or is just being handled: its ack goes to who asked last. */
  #ackAgain(link, message) {
    if (!message.ack) return;
    const handling = this.#seen.get(message.id) ?? { answer: ackTo(message, { status: "ok" }) };
    if (handling.answer === null) handling.link = link;
    else this.#write(link, handling.answer);
  }
}
