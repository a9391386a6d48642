/**
 * The client of an eyewall hub: one connection that reconnects by itself.
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
 * 1. Each connection is a `Link`. Events of an abandoned one are ignored: every handler checks
 *    `link === this.#link` first.
 * 2. The order after a cut: the session and the rooms are resumed, the unanswered requests are
 *    retransmitted under their ids, and the outbox follows.
 * 3. The position in a room's history is checked and moved in one step, without an await.
 *    Messages behind a gap are buffered while an answer is awaited that comes after all missing
 *    messages. What is still missing then was not sent to this client.
 * 4. Every promise that is started here has a handler: its error is reported.
 * 5. No error's text has a token, or an address with one.
 * 6. A client that was refused is closed until it has another token: a callback is called once
 *    more, `setToken` sets one. Waiting messages and requests have failed by then.
 * 7. A message of one user is never sent as another user: when the hub welcomes the client as
 *    another user than before, messages and requests from before `setToken` fail.
 *
 * Times are in seconds, as in the protocol.
 */

const PROTOCOL = "eyewall.v1.json";
const OPEN = 1; // a WebSocket's readyState
const TYPING = 5; // seconds after which typing ends that has no `ttl`
const TOKEN_EXPIRED = 4401;
const AUTH_FAILED = 4504;

const FIRST_WAIT = 0.5; // the first attempt comes within this time
const LONGEST_WAIT = 30;
const SETTLED = 5; // a connection that lasts so long resets the back-off
const HANDSHAKE = 10; // for the token, for the handshake, and between two messages of a resume
const QUIET = 15; // the least time between two probes
const HEARTBEAT = 25; // where the hub does not say how often it pings
const TOKEN_MARGIN = 10; // a token that ends sooner is not used for a handshake any more
const REFRESH_AT = 0.8; // of the time that a token has left
const REFRESH_PAUSE = 15; // at least, between two attempts; twice as long after each useless one
const REFRESH_DOUBLINGS = 4;
const RESUME_TIMEOUT = 60; // the whole replay comes before the answer
const LATE = 1; // a timer that fires so much later shows that this machine stood still
const GRACE = 2; // for reading the messages that came meanwhile
const MAX_REQUESTED_WAIT = 3600; // a hub that asks for more is mistaken
const LONGEST_TIMER = 2 ** 31 - 1; // milliseconds; a longer timer fires at once

const IN_FLIGHT = 256; // requests: as many as a hub remembers of a session
const OUTBOX = 256; // messages that wait for the connection: what a user types in some minutes
const REMEMBERED = 1024; // ids of handled messages: more than a hub retransmits at once after a cut
const REORDER = 256; // messages behind a gap: what a hub may have had in its queue before a replay
const REORDER_SIZE = 8 * 2 ** 20; // characters of them, for the same reason
const MAX_BUFFERED = 16 * 2 ** 20; // bytes in the socket's buffer: 16 of the largest messages
const LONGEST_ERROR = 500; // characters of a handler's error that go into a nack

// --- errors

/** A refusal of the hub, or a failure of the client; `code` is the protocol's. */
export class EyewallError extends Error {
  name = "EyewallError";

  /** @param {object} data of the refusal: `code`, `error`, and its other fields */
  constructor(code, text, data = {}) {
    super(text || defaultText(code, data.fields));
    this.code = code;
    this.fields = data.fields;
    this.retryAfter = data.retry_after;
    this.data = data;
  }
}

/** The text of an error without one: the code, and the names of the fields. */
function defaultText(code, fields) {
  const names = fields !== null && typeof fields === "object" ? Object.keys(fields) : [];
  return names.length ? `${code}: ${names.slice(0, 8).join(", ").slice(0, LONGEST_ERROR)}` : code;
}

const refusal = (data) => new EyewallError(data.code ?? "nacked", data.error, data);

// --- parts without a socket and a clock

/** Whether a client reconnects after a close with `code`. */
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

/** A map that forgets its oldest entry when it has more than `bound`. */
export class Recent {
  #kept = new Map();
  #bound;

  constructor(bound) {
    this.#bound = bound;
  }

  get(key) {
    return this.#kept.get(key);
  }

  /** Return an entry's value, and forget it. */
  take(key) {
    const found = this.#kept.get(key);
    this.#kept.delete(key);
    return found;
  }

  add(key, value) {
    this.#kept.set(key, value);
    if (this.#kept.size > this.#bound) this.#kept.delete(this.#kept.keys().next().value);
  }
}

/**
 * Messages that wait for the connection, in order. `key` identifies one that can be removed,
 * `generation` is that of the token source when it was sent.
 */
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
  add(text, key = null, generation = 0) {
    if (this.size >= this.#bound) {
      throw new EyewallError("overloaded", `${this.#bound} messages wait already`);
    }
    this.#waiting.push({ text, key, generation });
  }

  /** Remove the messages of older token sources, and return them. */
  takeBefore(generation) {
    const found = this.#waiting.filter((entry) => entry.generation < generation);
    this.#waiting = this.#waiting.filter((entry) => entry.generation >= generation);
    return found;
  }

  remove(key) {
    this.#waiting = this.#waiting.filter((entry) => entry.key !== key);
  }

  /** Empty it, and return its messages. */
  take() {
    return this.#waiting.splice(0);
  }
}

/**
 * Messages behind a gap, by room. They are taken when everything before them has been sent.
 *
 * It is bounded, over all rooms; `missing` is the lowest offset that did not fit.
 */
export class ReorderBuffer {
  #rooms = new Map();
  #count = 0;
  #size = 0;

  keep({ room, epoch, offset }, message, size) {
    const kept = this.#rooms.get(room) ?? { messages: new Map(), missing: Infinity };
    this.#rooms.set(room, kept);
    if (kept.messages.has(offset)) return;
    if (this.#count >= REORDER || this.#size + size > REORDER_SIZE) {
      kept.missing = Math.min(kept.missing, offset);
      return;
    }
    kept.messages.set(offset, { epoch, offset, message, size });
    this.#count += 1;
    this.#size += size;
  }

  /** Remove a room's messages; @returns them in their order */
  take(room) {
    const { messages = [], missing = Infinity } = this.#rooms.get(room) ?? {};
    this.#rooms.delete(room);
    const found = [...messages.values()].sort((one, other) => one.offset - other.offset);
    this.#count -= found.length;
    for (const { size } of found) this.#size -= size;
    return { messages: found, missing };
  }
}

/**
 * A `join` with `since`, from its request to its answer.
 *
 * Its messages may have been handled before, and are handled again. A message may arrive live
 * before the replay, where the client is in the room already: the replay is recognised by its
 * first message, which stands before all that came since the join. After a reconnect the client
 * continues from its position, and asks from `since` again only if nothing of the replay had
 * come. The client then says itself whether all has come.
 */
export class Replay {
  begun = false;
  lost = false; // whether messages of it are lost for good
  behind = false; // whether the hub has reported a gap meanwhile
  progress = 0; // messages that have come since the join was sent
  #since;
  #first = null;
  #resent = false;

