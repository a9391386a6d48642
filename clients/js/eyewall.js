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
 * 3. A place in a room's stream is looked at and moved in one step, without waiting. What
 *    comes ahead of its turn, while an answer is awaited before which everything is sent, is
 *    kept aside until then: what is missing yet was not for us.
 * 4. No promise that is started here is left alone: what fails is reported.
 * 5. A token, and an address with one, stands in no error's text.
 * 6. Who was not let in stays away until there is another token: a callback is asked for one
 *    once more, `setToken` gives one. What waited has failed by then.
 * 7. A message of one user is never sent as another user: when the hub welcomes the client as
 *    another user than before, messages and requests from before `setToken` fail.
 *
 * Times are seconds, as everywhere in the protocol.
 */

const PROTOCOL = "eyewall.v1.json";
const OPEN = 1; // a WebSocket's readyState
const TYPING = 5; // seconds for which the hub takes somebody to type, unless it is told otherwise
const TOKEN_EXPIRED = 4401;
const AUTH_FAILED = 4504;

const FIRST_WAIT = 0.5; // the first try comes within this time
const LONGEST_WAIT = 30;
const SETTLED = 5; // a connection that lives so long starts the waits afresh
const HANDSHAKE = 10; // for the token, the handshake and each sign of life while resuming
const QUIET = 15; // never ask for a sign of life more often than this
const HEARTBEAT = 25; // where the hub does not say how often it pings
const TOKEN_MARGIN = 10; // a token that ends sooner is not taken along any more
const REFRESH_AT = 0.8; // of the time that a token has left
const REFRESH_PAUSE = 15; // at least, between two tries; twice as long after each of no use
const REFRESH_DOUBLINGS = 4;
const PATIENCE = 60; // for an answer to the client itself: the whole replay comes before it
const LATE = 1; // a timer that rings so much later says that this machine stood still
const GRACE = 2; // for reading what came in the meantime
const LONGEST_ASKED = 3600; // a hub that wants to be left alone for longer is mistaken
const LONGEST_TIMER = 2 ** 31 - 1; // milliseconds; beyond it a timer rings at once

const IN_FLIGHT = 256; // requests without an answer: as many as a hub remembers of a session
const OUTBOX = 256; // messages that wait for the connection: some minutes of somebody typing
const SEEN = 1024; // ids of handled messages: more than a hub repeats at once after a cut
const ASIDE = 256; // messages kept aside: what a hub may have had in its queue before a replay
const ASIDE_SIZE = 8 * 2 ** 20; // characters of them, for the same reason
const MAX_BUFFERED = 16 * 2 ** 20; // bytes held back by the socket: 16 of the largest messages
const LONGEST_ERROR = 500; // characters of a handler's error that go into a nack

// --- what went wrong

/** What the hub refused, or what could not be done; `code` is the protocol's. */
export class EyewallError extends Error {
  name = "EyewallError";

  /** @param {object} data of the refusal: `code`, `error`, and what stands beside them */
  constructor(code, text, data = {}) {
    super(text || complaint(code, data.fields));
    this.code = code;
    this.fields = data.fields;
    this.retryAfter = data.retry_after;
    this.data = data;
  }
}

/** What stands in for a text: the code, and the fields that are named beside it. */
function complaint(code, fields) {
  const names = fields !== null && typeof fields === "object" ? Object.keys(fields) : [];
  return names.length ? `${code}: ${names.slice(0, 8).join(", ").slice(0, LONGEST_ERROR)}` : code;
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

  /** Return what is there, and forget it. */
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

  /** Empty it, and return what was in it. */
  take() {
    return this.#waiting.splice(0);
  }
}

/**
 * What came ahead of its turn, by room: taken when everything before it has been sent.
 *
 * It is bounded, over all rooms; `missing` is the first place that there was no room for.
 */
export class Aside {
  #rooms = new Map();
  #count = 0;
  #size = 0;

  keep({ room, epoch, offset }, message, size) {
    const kept = this.#rooms.get(room) ?? { messages: new Map(), missing: Infinity };
    this.#rooms.set(room, kept);
    if (kept.messages.has(offset)) return;
    if (this.#count >= ASIDE || this.#size + size > ASIDE_SIZE) {
      kept.missing = Math.min(kept.missing, offset);
      return;
    }
    kept.messages.set(offset, { epoch, offset, message, size });
    this.#count += 1;
    this.#size += size;
  }