  constructor(since) {
    const isPlace = since !== null && typeof since === "object";
    this.#since = isPlace ? { epoch: since.epoch, offset: since.offset } : since;
  }

  /** Whether a message at or before the client's position is the first of the replay. */
  startsAt({ epoch, offset }) {
    return this.#first === null || this.#first.epoch !== epoch || offset < this.#first.offset;
  }

  /** Count a message; `begins`: it is the first of the replay. */
  received({ epoch, offset }, begins = false) {
    this.progress += 1;
    if (begins || this.#first === null) this.#first = { epoch, offset };
    this.begun ||= begins;
  }

  /** The `since` to send from a client at `position`; null: it has none. */
  sinceFor(position) {
    if (this.begun && position !== null) {
      this.#resent = true;
      return position;
    }
    this.begun = this.lost = this.#resent = false;
    this.#first = null;
    return this.#since;
  }

  /** Whether all messages from `since` on have come. */
  isWhole(answer) {
    if (answer.recovered !== true) return false;
    return !this.#resent || (!this.lost && this.#reachesBack(answer));
  }

  #reachesBack({ epoch, offset }) {
    const first = this.#first;
    const since = this.#since;
    if (first.epoch !== epoch) return false;
    if (typeof since === "object") {
      return since.epoch === epoch && first.offset === since.offset + 1;
    }
    return first.offset === 1 || (since !== "start" && offset - first.offset + 1 >= since);
  }
}

/**
 * The rooms that this client is in, and its position in each.
 *
 * In a room that keeps no history the position is null.
 */
export class Positions {
  #positions = new Map();
  #replays = new Map(); // room -> its joins with `since` in flight, oldest first
  #replayed = new Map(); // room -> up to here a message is new by its position, whatever its id

  has(room) {
    return this.#positions.has(room);
  }

  get(room) {
    return this.#positions.get(room) ?? null;
  }