  /** Let go of a room's; @returns them in their order */
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
 * A `join` that asks for what was said before, from the asking to the answer.
 *
 * What comes may have been handled before, and is wanted again. Something live may come first,
 * where we are in the room already: the replay is known by its first message, which stands
 * before all that has come since. After a cut we go on from where we are, and ask from `since`
 * again only where nothing has come; whether that was all is then for us to say.
 */
export class Replay {
  begun = false;
  lost = false; // whether something of it is gone for good
  behind = false; // whether the hub has told of a gap meanwhile
  progress = 0; // messages that have come since
  #since;
  #first = null;
  #resent = false;

  constructor(since) {
    const isPlace = since !== null && typeof since === "object";
    this.#since = isPlace ? { epoch: since.epoch, offset: since.offset } : since;
  }

  /** Whether a message where we have been already is the first of the replay. */
  beginsWith({ epoch, offset }) {
    return this.#first === null || this.#first.epoch !== epoch || offset < this.#first.offset;
  }

  /** A message was let through; `begins`: it is the first of the replay. */
  came({ epoch, offset }, begins = false) {
    this.progress += 1;
    if (begins || this.#first === null) this.#first = { epoch, offset };
    this.begun ||= begins;
  }

  /** What to ask for from a client that stands at `place`, or nowhere. */
  asks(place) {
    if (this.begun && place !== null) {
      this.#resent = true;
      return place;
    }
    this.begun = this.lost = this.#resent = false;
    this.#first = null;
    return this.#since;
  }

  /** Whether all that was asked for has come. */
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
 * The rooms that this client is in, and how far it has come in each.
 *
 * A room that keeps no history has no place: null.
 */
export class Positions {
  #places = new Map();
  #replays = new Map(); // room -> the joins that ask for what was said before, oldest first
  #replayed = new Map(); // room -> up to where messages are taken by their place alone

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
    this.#replayed.delete(room);
  }

  /** A join asks for what was said before; `over` has to follow. */
  want(room, replay) {
    this.#replays.set(room, [...this.replays(room), replay]);
  }

  /** What the hub is sending, or is to send, one after the other. */
  replays(room) {
    return this.#replays.get(room) ?? [];
  }

  /**
   * Nothing more comes of it, but for what stands up to `place`.
   *
   * @returns whether it was under way
   */
  over(room, replay, place) {
    const all = this.replays(room);
    const rest = all.filter((other) => other !== replay);
    if (rest.length) this.#replays.set(room, rest);
    else this.#replays.delete(room);
    if (place !== undefined && rest.length < all.length) this.#replayed.set(room, place);
    return rest.length < all.length;
  }

  /** Whether a message was asked for by a replay: then it is new, whatever became of its id. */
  isWantedAgain({ room, epoch, offset }) {
    const upto = this.#replayed.get(room);
    return this.#replays.has(room) || (upto?.epoch === epoch && offset <= upto.offset);
  }

  /** What `system:resume` wants to know of these rooms. */
  ask(rooms = this.rooms) {
    return Object.fromEntries(rooms.map((room) => [room, this.get(room) ?? {}]));
  }

  /**
   * A message of a stream has come; move on to it unless it is a repeat or a gap is before it.
   *
   * `first`: nothing was known of this room. `changed`: the stream is another one, and what
   * came before this message may have been missed. `again`: a replay begins, and we go back.
   * @param {boolean} isLive it is of no replay
   * @returns {"next" | "first" | "changed" | "again" | "repeat" | "gap"}
   */
  take({ room, epoch, offset }, isLive = false) {
    const place = this.get(room);
    const isKnown = place?.epoch === epoch;
    const [replay] = this.replays(room);
    const isBack = isKnown && offset <= place.offset;
    if (isBack && (isLive || !replay?.beginsWith({ epoch, offset }))) return "repeat";
    // One that asks for an ack may overtake the replay, which brings it again.
    if (!isKnown && isLive && replay?.begun === false) return "gap";
    replay?.came({ epoch, offset }, isBack || !isKnown);
    if (isKnown && offset > place.offset + 1) return "gap";
    this.set(room, { epoch, offset });
    if (isBack) return "again";
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

/**
 * Call back after some seconds, and not before what came while this machine stood still is read.
 *
 * @param {(timer: any) => void} keep is given each timer, so that it can be cleared
 */
function patiently(seconds, keep, callback) {
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
/** For what can't be sent any more; `cause` is why the connection has ended. */
function closedError(cause = null) {
  if (cause?.code === "connection_closed") return cause;
  const why = cause === null ? "" : `: ${cause.message}`;
  const error = new EyewallError("connection_closed", `the connection is closed${why}`);
  return Object.assign(error, { cause });
}

/** What an end means. `status` is HTTP's, of a handshake that failed, where it is known. */
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

/** Whether it says that a client was not let in, as opposed to: no hub there. */
function isRefusal(error) {
  return error instanceof EyewallError && ["unauthorized", "forbidden"].includes(error.code);
}

/** The envelope in a frame; null if there is none. */
function parse(text) {
  try {
    const message = JSON.parse(text);
    return typeof message?.topic === "string" || message?.event === "ack" ? message : null;
  } catch {
    return null;
  }
}

const isSystem = (topic) => topic.startsWith("system:");

/** Seconds that the hub asked for; null for what is no such number. */
function askedWait(seconds) {
  return Number.isFinite(seconds) && seconds >= 0 ? Math.min(seconds, LONGEST_ASKED) : null;
}

/** What went wrong, in words; a handler may throw anything. */
function textOf(error) {
  try {
    return String(error?.message ?? error);
  } catch {
    return "the handler failed";
  }
}

/** A token without the line's end of the file that it was in; throws a TypeError without it. */
function plainToken(token) {
  if (token === null || token === undefined) return null;
  if (typeof token !== "string") throw new TypeError("a token must be a text");
  const text = token.trim();
  if (/[\u0000-\u001f\u007f-\u009f]/.test(text)) {
    throw new TypeError("a token must have no control characters");
  }
  return text;
}

/** The address of a hub's socket; throws a TypeError without it: it may hold a token. */
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

/** An error that quotes no token: a WebSocket that can't be made may name its address. */
function discreet(error) {
  const text = textOf(error);
  const shown = text
    .replace(/\/\/[^/?#\s"']*@/g, "//***@")
    .replace(/([?&][^=&#\s"']*=)[^&#\s"']*/g, "$1***");
  if (shown === text) return error;
  if (error instanceof EyewallError) return new EyewallError(error.code, shown);
  return Object.assign(new Error(shown), { name: error.name });
}

/**
 * A token, and how long it has left, counted from when it came.
 *
 * Of the two clocks the one that says less is believed: one stands still while the machine
 * sleeps, and the other may be set. An end that has passed when the token comes says only
 * that the clock is wrong: then nobody knows it, and the hub says when it is over.
 */
class Token {
  #lasts; // seconds
  #wall = Date.now();
  #ticks = performance.now();

  /** @param {any} given a token, or one with its end as token endpoints name it */
  constructor(given) {
    const fields = given !== null && typeof given === "object" ? given : { token: given ?? null };
    if (fields.token === undefined) throw new TypeError("there is no `token` in what came for one");
    this.text = plainToken(fields.token);
    const seconds = fields.expires_in ?? fields.expiresIn;
    if (Number.isFinite(seconds)) this.#lasts = seconds;
    else this.endsAt(fields.expires_at ?? fields.expiresAt);
  }

  /** Seconds; undefined where nobody knows. */
  get left() {
    if (this.#lasts === undefined) return undefined;
    return this.#lasts - Math.max(Date.now() - this.#wall, performance.now() - this.#ticks) / 1000;
  }

  /** Take in its end, if it is not known. */
  endsAt(date) {
    const seconds = date ? (new Date(date).getTime() - this.#wall) / 1000 : NaN;
    if (this.#lasts === undefined && seconds > 0) this.#lasts = seconds;
  }
}

/** Registrations: each is one of its own, also of a function that is there already. */
class Callbacks {
  #all = []; // replaced and never changed, for whoever is going through it

  /** @returns how to end it */
  add(callback, pattern = null) {
    const one = { callback, pattern, isOver: false };
    this.#all = [...this.#all, one];
    return () => this.#end(one);
  }

  /** End the last one of a function. */
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

/** Whether it may go better in a moment. */
function isPassing({ code }) {
  return ["unavailable", "overloaded", "rate_limited", "internal", "ack_timeout"].includes(code);
}

/** Whether a request is about one connection: on another its old answer would be of no use. */
function isOfConnection({ topic }) {
  return isSystem(topic) && topic !== "system:publish";
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
  shown = null; // the token that it came with
  generation = 0; // of the source of that token
  refreshes = null; // tries to renew the token in a row that were of no use; null before the first
  timers = {}; // deadline, settled, watch, probe, refresh
  #alarms = new Set(); // the timers without a name

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
  #generation = 0; // how many times the token source was replaced
  #token = null; // the last one that the callback gave
  #unwanted = null; // {token, code, reason, error} of the refusal after which it is asked once more
  #lastError = null;
  #state = "closed";
  #link = null;
  #welcomed = null; // the last link that was welcomed; null when no message of its user waits
  #session = null; // the one to be resumed
  #attempt = 0;
  #retry = 0;
  #asked = false; // whether the hub named the time that is waited for
  #prefix = newId();
  #count = 0;
  #pending = new Map(); // id -> request, in the order in which they were made
  #outbox;
  #positions = new Positions();
  #aside = new Aside();
  #typed = null; // {room, ttl, id, at} of the last word that somebody types
  #left = new Set(); // rooms that the application wants to be out of, until the hub says so too
  #seen = new Recent(SEEN); // id -> {answer, link}: what became of it, and who waits for that
  #owed = new Recent(SEEN); // id -> link: asked for an ack ahead of its turn, and comes again
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

  /** Connect now: the first time, after the end, or instead of waiting any longer. */
  connect() {
    if (this.#link !== null) return;
    this.#unwanted = null;
    if (this.#state === "closed") this.#watchBrowser("addEventListener");
    this.#letRun(this.#dial());
  }

  /** Why the client waits or is closed, as an EyewallError; null while all is well. */
  get lastError() {
    return this.#lastError;
  }

  /**
   * Show this token from now on, or what this function gives.
   *
   * A client that was not let in comes back with it. Where the connection is open it is shown
   * there: a token of the same user renews the old one without a cut.
   */
  setToken(token) {
    this.#tokens = typeof token === "function" ? token : plainToken(token);
    this.#generation += 1;
    this.#token = null;
    this.#unwanted = null;
    if (this.#state === "closed" && isRefusal(this.#lastError)) this.connect();
    else if (this.#link?.open) this.#showToken(this.#link);
  }

  /** Leave for good, with all rooms; what was not answered is rejected. */
  close() {
    const link = this.#link;
    // After a refusal, too: then no token brings it back any more.
    if (this.#state !== "closed") this.#lastError = closedError();
    else if (isRefusal(this.#lastError)) this.#lastError = closedError(this.#lastError);
    this.#release();
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

  /** Hand messages of a topic, or of a `prefix:*`, to `handler`; returns how to undo it. */
  on(topic, handler) {
    return this.#handlers.add(handler, topic);
  }

  /** Undo the last registration of `handler` for this topic. */
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
        console.error(error); // of a callback, and not for it: it might be the one for errors
      }
    }
  }

  /** Something failed that nobody waits for. */
  #report(error) {
    if (this.#listeners.error.all.length) this.#tell("error", error);
    else console.error(error);
  }

  /** Go on without waiting for it. */
  #letRun(work) {
    work.catch((error) => this.#report(error));
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
    return this.#request(topic, data, options);
  }

  /**
   * What it means is done in the very step in which it is known: `begun` when it is sent or
   * will be, `answered` with the answer, `failed` when none comes, or a refusal. `failed` hears
   * whether all is as it was before. `renew` gives the data to ask with on a further connection.
   * The time begins anew when `progress` has changed in it.
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
      request.sent = this.#go(request.text, request);
    } catch (error) {
      this.#pending.delete(id);
      failed?.(this.#isReady);
      throw error;
    }
    const abort = () => this.#reject(request, signal.reason);
    signal?.addEventListener("abort", abort);
    let timer = 0;
    let seen = progress?.();
    const wait = () => patiently(timeout, (kept) => (timer = kept), late);
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

  /** Whether what is sent now may leave now: a hub that drains takes on nothing new. */
  get #isReady() {
    const link = this.#link;
    return Boolean(link?.open) && link.draining === null && link.socket.readyState === OPEN;
  }

  /** Send now or when there is a connection again; returns whether it has left. */
  #go(text, key) {
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
    // One that is just closing will say so: whoever waits for an answer then asks again.
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

  // --- rooms, presence, history: the hub's own requests

  /** With `since` the handlers first get what the room keeps from there. */
  join(room, { since, ...options } = {}) {
    if (since !== undefined && since !== null) return this.#joinSince(room, since, options);
    return this.#request("system:join", { room }, options, {
      begun: () => this.#left.delete(room),
      answered: (answer) => this.#joined(room, answer),
    });
  }

  #joinSince(room, since, options) {
    const replay = new Replay(since);
    const asks = (place) => ({ room, since: replay.asks(place) });
    return this.#request("system:join", asks(null), options, {
      begun: () => {
        this.#left.delete(room);
        this.#positions.want(room, replay);
      },
      answered: (answer) => this.#replayed(room, replay, answer),
      failed: () => this.#notReplayed(room, replay),
      renew: () => asks(this.#positions.get(room)),
      progress: () => replay.progress,
    });
  }

  /** All that is kept was sent before this answer, and all that was said meanwhile. */
  #replayed(room, replay, answer) {
    const { epoch, offset } = answer;
    const aside = this.#aside.take(room);
    const place = this.#positions.get(room);
    answer.recovered = replay.isWhole(answer);
    this.#positions.over(room, replay, epoch === undefined ? undefined : { epoch, offset });
    if (epoch !== undefined && place?.epoch === epoch) {
      this.#fill(this.#link, room, aside, { epoch, offset });
    } else if (epoch !== undefined || place === null) {
      this.#positions.set(room, answer);
    }
    if (replay.behind) this.#letRun(this.#catchUp(this.#link, room));
  }

  /** No answer is heard any more; what comes of it all the same is wanted. */
  #notReplayed(room, replay) {
    const place = this.#positions.get(room);
    const upto = place && replay.begun ? { ...place, offset: Number.MAX_SAFE_INTEGER } : undefined;
    if (!this.#positions.over(room, replay, upto) || place === null) return;
    if (!this.#link?.open || this.#link.resuming.has(room)) return;
    const { messages, missing } = this.#aside.take(room);
    if (replay.behind || messages.length || missing < Infinity) {
      this.#letRun(this.#catchUp(this.#link, room));
    }
  }

  /** Everything up to `now` has been sent: take what was kept aside, as far as it goes. */
  #fill(link, room, { messages, missing }, now) {
    const upto = Math.min(now.offset, missing - 1);
    for (const { epoch, offset, message } of messages) {
      const place = this.#positions.get(room);
      if (place?.epoch !== now.epoch || epoch !== now.epoch || offset > upto) break;
      if (offset <= place.offset) continue;
      this.#positions.set(room, { epoch, offset });
      this.#pass(link, message);
    }
    const place = this.#positions.get(room);
    if (place?.epoch !== now.epoch || place.offset >= now.offset) return;
    this.#positions.set(room, { epoch: now.epoch, offset: Math.max(place.offset, upto) });
    if (upto < now.offset) this.#letRun(this.#catchUp(link, room));
  }

  /** The room is left whether or not the hub answers, unless it refuses. */
  leave(room, options = {}) {
    const left = this.#request("system:leave", { room }, options, {
      begun: () => {
        this.#left.add(room);
        this.#typed = null;
      },
      answered: () => this.#isOut(room),
      failed: (isAsBefore) => {
        if (isAsBefore) this.#left.delete(room);
        else this.#positions.forget(room);
      },
    });
    left.catch(() => {}); // it is nothing that has to be known
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

  /** At every key stroke, if you like: what was said less than half its ttl ago is not sent. */
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

  /** The hub says that we are in none, or not any more. */
  #isOut(room) {
    if (this.#typed?.room === room) this.#typed = null;
    this.#positions.forget(room);
    this.#left.delete(room);
  }

  /** Called with the answer, before any message that follows it. */
  #joined(room, answer) {
    const found = this.#positions.join(room, answer);
    if (found === "gap") this.#letRun(this.#catchUp(this.#link, room));
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
    if (link !== this.#link) return; // whoever was told has closed it
    try {
      const url = await this.#address(link);
      if (link === this.#link) this.#plug(link, url);
    } catch (error) {
      if (link !== this.#link) return;
      const cause = discreet(error);
      if (!isRefusal(cause)) this.#report(cause);
      this.#closed(link, 1006, "", { cause });
    }
  }

  #plug(link, url) {
    const socket = new this.#WebSocket(url, PROTOCOL);
    link.socket = socket;
    socket.onmessage = ({ data }) => link === this.#link && this.#receive(link, data);
    socket.onclose = ({ code, reason }) => this.#closed(link, code, reason);
    // Node's own says nothing more of a handshake that failed; elsewhere its close follows.
    socket.onerror = () => link.welcome === null && this.#giveUp(link);
    // Only `ws`, for Node, tells what the hub answered instead.
    socket.on?.("unexpected-response", (_, { statusCode: status, headers }) => {
      const asked = headers?.["retry-after"];
      const wait = /^\d{1,9}$/.test(asked) ? askedWait(Number(asked)) : null;
      this.#closed(link, 1006, "", { status, wait });
      socket.close();
    });
  }

  /** Give up a link that has stayed silent for too long on its way to being open. */
  #expect(link) {
    link.heard = false;
    const look = () => (link.heard ? this.#expect(link) : this.#giveUp(link));
    this.#inTime(link, "deadline", look);
  }

  /** Look after the time for a sign of life, and not before all that has come is read. */
  #inTime(link, name, look) {
    patiently(HANDSHAKE, (timer) => (link.timers[name] = timer), look);
  }

  async #welcome(link, welcome) {
    if (link.welcome !== null) return;
    link.welcome = welcome;
    this.userId = welcome.user_id;
    this.connId = welcome.conn_id;
    this.#checkUser(link);
    if (link !== this.#link) return; // the application was told, and has closed it
    const rooms = this.#stillIn();
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
   * The rooms to be in on a new connection. One that is being left is only if something that
   * was asked before is still to be done there.
   */
  #stillIn() {
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
    this.#unwanted = null;
    link.timers.settled = later(SETTLED, () => (this.#attempt = 0));
    const quiet = Math.max(QUIET, heartbeat || HEARTBEAT);
    link.timers.watch = setInterval(() => this.#watch(link), quiet * 1000);
    if (link.generation === this.#generation) this.#planRefresh(link);
    else this.#showToken(link); // another one has been given meanwhile
    if (this.#isReady) this.#sendAgain(link);
    this.#become("open", link.draining === null ? {} : { draining: link.draining });
  }

  #sendAgain(link) {
    const requests = [...this.#pending.values()];
    this.#pending.clear(); // those with a new id keep their turn all the same
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

  #giveUp(link) {
    if (link !== this.#link) return;
    this.#closed(link, 1006, "");
    link.socket?.close(); // which may take minutes: nobody waits for it
  }

  #closed(link, code, reason, { status, wait = null, cause = null } = {}) {
    if (link !== this.#link) return;
    this.#release();
    const isWelcomed = link.welcome !== null;
    const gaveUp = isRefusal(cause); // the token's callback: it knows
    const error = gaveUp ? cause : errorOf({ code, reason, status, cause, isWelcomed });
    if (gaveUp && cause === this.#unwanted?.error) ({ code, reason } = this.#unwanted);
    this.#lastError = error;
    // A browser does not tell why a handshake failed: it may have been the token.
    if (!isWelcomed || isRefusal(error)) this.#token = null;
    const staysAway = isRefusal(error)
      ? !this.#hasAnotherToken(link, { code, reason, error, gaveUp })
      : !comesBack(code);
    if (staysAway) {
      this.#end({ code, reason });
      return;
    }
    this.#asked = link.draining !== null || wait !== null;
    // A hub that drains spreads its clients over time; one that is full does not.
    const delay = link.draining ?? (wait ?? 0) + backoff(this.#attempt++);
    const at = Date.now() + delay * 1000;
    this.#retry = later(delay, () => this.#letRun(this.#dial()));
    this.#become("waiting", { delay, at, asked: this.#asked, code, reason });
  }

  /** Whether there may be a token that was not refused; a callback is asked once more. */
  #hasAnotherToken(link, { code, reason, error, gaveUp }) {
    if (link.generation !== this.#generation) return true;
    if (gaveUp || error.code === "forbidden") return false;
    if (code === TOKEN_EXPIRED) return typeof this.#tokens !== "string";
    if (typeof this.#tokens !== "function") return false;
    if (this.#unwanted !== null) return false;
    this.#unwanted = { token: link.shown, code, reason, error };
    return true;
  }

  /** Let go of the link; what the client itself has asked there, nobody waits for any more. */
  #release() {
    clearTimeout(this.#retry);
    this.#typed = null; // a cut ends it
    this.#link?.end();
    this.#link = null;
    this.#aside = new Aside();
    this.#owed = new Recent(SEEN);
  }

  #end(info) {
    if (this.#state === "closed") return;
    this.#watchBrowser("removeEventListener");
    this.#welcomed = null;
    const unsent = this.#outbox.take().filter(({ key }) => key === null).length;
    const requests = [...this.#pending.values()];
    this.#become("closed", info);
    for (const request of requests) this.#reject(request, closedError(this.#lastError));
    if (unsent) this.#report(new EyewallError("connection_closed", `${unsent} not sent`));
  }

  // --- the token

  async #address(link) {
    const url = new URL(this.#url);
    const token = await this.#tokenFor(link);
    // No header can be set from a browser.
    if (token) url.searchParams.set("token", token);
    return url.href;
  }

  /** The token to show: what is given while another one is asked for has the last word. */
  async #tokenFor(link) {
    do {
      link.generation = this.#generation;
      const isAsked = typeof this.#tokens === "function";
      // Also a text is waited for: of two that are given at once it is the last that counts.
      link.shown = await (isAsked ? this.#freshToken(link) : this.#tokens);
    } while (link.generation !== this.#generation);
    if (this.#unwanted?.token === link.shown) throw this.#unwanted.error;
    return link.shown;
  }

  async #freshToken(link) {
    if (this.#token !== null && !(this.#token.left < TOKEN_MARGIN)) return this.#token.text;
    const fresh = new Token(await this.#tokens());
    if (link !== this.#link) throw closedError(); // it took too long: another try has begun
    if (link.generation === this.#generation) this.#token = fresh;
    return fresh.text;
  }

  /** Show what the application has just given in the connection that is there. */
  #showToken(link) {
    clearTimeout(link.timers.refresh);
    if (this.#tokens !== null) this.#letRun(this.#refresh(link));
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
    link.timers.refresh = later(wait, () => this.#letRun(this.#refresh(link)));
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
      this.#report(error); // and try again, until the hub says 4401
    }
    this.#planRefresh(link);
  }

  /** What the callback gives, unless it takes too long. */
  #inPatience(link, seconds, work) {
    return new Promise((resolve, reject) => {
      const late = () => reject(new EyewallError("unavailable", "no token came in time"));
      const alarm = link.later(seconds, late);
      Promise.resolve(work)
        .then(resolve, reject)
        .finally(() => link.cancel(alarm));
    });
  }

  // --- signs of life: a page sees nothing of the hub's pings

  #watch(link) {
    if (!link.heard) this.#probe(link);
    link.heard = false;
  }

  /** Ask for any answer at all; a refusal is one, too. */
  #probe(link) {
    if (link.timers.probe) return;
    this.#inTime(link, "probe", () => this.#giveUp(link));
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
    else if (this.#state === "waiting" && type !== "offline" && !this.#asked) {
      this.#letRun(this.#dial());
    }
  };

  // --- resuming

  /** Ask for what was missed. */
  #resume(link, rooms, { session, attempt = 1, patience = PATIENCE } = {}) {
    const data = { session, rooms: this.#positions.ask(rooms) };
    for (const room of rooms) {
      link.resuming.add(room);
      this.#aside.take(room);
    }
    const answered = (answer) => {
      for (const room of rooms) {
        const found = answer.rooms?.[room] ?? { recovered: false };
        if (isPassing(found)) {
          this.#catchUpLater(link, room, backoff(attempt), attempt);
        } else {
          link.resuming.delete(room);
          this.#resumed(link, room, found);
        }
      }
    };
    return this.#ask(link, "system:resume", data, { answered, patience });
  }

  /** Take the session and the rooms up again; gives the link up if it is of no use. */
  async #resumeAll(link, rooms) {
    try {
      // However long the replay takes: the link has its own deadline for silence.
      await this.#resume(link, rooms, { session: this.#session, patience: Infinity });
    } catch (error) {
      if (link !== this.#link) return;
      if (isPassing(error)) this.#giveUp(link);
      else await this.#rejoin(link, rooms);
    }
  }

  /** Where the hub can't resume: join the plain way, and say that something may be missing. */
  async #rejoin(link, rooms) {
    link.resuming.clear();
    const joins = rooms.map((room) => {
      const answered = (answer) => this.#resumed(link, room, { ...answer, recovered: false });
      return this.#ask(link, "system:join", { room }, { answered, patience: Infinity }).catch(
        ({ code }) => link === this.#link && this.#resumed(link, room, { code }),
      );
    });
    await Promise.all(joins);
  }

  #resumed(link, room, { recovered, epoch, offset, code }) {
    if (!this.#positions.has(room)) {
      // Left meanwhile: the hub has taken us in all the same.
      const isIn = code === undefined && this.#left.has(room);
      if (isIn) this.#ask(link, "system:leave", { room }).catch(() => {});
      return;
    }
    const now = { epoch, offset };
    const aside = this.#aside.take(room);
    if (recovered) {
      // All that was for us came before this answer: what is missing yet, was not for us.
      if (this.#positions.join(room, now) === "gap") this.#fill(link, room, aside, now);
      return;
    }
    for (const replay of this.#positions.replays(room)) replay.lost = true;
    if (code !== undefined) this.#positions.forget(room);
    else this.#positions.set(room, now);
    this.#tellLost(room, { ...now, code });
  }

  /** Messages are missing before the newest of a room: have them sent again. */
  async #catchUp(link, room, attempt = 1) {
    if (link.resuming.has(room) || this.#left.has(room)) return;
    const [replay] = this.#positions.replays(room);
    if (replay !== undefined) {
      replay.behind = true; // what is missing is being sent, or asked for when that is over
      return;
    }
    try {
      await this.#resume(link, [room], { attempt });
    } catch (error) {
      if (link !== this.#link) return;
      if (isPassing(error)) {
        const wait = askedWait(error.retryAfter) ?? backoff(attempt);
        this.#catchUpLater(link, room, wait, attempt);
      } else {
        link.resuming.delete(room);
        this.#aside.take(room);
        if (!this.#positions.has(room)) return; // left meanwhile
        this.#positions.set(room);
        this.#tellLost(room, {});
      }
    }
  }

  /** The room stays marked until then, or each further message of it would ask. */
  #catchUpLater(link, room, seconds, attempt) {
    link.later(seconds, () => {
      link.resuming.delete(room);
      if (this.#positions.has(room)) this.#letRun(this.#catchUp(link, room, attempt + 1));
    });
  }

  /** A request of the client itself: it ends with the link, and waits for nothing else. */
  #ask(link, topic, data, { answered = () => {}, patience = PATIENCE } = {}) {
    const id = this.#nextId();
    return new Promise((resolve, reject) => {
      const late = () => {
        link.asks.delete(id);
        reject(noAnswer(topic));
      };
      const alarm = patience < Infinity ? link.later(patience, late) : 0;
      link.asks.set(id, { resolve, reject, answered, alarm });
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
    try {
      this.#take(link, message, text.length);
    } catch (error) {
      this.#report(error); // of a hub that does not keep to the protocol
    }
  }

  #take(link, message, size) {
    const { topic, event, data } = message;
    if ((event === "ack" || event === "error") && this.#isAnswer(link, message)) return;
    if (topic === "system:welcome") this.#letRun(this.#welcome(link, data));
    else if (topic === "system:draining") this.#drains(link, askedWait(data.reconnect_in));
    else if (topic === "system:gap") this.#gap(link, data);
    else this.#deliver(link, message, size);
  }

  /**
   * Settle what it answers; false for a message that is the application's own.
   *
   * By its event alone it is no answer: applications may have an `ack` and an `error` too. It
   * names a request under way; or, without an id of its own, as only answers are, what nobody
   * waits for any more. An error of that kind may be to a `send`, or the application's.
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
    } // else it was too late for this hub, and goes to the next under its id
  }

  #drains(link, seconds) {
    if (seconds === null) return;
    link.draining = seconds;
    this.#become(this.#state, { draining: seconds });
  }

  #gap(link, { room, epoch, offset }) {
    if (this.#left.has(room)) return;
    if (!this.#positions.has(room)) this.#positions.set(room, { epoch, offset });
    this.#letRun(this.#catchUp(link, room));
  }

  #deliver(link, message, size) {
    const { topic, data, stream, ack } = message;
    if (topic === "system:kicked") this.#isOut(data.room);
    const isPlaced = typeof stream?.room === "string" && !this.#left.has(stream.room);
    // What is kept asks for no ack: one that does is on its way for the first time.
    const fate = isPlaced ? this.#positions.take(stream, ack === true) : "next";
    if (fate === "gap") this.#isEarly(link, message, size);
    else if (fate === "repeat") this.#ackAgain(link, message);
    else {
      if (fate === "changed") this.#tellLost(stream.room, stream);
      this.#pass(link, message, isPlaced);
    }
  }

  /** Something before it is missing: it is being sent already, or is to be asked for. */
  #isEarly(link, message, size) {
    const { id, stream, ack } = message;
    // What comes again is what the room keeps, and asks for no ack.
    if (this.#seen.get(id) !== undefined) this.#ackAgain(link, message);
    else if (ack && id !== undefined) this.#owed.add(id, link);
    const isSent = link.resuming.has(stream.room) || this.#positions.replays(stream.room).length;
    if (isSent) this.#aside.keep(stream, message, size);
    else this.#letRun(this.#catchUp(link, stream.room));
  }

  /** Have a message handled, unless its id says that it has been. */
  #pass(link, message, isPlaced = true) {
    const { id, stream } = message;
    const isNew = isPlaced && this.#positions.isWantedAgain(stream);
    if (!isNew && id !== undefined && this.#seen.get(id) !== undefined) {
      this.#ackAgain(link, message);
    } else {
      this.#letRun(this.#handle(link, message));
    }
  }

  async #handle(link, message) {
    const { id, ack } = message;
    const owed = this.#owed.take(id) ?? null;
    const handling = { answer: null, link: ack ? link : owed };
    if (id !== undefined) this.#seen.add(id, handling);
    handling.answer = await this.#run(message);
    if (handling.link !== null) this.#write(handling.link, handling.answer);
  }

  /** Let the handlers run; returns the ack. */
  async #run(message) {
    const full = { event: "message", data: null, ...message };
    const handlers = this.#handlers.all.filter(({ pattern }) => matches(pattern, message.topic));
    // The first steps of all run at once, so that messages are begun in their order.
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

  /** It was handled, or is just being handled: its ack goes to who asked last. */
  #ackAgain(link, message) {
    if (!message.ack) return;
    const handling = this.#seen.get(message.id) ?? { answer: ackTo(message, { status: "ok" }) };
    if (handling.answer === null) handling.link = link;
    else this.#write(link, handling.answer);
  }
}