  get rooms() {
    return [...this.#positions.keys()];
  }

  set(room, { epoch, offset } = {}) {
    this.#positions.set(room, epoch === undefined ? null : { epoch, offset });
  }

  forget(room) {
    this.#positions.delete(room);
    this.#replayed.delete(room);
  }

  /** Note a join with `since`; `endReplay` must follow. */
  beginReplay(room, replay) {
    this.#replays.set(room, [...this.replays(room), replay]);
  }

  /** The replays that the hub sends one after the other. */
  replays(room) {
    return this.#replays.get(room) ?? [];
  }

  /**
   * End a replay; messages up to `position` still count as replayed.
   *
   * @returns whether it was in flight
   */
  endReplay(room, replay, position) {
    const all = this.replays(room);
    const rest = all.filter((other) => other !== replay);
    if (rest.length) this.#replays.set(room, rest);
    else this.#replays.delete(room);
    if (position !== undefined && rest.length < all.length) this.#replayed.set(room, position);
    return rest.length < all.length;
  }

  /** Whether a message was asked for by a join with `since`: then it is new, whatever its id. */
  isReplayed({ room, epoch, offset }) {
    const upto = this.#replayed.get(room);
    return this.#replays.has(room) || (upto?.epoch === epoch && offset <= upto.offset);
  }

  /** The rooms and positions for `system:resume`. */
  ask(rooms = this.rooms) {
    return Object.fromEntries(rooms.map((room) => [room, this.get(room) ?? {}]));
  }

  /**
   * Classify a message of a room with history, and move to it unless it is a duplicate or
   * behind a gap.
   *
   * `first`: the room is new. `changed`: the epoch is new, and messages before this one may be
   * lost. `again`: a replay begins, and the position goes back.
   * @param {boolean} isLive it belongs to no replay
   * @returns {"next" | "first" | "changed" | "again" | "repeat" | "gap"}
   */
  take({ room, epoch, offset }, isLive = false) {
    const position = this.get(room);
    const isKnown = position?.epoch === epoch;
    const [replay] = this.replays(room);
    const isBack = isKnown && offset <= position.offset;
    if (isBack && (isLive || !replay?.startsAt({ epoch, offset }))) return "repeat";
    // A message that asks for an ack may overtake the replay, which brings it again.
    if (!isKnown && isLive && replay?.begun === false) return "gap";
    replay?.received({ epoch, offset }, isBack || !isKnown);
    if (isKnown && offset > position.offset + 1) return "gap";
    this.set(room, { epoch, offset });
    if (isBack) return "again";
    if (position === null) return "first";
    return position.epoch === epoch ? "next" : "changed";
  }

  /**
   * Note that the hub has joined the client to a room, which stands at `now`.
   *
   * @returns {"here" | "gap" | "changed"} `gap`: messages are missing
   */
  join(room, now) {
    const position = this.get(room);
    if (position === null || now.epoch === undefined) this.set(room, now);
    else if (position.epoch === now.epoch) return now.offset > position.offset ? "gap" : "here";
    else this.set(room, now);
    return position === null ? "here" : "changed";
  }
}

// --- helpers

/** Call back after some seconds. */
function later(seconds, callback) {
  return setTimeout(callback, Math.min(LONGEST_TIMER, seconds * 1000));
}

/**
 * Call back after some seconds; if this machine stood still, its messages are read first.
 *
 * @param {(timer: any) => void} keep is given each timer, so that it can be cleared
 */
function laterIfAwake(seconds, keep, callback) {
  const due = Date.now() + seconds * 1000;
  const rang = () => {
    if (Date.now() - due <= LATE * 1000) callback();
    else keep(later(GRACE, callback));
  };
  keep(later(seconds, rang));
}

function envelope(topic, data, { event, headers, namespace, version }) {
  return { topic, event, headers, namespace, version, data };
}

const noAnswer = (topic) => new EyewallError("ack_timeout", `no answer to ${topic} came`);
/** The error of a message that can't be sent; `cause` is why the connection has ended. */
function closedError(cause = null) {
  if (cause?.code === "connection_closed") return cause;
  const why = cause === null ? "" : `: ${cause.message}`;
  const error = new EyewallError("connection_closed", `the connection is closed${why}`);
  return Object.assign(error, { cause });
}

/** The error of an end. `status` is that of a failed handshake, where it is known. */
function errorOf({ code, reason, status, cause = null, isWelcomed }) {
  const said = status === undefined ? `closed with ${code} ${reason}`.trim() : `HTTP ${status}`;
  if (code === AUTH_FAILED || code === TOKEN_EXPIRED || status === 401) {
    return new EyewallError("unauthorized", `not let in: ${said}`);
  }
  if (status === 403 || (!isWelcomed && !comesBack(code))) {
    return new EyewallError("forbidden", `not let in: ${said}`);
  }
  if (isWelcomed) return new EyewallError("connection_closed", said);
  const text = cause === null && status === undefined && code === 1006 ? "" : `: ${said}`;
  const why = cause === null ? text : `: ${textOf(cause)}`;
  const error = new EyewallError("unavailable", `no connection to the hub${why}`);
  return Object.assign(error, { cause });
}

/** Whether a client with this error was refused, as opposed to: no hub there. */
function isRefusal(error) {
  return error instanceof EyewallError && ["unauthorized", "forbidden"].includes(error.code);
}

/** Decode an envelope; null if it is malformed. */
function parse(text) {
  try {
    const message = JSON.parse(text);
    return typeof message?.topic === "string" || message?.event === "ack" ? message : null;
  } catch {
    return null;
  }
}

const isSystem = (topic) => topic.startsWith("system:");

/** The seconds that a hub asked for, bounded; null if it is no number. */
function requestedWait(seconds) {
  return Number.isFinite(seconds) && seconds >= 0 ? Math.min(seconds, MAX_REQUESTED_WAIT) : null;
}

/** The text of an error; a handler may throw anything. */
function textOf(error) {
  try {
    return String(error?.message ?? error);
  } catch {
    return "the handler failed";
  }
}

/** A token without the white space around it; throws a TypeError that does not quote it. */
function plainToken(token) {
  if (token === null || token === undefined) return null;
  if (typeof token !== "string") throw new TypeError("a token must be a text");
  const text = token.trim();
  if (/[\u0000-\u001f\u007f-\u009f]/.test(text)) {
    throw new TypeError("a token must have no control characters");
  }
  return text;
}

/** The address of a hub; throws a TypeError that does not quote it: it may have a token. */
function hubAddress(address) {
  let url;
  try {
    url = new URL(address, globalThis.location?.href);
    url.protocol = url.protocol.replace("http", "ws");
  } catch {
    throw new TypeError("url is not the address of a hub");
  }
  if (!/^wss?:$/.test(url.protocol)) throw new TypeError("url must begin with ws: or wss:");
  if (url.hash) throw new TypeError("url must have no fragment (#)");
  return url;
}

/** The error without the secrets of an address: the constructor of WebSocket may quote it. */
function redacted(error) {
  const text = textOf(error);
  const shown = text
    .replace(/\/\/[^/?#\s"']*@/g, "//***@")
    .replace(/([?&][^=&#\s"']*=)[^&#\s"']*/g, "$1***");
  if (shown === text) return error;
  if (error instanceof EyewallError) return new EyewallError(error.code, shown);
  return Object.assign(new Error(shown), { name: error.name });
}

/**
 * A token, and the time until its end.
 *
 * Of two clocks the smaller rest counts: one stands still while the machine sleeps, and the
 * other may be set. An end in the past shows that the clock is wrong: it is ignored, and the hub
 * closes the connection at the real end.
 */
class Token {
  #lasts; // seconds
  #wall = Date.now();
  #ticks = performance.now();

  /** @param {any} given a token, or an object with `token` and its end (`expires_in`, ...) */
  constructor(given) {
    const fields = given !== null && typeof given === "object" ? given : { token: given ?? null };
    if (fields.token === undefined) throw new TypeError("there is no `token` in what came for one");
    this.text = plainToken(fields.token);
    const seconds = fields.expires_in ?? fields.expiresIn;
    if (Number.isFinite(seconds)) this.#lasts = seconds;
    else this.endsAt(fields.expires_at ?? fields.expiresAt);
  }

  /** Seconds; undefined if the end is unknown. */
  get left() {
    if (this.#lasts === undefined) return undefined;
    return this.#lasts - Math.max(Date.now() - this.#wall, performance.now() - this.#ticks) / 1000;
  }

  /** Set the end, if it is unknown. */
  endsAt(date) {
    const seconds = date ? (new Date(date).getTime() - this.#wall) / 1000 : NaN;
    if (this.#lasts === undefined && seconds > 0) this.#lasts = seconds;
  }
}

/** Registrations of callbacks; a function may be registered more than once. */
class Callbacks {
  #all = []; // replaced, never changed: a loop over it may register and end callbacks

  /** @returns a function that ends the registration */
  add(callback, pattern = null) {
    const one = { callback, pattern, isOver: false };
    this.#all = [...this.#all, one];
    return () => this.#end(one);
  }

  /** End the last registration of a function. */
  remove(callback, pattern) {
    const is = (one) => one.callback === callback && one.pattern === pattern;
    const found = [...this.#all].reverse().find(is);
    if (found !== undefined) this.#end(found);
  }

  get all() {
    return this.#all;
  }

  #end(one) {
    one.isOver = true;
    this.#all = this.#all.filter((other) => other !== one);
  }
}

/** The ack to a message, as JSON; throws a TypeError for a result that JSON can't hold. */
function ackTo({ id, topic }, answer) {
  return JSON.stringify({ ref: id, topic, event: "ack", data: { message_id: id, ...answer } });
}

function nackTo(message, error) {
  return ackTo(message, { status: "nack", error: textOf(error).slice(0, LONGEST_ERROR) });
}

/** Whether another attempt may succeed. */
function isPassing({ code }) {
  return ["unavailable", "overloaded", "rate_limited", "internal", "ack_timeout"].includes(code);
}

/** Whether a request is about the connection: an answer about an old one is of no use. */
function isOfConnection({ topic }) {
  return isSystem(topic) && topic !== "system:publish";
}

/** An id that can't be guessed; `randomUUID` is missing on pages that came over plain HTTP. */
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// --- the client

/** One connection, from the call for a token to the end of its socket. */
class Link {
  socket = null;
  welcome = null;
  open = false;
  heard = false; // whether a message came since the last check
  draining = null; // the seconds of `system:draining`
  asks = new Map(); // requests of the client itself, which end with the link
  resuming = new Set(); // rooms with a resume in flight
  shown = null; // the token of the handshake
  generation = 0; // of the source of that token
  refreshes = null; // useless refreshes in a row; null before the first refresh
  timers = {}; // deadline, settled, watch, probe, refresh
  #alarms = new Set(); // timers without a name

  /** Call back after some seconds, if the link has not ended by then. */
  later(seconds, callback) {
    const alarm = later(seconds, () => {
      this.#alarms.delete(alarm);
      callback();
    });
    this.#alarms.add(alarm);
    return alarm;
  }

  cancel(alarm) {
    clearTimeout(alarm);
    this.#alarms.delete(alarm);
  }

  end() {
    for (const timer of [...Object.values(this.timers), ...this.#alarms]) clearTimeout(timer);
  }
}

/** Make a client and connect it. See `Client`. */
export function connect(url, options) {
  const client = new Client(url, options);
  client.connect();
  return client;
}

export class Client {
  /** The user, and the connection's id; null before the first welcome. */
  userId = null;
  connId = null;

  #url;
  #WebSocket;
  #tokens;
  #generation = 0; // how many times the token source was replaced
  #token = null; // the last token of the callback
  #refusal = null; // {token, code, reason, error} of the refusal after which it is called again
  #lastError = null;
  #state = "closed";
  #link = null;
  #welcomed = null; // the last link that was welcomed; null when no message of its user waits
  #session = null; // the session to resume
  #attempt = 0;
  #retry = 0;
  #isWaitRequested = false; // whether the hub asked for the wait
  #prefix = newId();
  #count = 0;
  #pending = new Map(); // id -> request, in the order in which they were made
  #outbox;
  #positions = new Positions();
  #reorder = new ReorderBuffer();
  #typed = null; // {room, ttl, id, at} of the last typing that was sent
  #left = new Set(); // rooms that the application has left, until the hub confirms it
  #handled = new Recent(REMEMBERED); // id -> {answer, link}: the ack, and the link to send it on
  #deferredAcks = new Recent(REMEMBERED); // id -> link that gets the ack of a message behind a gap
  #handlers = new Callbacks();
  #listeners = { state: new Callbacks(), lost: new Callbacks(), error: new Callbacks() };

  /**
   * @param {string | URL} url of the hub's socket; relative to the page where there is one
   * @param {{token?: any, outbox?: number, WebSocket?: any}} options
   */
  constructor(url, { token = null, outbox = OUTBOX, WebSocket = globalThis.WebSocket } = {}) {
    if (!WebSocket) throw new TypeError("there is no WebSocket here: hand one in as an option");
    this.#url = hubAddress(url);
    this.#tokens = typeof token === "function" ? token : plainToken(token);
    this.#outbox = new Outbox(outbox);
    this.#WebSocket = WebSocket;
  }

  /** @returns {"connecting" | "open" | "waiting" | "closed"} */
  get state() {
    return this.#state;
  }

  /** Connect now: for the first time, after the end, or instead of waiting. */
  connect() {
    if (this.#link !== null) return;
    this.#refusal = null;
    if (this.#state === "closed") this.#watchBrowser("addEventListener");
    this.#detach(this.#dial());
  }

  /** Why the client waits or is closed, as an EyewallError; otherwise null. */
  get lastError() {
    return this.#lastError;
  }

  /**
   * Use this token from now on, or the tokens of this function.
   *
   * A client that was refused reconnects with it. An open connection sends a new token to the
   * hub: a token of the same user is renewed without a cut.
   */
  setToken(token) {
    this.#tokens = typeof token === "function" ? token : plainToken(token);
    this.#generation += 1;
    this.#token = null;
    this.#refusal = null;
    if (this.#state === "closed" && isRefusal(this.#lastError)) this.connect();
    else if (this.#link?.open) this.#sendToken(this.#link);
  }

  /** Close for good, and leave all rooms; unanswered requests reject. */
  close() {
    const link = this.#link;
    // After a refusal, too: then `setToken` does not reconnect any more.
    if (this.#state !== "closed") this.#lastError = closedError();
    else if (isRefusal(this.#lastError)) this.#lastError = closedError(this.#lastError);
    this.#dropLink();
    this.#positions = new Positions();
    this.#left.clear();
    this.#session = null;
    this.#attempt = 0;
    link?.socket?.close(1000);
    this.#end({ code: 1000, reason: "normal" });
  }

  /** Resolves when the connection is open; rejects when it has ended for good. */
  ready() {
    return new Promise((resolve, reject) => {
      const look = (state) => {
        if (state !== "open" && state !== "closed") return;
        stop();
        if (state === "open") resolve(this);
        else reject(this.#lastError ?? closedError());
      };
      const stop = this.#listeners.state.add(look);
      look(this.#state);
    });
  }

  // --- listening

  /** Call `handler` for messages of a topic, or `prefix:*`; returns a function that ends it. */
  on(topic, handler) {
    return this.#handlers.add(handler, topic);
  }

  /** End the last registration of `handler` for this topic. */
  off(topic, handler) {
    this.#handlers.remove(handler, topic);
  }

  onState(callback) {
    return this.#listeners.state.add(callback);
  }

  onLost(callback) {
    return this.#listeners.lost.add(callback);
  }

  onError(callback) {
    return this.#listeners.error.add(callback);
  }

  #tell(what, ...facts) {
    for (const one of this.#listeners[what].all) {
      try {
        if (!one.isOver) one.callback(...facts);
      } catch (error) {
        console.error(error); // not to `onError`: its callback may be the one that has failed
      }
    }
  }

  /** Report an error that no caller gets. */
  #report(error) {
    if (this.#listeners.error.all.length) this.#tell("error", error);
    else console.error(error);
  }

  /** Report the error of a promise that is not awaited. */
  #detach(work) {
    work.catch((error) => this.#report(error));
  }

  #setState(state, info = {}) {
    this.#state = state;
    this.#tell("state", state, info);
  }

  // --- sending

  /** Send without an ack; while there is no connection the message waits in the outbox. */
  send(topic, data = null, options = {}) {
    this.#post(JSON.stringify(envelope(topic, data, options)), null);
  }

  /**
   * Send a request; resolves with the data of its ack.
   *
   * After a cut it is retransmitted under its id, until its timeout.
   */
  request(topic, data = null, options = {}) {
    return this.#request(topic, data, options);
  }

  /**
   * The hooks run in the step in which the event is known: `begun` when it is sent or queued,
   * `answered` with the answer, `failed` without one or with a refusal; its argument is whether
   * nothing has changed at the hub. `renew` returns the data for a further connection. The timeout
   * starts again if `progress` has changed when it is over.
   */
  async #request(topic, data, options, { begun, answered, failed, renew, progress } = {}) {
    const { id = this.#nextId(), timeout = 5, signal, ...more } = options;
    signal?.throwIfAborted();
    if (this.#pending.has(id)) throw new EyewallError("validation", `a request ${id} is under way`);
    if (this.#pending.size >= IN_FLIGHT) {
      throw new EyewallError("overloaded", `${IN_FLIGHT} requests wait for their answers already`);
    }
    const message = { ...envelope(topic, data, more), id, ack: true };
    const text = JSON.stringify(message);
    const generation = this.#generation;
    const request = { id, message, text, answered, failed, renew, generation, sent: false };
    const answer = new Promise((resolve, reject) => Object.assign(request, { resolve, reject }));
    this.#pending.set(id, request);
    begun?.();
    try {
      request.sent = this.#post(request.text, request);
    } catch (error) {
      this.#pending.delete(id);
      failed?.(this.#isReady);
      throw error;
    }
    const abort = () => this.#reject(request, signal.reason);
    signal?.addEventListener("abort", abort);
    let timer = 0;
    let seen = progress?.();
    const wait = () => laterIfAwake(timeout, (kept) => (timer = kept), late);
    const late = () => {
      if (seen === progress?.()) return this.#reject(request, noAnswer(topic));
      seen = progress();
      wait();
    };
    if (timeout < Infinity) wait();
    return answer.finally(() => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", abort);
    });
  }

  #nextId() {
    this.#count += 1;
    return `${this.#prefix}-${this.#count}`;
  }

  /** Whether a message can be written now: a hub that drains refuses new ones. */
  get #isReady() {
    const link = this.#link;
    return Boolean(link?.open) && link.draining === null && link.socket.readyState === OPEN;
  }

  /** Write a message, or queue it for the next connection; returns whether it was written. */
  #post(text, key) {
    if (this.#state === "closed") throw closedError(this.#lastError);
    const most = this.#link?.welcome?.max_message_size;
    if (most && text.length * 3 > most && new TextEncoder().encode(text).length > most) {
      throw new EyewallError("message_too_big", `the hub takes messages of up to ${most} bytes`);
    }
    if (!this.#isReady) {
      this.#outbox.add(text, key, this.#generation);
      return false;
    }
    if (this.#link.socket.bufferedAmount > MAX_BUFFERED) {
      throw new EyewallError("overloaded", "the connection does not take what was sent already");
    }
    this.#write(this.#link, text);
    return true;
  }

  #write(link, text) {
    // A closing socket reports its end: then unanswered requests are retransmitted.
    if (link.socket.readyState === OPEN) link.socket.send(text);
  }

  #resolve(request, data) {
    this.#pending.delete(request.id);
    request.answered?.(data);
    request.resolve(data);
  }

  #reject(request, error, { isAsBefore = false } = {}) {
    this.#pending.delete(request.id);
    if (!request.sent) this.#outbox.remove(request);
    request.failed?.(isAsBefore);
    request.reject(error);
  }

  // --- rooms, presence, history: the commands of the hub

  /** Join a room; with `since` the handlers first get the kept messages from there. */
  join(room, { since, ...options } = {}) {
    if (since !== undefined && since !== null) return this.#joinSince(room, since, options);
    return this.#request("system:join", { room }, options, {
      begun: () => this.#left.delete(room),
      answered: (answer) => this.#joined(room, answer),
    });
  }

  #joinSince(room, since, options) {
    const replay = new Replay(since);
    const asks = (position) => ({ room, since: replay.sinceFor(position) });
    return this.#request("system:join", asks(null), options, {
      begun: () => {
        this.#left.delete(room);
        this.#positions.beginReplay(room, replay);
      },
      answered: (answer) => this.#replayed(room, replay, answer),
      failed: () => this.#notReplayed(room, replay),
      renew: () => asks(this.#positions.get(room)),
      progress: () => replay.progress,
    });
  }

  /** Take the answer: all kept messages, and the live ones meanwhile, were sent before it. */
  #replayed(room, replay, answer) {
    const { epoch, offset } = answer;
    const aside = this.#reorder.take(room);
    const position = this.#positions.get(room);
    answer.recovered = replay.isWhole(answer);
    this.#positions.endReplay(room, replay, epoch === undefined ? undefined : { epoch, offset });
    if (epoch !== undefined && position?.epoch === epoch) {
      this.#takeBuffered(this.#link, room, aside, { epoch, offset });
    } else if (epoch !== undefined || position === null) {
      this.#positions.set(room, answer);
    }
    if (replay.behind) this.#detach(this.#fillGap(this.#link, room));
  }

  /** Await no answer any more; messages of the replay that still come are taken. */
  #notReplayed(room, replay) {
    const position = this.#positions.get(room);
    const isSure = position !== null && replay.begun;
    const upto = isSure ? { ...position, offset: Number.MAX_SAFE_INTEGER } : undefined;
    if (!this.#positions.endReplay(room, replay, upto) || position === null) return;
    if (!this.#link?.open || this.#link.resuming.has(room)) return;
    const { messages, missing } = this.#reorder.take(room);
    if (replay.behind || messages.length || missing < Infinity) {
      this.#detach(this.#fillGap(this.#link, room));
    }
  }

  /** Everything up to `now` has been sent: take the buffered messages up to there. */
  #takeBuffered(link, room, { messages, missing }, now) {
    const upto = Math.min(now.offset, missing - 1);
    for (const { epoch, offset, message } of messages) {
      const position = this.#positions.get(room);
      if (position?.epoch !== now.epoch || epoch !== now.epoch || offset > upto) break;
      if (offset <= position.offset) continue;
      this.#positions.set(room, { epoch, offset });
      this.#handleOnce(link, message);
    }
    const position = this.#positions.get(room);
    if (position?.epoch !== now.epoch || position.offset >= now.offset) return;
    this.#positions.set(room, { epoch: now.epoch, offset: Math.max(position.offset, upto) });
    if (upto < now.offset) this.#detach(this.#fillGap(link, room));
  }

  /** Leave a room. The client has left even if no answer comes, unless it is a refusal. */
  leave(room, options = {}) {
    const left = this.#request("system:leave", { room }, options, {
      begun: () => {
        this.#left.add(room);
        this.#typed = null;
      },
      answered: () => this.#forgetRoom(room),
      failed: (isAsBefore) => {
        if (isAsBefore) this.#left.delete(room);
        else this.#positions.forget(room);
      },
    });
    left.catch(() => {}); // the caller need not handle it
    return left;
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

  /** May be called at every key stroke: it is not sent again within half of its `ttl`. */
  async typing(room, typing = true, { ttl, id = this.#nextId(), ...options } = {}) {
    if (typing === true && this.#isTyped(room, ttl)) {
      options.signal?.throwIfAborted();
      return { message_id: this.#typed.id, status: "ok" };
    }
    const said = { room, ttl, id, at: Date.now() };
    this.#typed = typing === true ? said : null;
    try {
      return await this.request("system:typing", { room, typing, ttl }, { id, ...options });
    } catch (error) {
      if (this.#typed === said) this.#typed = null;
      throw error;
    }
  }

  #isTyped(room, ttl) {
    if (this.#typed?.room !== room || this.#typed.ttl !== ttl) return false;
    const ago = Date.now() - this.#typed.at; // below 0 where the clock was set back
    return ago >= 0 && ago < ((ttl ?? TYPING) * 1000) / 2;
  }

  history(room, { since, limit, ...options } = {}) {
    return this.request("system:history", { room, since, limit }, options);
  }

  /** Note that the client is not in the room. */
  #forgetRoom(room) {
    if (this.#typed?.room === room) this.#typed = null;
    this.#positions.forget(room);
    this.#left.delete(room);
  }

  /** Called with the answer, before any message that follows it. */
  #joined(room, answer) {
    const found = this.#positions.join(room, answer);
    if (found === "gap") this.#detach(this.#fillGap(this.#link, room));
    if (found === "changed") this.#tellLost(room, answer);
  }

  #tellLost(room, { epoch, offset, code }) {
    this.#tell("lost", room, { epoch, offset, code });
  }

  // --- connecting

  async #dial() {
    clearTimeout(this.#retry);
    const link = new Link();
    this.#link = link;
    this.#expect(link);
    this.#setState("connecting");
    if (link !== this.#link) return; // a callback has closed it
    try {
      const url = await this.#address(link);
      if (link === this.#link) this.#openSocket(link, url);
    } catch (error) {
      if (link !== this.#link) return;
      const cause = redacted(error);
      if (!isRefusal(cause)) this.#report(cause);
      this.#closed(link, 1006, "", { cause });
    }
  }

  #openSocket(link, url) {
    const socket = new this.#WebSocket(url, PROTOCOL);
    link.socket = socket;
    socket.onmessage = ({ data }) => link === this.#link && this.#receive(link, data);
    socket.onclose = ({ code, reason }) => this.#closed(link, code, reason);
    // Node's own WebSocket reports no close of a failed handshake; others do.
    socket.onerror = () => link.welcome === null && this.#abandon(link);
    // Only the package `ws` for Node reports the status of a failed handshake.
    socket.on?.("unexpected-response", (_, { statusCode: status, headers }) => {
      const asked = headers?.["retry-after"];
      const wait = /^\d{1,9}$/.test(asked) ? requestedWait(Number(asked)) : null;
      this.#closed(link, 1006, "", { status, wait });
      socket.close();
    });
  }

  /** Abandon a link that gets no message for too long before it is open. */
  #expect(link) {
    link.heard = false;
    const look = () => (link.heard ? this.#expect(link) : this.#abandon(link));
    this.#inTime(link, "deadline", look);
  }

  /** Call `look` after `HANDSHAKE` seconds, when all messages that have come are read. */
  #inTime(link, name, look) {
    laterIfAwake(HANDSHAKE, (timer) => (link.timers[name] = timer), look);
  }

  async #welcome(link, welcome) {
    if (link.welcome !== null) return;
    link.welcome = welcome;
    this.userId = welcome.user_id;
    this.connId = welcome.conn_id;
    this.#checkUser(link);
    if (link !== this.#link) return; // a callback has closed it
    const rooms = this.#roomsToResume();
    if (this.#session !== null) await this.#resumeAll(link, rooms);
    if (link === this.#link) this.#open(link);
  }

  /**
   * If the hub names another user than before, fail the messages of that one.
   *
   * If the token source is still the same, its callback has changed the user at a time that the
   * client does not know: then all waiting messages fail.
   */
  #checkUser(link) {
    const last = this.#welcomed;
    this.#welcomed = link;
    if (last === null || last.welcome.user_id === link.welcome.user_id) return;
    let from = link.generation;
    if (from === last.generation) {
      from += 1;
      // It counts as a new source.
      if (this.#generation < from) link.generation = this.#generation = from;
    }
    const text = "the client is connected as another user now";
    const error = () => new EyewallError("connection_closed", text);
    for (const request of [...this.#pending.values()]) {
      if (request.generation < from) this.#reject(request, error());
    }
    const unsent = this.#outbox.takeBefore(from).length;
    if (unsent) this.#report(new EyewallError("connection_closed", `${unsent} not sent: ${text}`));
  }

  /**
   * The rooms to be in on a new connection. A room that was left is one only if an earlier
   * request in flight needs it.
   */
  #roomsToResume() {
    const asked = [...this.#pending.values()].map(({ message: { topic, data } }) => ({
      room: isSystem(topic) ? data?.room : undefined,
      isLeave: topic === "system:leave",
    }));
    for (const room of [...this.#left]) {
      const open = asked.filter((request) => request.room === room);
      if (open.every(({ isLeave }) => isLeave)) this.#positions.forget(room);
      if (!open.some(({ isLeave }) => isLeave)) this.#left.delete(room);
    }
    return this.#positions.rooms;
  }

  #open(link) {
    const { session, heartbeat } = link.welcome;
    clearTimeout(link.timers.deadline);
    this.#session = session;
    link.open = true;
    link.heard = true;
    this.#lastError = null;
    this.#refusal = null;
    link.timers.settled = later(SETTLED, () => (this.#attempt = 0));
    const quiet = Math.max(QUIET, heartbeat || HEARTBEAT);
    link.timers.watch = setInterval(() => this.#watch(link), quiet * 1000);
    if (link.generation === this.#generation) this.#planRefresh(link);
    else this.#sendToken(link); // another one was set meanwhile
    if (this.#isReady) this.#sendAgain(link);
    this.#setState("open", link.draining === null ? {} : { draining: link.draining });
  }

  #sendAgain(link) {
    const requests = [...this.#pending.values()];
    this.#pending.clear(); // requests with a new id keep their order
    for (const request of requests) {
      if (request.sent && isOfConnection(request.message)) this.#rename(request);
      this.#pending.set(request.id, request);
    }
    for (const { sent, text } of requests) if (sent) this.#write(link, text);
    for (const { text, key } of this.#outbox.take()) {
      if (key !== null) key.sent = true;
      this.#write(link, text);
    }
  }

  #rename(request) {
    request.id = this.#nextId();
    if (request.renew !== undefined) request.message.data = request.renew();
    request.text = JSON.stringify({ ...request.message, id: request.id });
  }

  #abandon(link) {
    if (link !== this.#link) return;
    this.#closed(link, 1006, "");
    link.socket?.close(); // may take minutes, and is not awaited
  }

  #closed(link, code, reason, { status, wait = null, cause = null } = {}) {
    if (link !== this.#link) return;
    this.#dropLink();
    const isWelcomed = link.welcome !== null;
    const gaveUp = isRefusal(cause); // the token's callback has said so
    const error = gaveUp ? cause : errorOf({ code, reason, status, cause, isWelcomed });
    if (gaveUp && cause === this.#refusal?.error) ({ code, reason } = this.#refusal);
    this.#lastError = error;
    // A browser does not say why a handshake failed: it may have been the token.
    if (!isWelcomed || isRefusal(error)) this.#token = null;
    const staysAway = isRefusal(error)
      ? !this.#hasAnotherToken(link, { code, reason, error, gaveUp })
      : !comesBack(code);
    if (staysAway) {
      this.#end({ code, reason });
      return;
    }
    this.#isWaitRequested = link.draining !== null || wait !== null;
    // A hub that drains has spread the waits of its clients; one that is full has not.
    const delay = link.draining ?? (wait ?? 0) + backoff(this.#attempt++);
    const at = Date.now() + delay * 1000;
    this.#retry = later(delay, () => this.#detach(this.#dial()));
    this.#setState("waiting", { delay, at, asked: this.#isWaitRequested, code, reason });
  }

  /** Whether to try another token; a callback is called once more. */
  #hasAnotherToken(link, { code, reason, error, gaveUp }) {
    if (link.generation !== this.#generation) return true;
    if (gaveUp || error.code === "forbidden") return false;
    if (code === TOKEN_EXPIRED) return typeof this.#tokens !== "string";
    if (typeof this.#tokens !== "function") return false;
    if (this.#refusal !== null) return false;
    this.#refusal = { token: link.shown, code, reason, error };
    return true;
  }

  /** Drop the link, and with it the client's own requests on it. */
  #dropLink() {
    clearTimeout(this.#retry);
    this.#typed = null; // a cut ends it
    this.#link?.end();
    this.#link = null;
    this.#reorder = new ReorderBuffer();
    this.#deferredAcks = new Recent(REMEMBERED);
  }

  #end(info) {
    if (this.#state === "closed") return;
    this.#watchBrowser("removeEventListener");
    this.#welcomed = null;
    const unsent = this.#outbox.take().filter(({ key }) => key === null).length;
    const requests = [...this.#pending.values()];
    this.#setState("closed", info);
    for (const request of requests) this.#reject(request, closedError(this.#lastError));
    if (unsent) this.#report(new EyewallError("connection_closed", `${unsent} not sent`));
  }

  // --- the token

  async #address(link) {
    const url = new URL(this.#url);
    const token = await this.#tokenFor(link);
    // A browser can't set headers.
    if (token) url.searchParams.set("token", token);
    return url.href;
  }

  /** The token for the handshake; a source that is set while a callback runs replaces it. */
  async #tokenFor(link) {
    do {
      link.generation = this.#generation;
      const isAsked = typeof this.#tokens === "function";
      // A text is awaited, too: of two that are set at once the last one counts.
      link.shown = await (isAsked ? this.#freshToken(link) : this.#tokens);
    } while (link.generation !== this.#generation);
    if (this.#refusal?.token === link.shown) throw this.#refusal.error;
    return link.shown;
  }

  async #freshToken(link) {
    if (this.#token !== null && !(this.#token.left < TOKEN_MARGIN)) return this.#token.text;
    const fresh = new Token(await this.#tokens());
    if (link !== this.#link) throw closedError(); // it took too long: another attempt has begun
    if (link.generation === this.#generation) this.#token = fresh;
    return fresh.text;
  }

  /** Send a token that the application has just set on the open connection. */
  #sendToken(link) {
    clearTimeout(link.timers.refresh);
    if (this.#tokens !== null) this.#detach(this.#refresh(link));
  }

  #planRefresh(link) {
    const left = this.#token?.left;
    if (left === undefined) return;
    let wait = Math.max(0, left * REFRESH_AT);
    if (wait >= REFRESH_PAUSE) link.refreshes &&= 0;
    if (link.refreshes !== null) {
      wait = Math.max(wait, REFRESH_PAUSE * 2 ** Math.min(link.refreshes, REFRESH_DOUBLINGS));
      link.refreshes += 1;
    }
    link.timers.refresh = later(wait, () => this.#detach(this.#refresh(link)));
  }

  async #refresh(link) {
    link.refreshes ??= 0;
    const generation = this.#generation;
    const isOver = () => link !== this.#link || generation !== this.#generation;
    try {
      const isAsked = typeof this.#tokens === "function";
      const asked = isAsked ? this.#tokens() : this.#tokens;
      const fresh = new Token(await this.#inPatience(link, HANDSHAKE, asked));
      if (isOver()) return;
      const answer = await this.#ask(link, "system:refresh", { token: fresh.text });
      if (isOver()) return;
      fresh.endsAt(answer.expires_at);
      if (isAsked) this.#token = fresh;
      link.generation = generation;
    } catch (error) {
      if (isOver()) return;
      this.#report(error); // and try again, until the hub closes with 4401
    }
    this.#planRefresh(link);
  }

  /** The result of the callback; rejects after `seconds`. */
  #inPatience(link, seconds, work) {
    return new Promise((resolve, reject) => {
      const late = () => reject(new EyewallError("unavailable", "no token came in time"));
      const alarm = link.later(seconds, late);
      Promise.resolve(work)
        .then(resolve, reject)
        .finally(() => link.cancel(alarm));
    });
  }

  // --- heartbeat: a page does not see the hub's pings

  #watch(link) {
    if (!link.heard) this.#probe(link);
    link.heard = false;
  }

  /** Send a request; any answer shows that the hub is there, also a refusal. */
  #probe(link) {
    if (link.timers.probe) return;
    this.#inTime(link, "probe", () => this.#abandon(link));
    this.#ask(link, "system:resume", { rooms: {} }).catch(() => {});
  }

  #watchBrowser(how) {
    globalThis[how]?.("online", this.#nudge);
    globalThis[how]?.("offline", this.#nudge);
    globalThis.document?.[how]("visibilitychange", this.#nudge);
  }

  /** The network came or went, or the page has become visible. */
  #nudge = ({ type }) => {
    if (type === "visibilitychange" && document.hidden) return;
    if (this.#state === "open") this.#probe(this.#link);
    else if (this.#state === "waiting" && type !== "offline" && !this.#isWaitRequested) {
      this.#detach(this.#dial());
    }
  };

  // --- resuming

  /** Request missed messages. */
  #resume(link, rooms, { session, attempt = 1, timeout = RESUME_TIMEOUT } = {}) {
    const data = { session, rooms: this.#positions.ask(rooms) };
    for (const room of rooms) {
      link.resuming.add(room);
      this.#reorder.take(room);
    }
    const answered = (answer) => {
      for (const room of rooms) {
        const found = answer.rooms?.[room] ?? { recovered: false };
        if (isPassing(found)) {
          this.#fillGapLater(link, room, backoff(attempt), attempt);
        } else {
          link.resuming.delete(room);
          this.#resumed(link, room, found);
        }
      }
    };
    return this.#ask(link, "system:resume", data, { answered, timeout });
  }

  /** Resume the session and the rooms; abandons the link if the hub can't do it now. */
  async #resumeAll(link, rooms) {
    try {
      // The replay may take any time: the link has a deadline of its own for silence.
      await this.#resume(link, rooms, { session: this.#session, timeout: Infinity });
    } catch (error) {
      if (link !== this.#link) return;
      if (isPassing(error)) this.#abandon(link);
      else await this.#rejoin(link, rooms);
    }
  }

  /** The hub knows no resume: join the rooms, and report that messages may be lost. */
  async #rejoin(link, rooms) {
    link.resuming.clear();
    const joins = rooms.map((room) => {
      const answered = (answer) => this.#resumed(link, room, { ...answer, recovered: false });
      return this.#ask(link, "system:join", { room }, { answered, timeout: Infinity }).catch(
        ({ code }) => link === this.#link && this.#resumed(link, room, { code }),
      );
    });
    await Promise.all(joins);
  }

  #resumed(link, room, { recovered, epoch, offset, code }) {
    if (!this.#positions.has(room)) {
      // Left meanwhile: the hub has joined the client all the same.
      const isIn = code === undefined && this.#left.has(room);
      if (isIn) this.#ask(link, "system:leave", { room }).catch(() => {});
      return;
    }
    const now = { epoch, offset };
    const aside = this.#reorder.take(room);
    if (recovered) {
      // All messages for this client came before this answer.
      if (this.#positions.join(room, now) === "gap") this.#takeBuffered(link, room, aside, now);
      return;
    }
    for (const replay of this.#positions.replays(room)) replay.lost = true;
    if (code !== undefined) this.#positions.forget(room);
    else this.#positions.set(room, now);
    this.#tellLost(room, { ...now, code });
  }

  /** Request the messages that are missing in a room. */
  async #fillGap(link, room, attempt = 1) {
    if (link.resuming.has(room) || this.#left.has(room)) return;
    const [replay] = this.#positions.replays(room);
    if (replay !== undefined) {
      replay.behind = true; // the replay brings them, or they are requested after it
      return;
    }
    try {
      await this.#resume(link, [room], { attempt });
    } catch (error) {
      if (link !== this.#link) return;
      if (isPassing(error)) {
        const wait = requestedWait(error.retryAfter) ?? backoff(attempt);
        this.#fillGapLater(link, room, wait, attempt);
      } else {
        link.resuming.delete(room);
        this.#reorder.take(room);
        if (!this.#positions.has(room)) return; // left meanwhile
        this.#positions.set(room);
        this.#tellLost(room, {});
      }
    }
  }

  /** Request later. The room stays in `resuming` until then: no further message requests. */
  #fillGapLater(link, room, seconds, attempt) {
    link.later(seconds, () => {
      link.resuming.delete(room);
      if (this.#positions.has(room)) this.#detach(this.#fillGap(link, room, attempt + 1));
    });
  }

  /** Send a request of the client itself: it ends with the link, and bypasses the outbox. */
  #ask(link, topic, data, { answered = () => {}, timeout = RESUME_TIMEOUT } = {}) {
    const id = this.#nextId();
    return new Promise((resolve, reject) => {
      const late = () => {
        link.asks.delete(id);
        reject(noAnswer(topic));
      };
      const alarm = timeout < Infinity ? link.later(timeout, late) : 0;
      link.asks.set(id, { resolve, reject, answered, alarm });
      this.#write(link, JSON.stringify({ id, topic, data, ack: true }));
    });
  }

  // --- receiving

  #receive(link, text) {
    link.heard = true;
    clearTimeout(link.timers.probe);
    link.timers.probe = 0;
    const message = parse(text);
    if (message === null) {
      this.#report(new EyewallError("invalid_envelope", "the hub sent a malformed envelope"));
      return;
    }
    try {
      this.#take(link, message, text.length);
    } catch (error) {
      this.#report(error); // the hub violates the protocol
    }
  }

  #take(link, message, size) {
    const { topic, event, data } = message;
    if ((event === "ack" || event === "error") && this.#isAnswer(link, message)) return;
    if (topic === "system:welcome") this.#detach(this.#welcome(link, data));
    else if (topic === "system:draining") this.#drains(link, requestedWait(data.reconnect_in));
    else if (topic === "system:gap") this.#gap(link, data);
    else this.#deliver(link, message, size);
  }

  /**
   * Take an answer; false for a message of the application.
   *
   * The event does not tell: applications may have an `ack` and an `error` too. An answer names a
   * request in flight; or, having no id, as only answers have none, a request whose caller does
   * not wait any more. An error of that kind may be about a `send`, or the application's.
   */
  #isAnswer(link, { id, topic, event, ref, data }) {
    const named = event === "ack" ? (data?.message_id ?? ref) : ref;
    if (link.asks.has(named) || this.#pending.has(named)) {
      this.#answered(link, named, data ?? {}, event);
      return true;
    }
    if (event === "ack") return topic === undefined || (id === undefined && named !== undefined);
    const isHubs = isSystem(topic);
    if (data?.code !== undefined && (id === undefined || isHubs)) this.#report(refusal(data));
    return isHubs;
  }

  #answered(link, id, data, event) {
    const ask = link.asks.get(id);
    const request = this.#pending.get(id);
    if (ask !== undefined) {
      link.asks.delete(id);
      link.cancel(ask.alarm);
    }
    if (event === "error" || data.status === "nack") {
      this.#refused(link, ask, request, refusal(data));
    } else if (ask !== undefined) {
      ask.answered(data);
      ask.resolve(data);
    } else {
      this.#resolve(request, data);
    }
  }

  #refused(link, ask, request, error) {
    if (ask !== undefined) {
      ask.reject(error);
    } else if (link.draining === null || error.code !== "overloaded") {
      this.#reject(request, error, { isAsBefore: error.code !== "not_a_member" });
    } // else the hub drains: the request is retransmitted to the next one
  }

  #drains(link, seconds) {
    if (seconds === null) return;
    link.draining = seconds;
    this.#setState(this.#state, { draining: seconds });
  }

  #gap(link, { room, epoch, offset }) {
    if (this.#left.has(room)) return;
    if (!this.#positions.has(room)) this.#positions.set(room, { epoch, offset });
    this.#detach(this.#fillGap(link, room));
  }

  #deliver(link, message, size) {
    const { topic, data, stream, ack } = message;
    if (topic === "system:kicked") this.#forgetRoom(data.room);
    const isPlaced = typeof stream?.room === "string" && !this.#left.has(stream.room);
    // A message that asks for an ack is no replayed one: those ask for none.
    const fate = isPlaced ? this.#positions.take(stream, ack === true) : "next";
    if (fate === "gap") this.#bufferOrRequest(link, message, size);
    else if (fate === "repeat") this.#ackDuplicate(link, message);
    else {
      if (fate === "changed") this.#tellLost(stream.room, stream);
      this.#handleOnce(link, message, isPlaced);
    }
  }

  /** Buffer a message behind a gap, or request the missing ones. */
  #bufferOrRequest(link, message, size) {
    const { id, stream, ack } = message;
    // The message comes again from the history, and asks for no ack then.
    if (this.#handled.get(id) !== undefined) this.#ackDuplicate(link, message);
    else if (ack && id !== undefined) this.#deferredAcks.add(id, link);
    const isSent = link.resuming.has(stream.room) || this.#positions.replays(stream.room).length;
    if (isSent) this.#reorder.keep(stream, message, size);
    else this.#detach(this.#fillGap(link, stream.room));
  }

  /** Handle a message, unless its id was handled before. */
  #handleOnce(link, message, isPlaced = true) {
    const { id, stream } = message;
    const isNew = isPlaced && this.#positions.isReplayed(stream);
    if (!isNew && id !== undefined && this.#handled.get(id) !== undefined) {
      this.#ackDuplicate(link, message);
    } else {
      this.#detach(this.#handle(link, message));
    }
  }

  async #handle(link, message) {
    const { id, ack } = message;
    const owed = this.#deferredAcks.take(id) ?? null;
    const handling = { answer: null, link: ack ? link : owed };
    if (id !== undefined) this.#handled.add(id, handling);
    handling.answer = await this.#run(message);
    if (handling.link !== null) this.#write(handling.link, handling.answer);
  }

  /** Run the handlers; returns the ack. */
  async #run(message) {
    const full = { event: "message", data: null, ...message };
    const handlers = this.#handlers.all.filter(({ pattern }) => matches(pattern, message.topic));
    // All handlers start in this step, so that messages are started in their order.
    const begin = async (one) => (one.isOver ? undefined : one.callback(full));
    const done = await Promise.allSettled(handlers.map(begin));
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

  /** Ack a duplicate: now, or when the message has been handled. */
  #ackDuplicate(link, message) {
    if (!message.ack) return;
    const handling = this.#handled.get(message.id) ?? { answer: ackTo(message, { status: "ok" }) };
    if (handling.answer === null) handling.link = link;
    else this.#write(link, handling.answer);
  }
}
