/** Any JSON value. */
export type Json = null | boolean | number | string | Json[] | { [key: string]: Json };

/** A place in the stream of a room that keeps history. */
export interface Position {
  epoch: string;
  offset: number;
}

/**
 * From where on `join` wants what a room keeps: all of it, so many of the newest messages, or
 * what came after a place (a message's `stream`, say).
 */
export type Since = "start" | number | Position;

/** What travels: the fields of the wire protocol. */
export interface Message<T = any> {
  id?: string;
  ref?: string;
  topic: string;
  event: string;
  namespace?: string;
  version?: string;
  data: T;
  headers?: Record<string, string>;
  ack?: boolean;
  stream?: Position & { room: string };
}

/**
 * - `connecting`: on its way; after a cut also while what was missed comes in
 * - `open`: all is well
 * - `waiting`: the connection was lost, and will be tried again
 * - `closed`: not connected yet, or ended for good; who was not let in comes back with `setToken`
 */
export type State = "connecting" | "open" | "waiting" | "closed";

/** What there is to know about a state. */
export interface StateInfo {
  /** `waiting`: seconds until the next try. */
  delay?: number;
  /** `waiting`: when that is, in milliseconds as of `Date.now()`. */
  at?: number;
  /** `waiting`: whether the hub has named the delay; only `connect()` then shortens it. */
  asked?: boolean;
  /** `waiting`, `closed`: the close code; 1006 where there was none. See `lastError`, too. */
  code?: number;
  /** `waiting`, `closed`: what the hub gave as its reason. */
  reason?: string;
  /** `connecting`, `open`: the hub is about to close, and wants us back after so many seconds. */
  draining?: number;
}

/** Why a room has to be loaded again. */
export interface Lost {
  /** Where its stream stands now; absent if it keeps no history. */
  epoch?: string;
  offset?: number;
  /** Why this client is not in the room any more; absent if it is. */
  code?: string;
}

export type Handler<T = any> = (message: Message<T>) => unknown;

/**
 * A token, or one with its end, as token endpoints answer. Seconds; ISO 8601 or milliseconds.
 * Seconds do not depend on this machine's clock.
 */
export type Token =
  | string
  | null
  | {
      token: string;
      expiresIn?: number;
      expires_in?: number;
      expiresAt?: string | number | Date;
      expires_at?: string | number | Date;
    };

/** A token, or what is called for one. */
export type TokenSource = string | null | (() => Token | Promise<Token>);

export interface Options {
  /**
   * Who we are: a token, or what is called for one; it then renews the token before its end.
   * It ends the client with `throw new EyewallError("unauthorized", "log in again")`.
   */
  token?: TokenSource;
  /** How many messages may wait for the connection. Default 256. */
  outbox?: number;
  /** The WebSocket to use, where there is no global one (Node 20). */
  WebSocket?: unknown;
}

export interface SendOptions {
  /** Default `message`. */
  event?: string;
  headers?: Record<string, string>;
  namespace?: string;
  version?: string;
}

export interface CallOptions {
  /** Seconds until `ack_timeout`, cuts included; `Infinity` waits for ever. Default 5. */
  timeout?: number;
  /** Takes the request back; it then rejects with the signal's reason. */
  signal?: AbortSignal;
}

export interface RequestOptions extends SendOptions, CallOptions {
  /** Within a session, the hub handles a repeated id once. */
  id?: string;
}

/** The data of an ack: what the handler returned stands beside these. */
export type Answer<T = {}> = { message_id: string; status: "ok" } & T;

export interface Joined extends Partial<Position> {
  room: string;
  role: string;
  members: number;
  /** With `since`: whether all that was asked for has come; what is kept comes in any case. */
  recovered?: boolean;
}

export interface Published extends Partial<Position> {
  room: string;
  delivered: number;
}

export interface Member {
  user_id: string | null;
  role: string;
  connections: number;
}

export interface Presence {
  online: boolean;
  connections: number;
  last_seen: string | null;
}

/**
 * Start a client. It can be used at once: what is sent before it is connected waits.
 *
 * @param url of the hub's socket; relative to the page where there is one
 */
export function connect(url: string | URL, options?: Options): Client;

export class Client {
  /** Throws a TypeError, without what is secret in it, for a wrong address or token. */
  constructor(url: string | URL, options?: Options);

  /** Who the hub says that we are; null before it has, or for nobody. */
  userId: string | null;
  /** This connection's id; another one after each cut. */
  connId: string | null;
  readonly state: State;
  /**
   * Why it waits or is closed; null while it is open, and before. By its code: `unauthorized`
   * and `forbidden` mean not let in, `unavailable` that no hub was reached or had time,
   * `connection_closed` that the connection has ended.
   */
  readonly lastError: EyewallError | null;

  /** Connect now: the first time, after the end, or instead of waiting any longer. */
  connect(): void;
  /** Leave for good. What was not answered rejects with `connection_closed`. */
  close(): void;
  /**
   * Show this token from now on, or what this function gives. A client that was not let in comes
   * back with it; where the connection is open it is shown there, too.
   */
  setToken(token: TokenSource): void;
  /** Resolves when the connection is open; rejects with `lastError` when it stays away. */
  ready(): Promise<Client>;

  /**
   * Listen to a topic, to all that begins with `prefix:` (`prefix:*`), or to all (`*`, without
   * `system:`). A message that asks for an ack gets it when all its handlers are done: with
   * what the first of them returned as `result`, or a nack with the error that one threw.
   * Events may have any name, `ack` and `error` too.
   *
   * @returns a function that ends this registration, and no other of the same function
   */
  on<T = any>(topic: string, handler: Handler<T>): () => void;
  /** Ends the last registration of a function for a topic. */
  off(topic: string, handler: Handler): void;
  /** @returns a function that ends it, as of all three */
  onState(callback: (state: State, info: StateInfo) => void): () => void;
  /** Messages of a room may be missing: load it again. */
  onLost(callback: (room: string, lost: Lost) => void): () => void;
  /**
   * What nobody waits for: a handler that threw, a `send` that was refused, a failed token. The
   * refusal of a `send` goes to the handlers of its topic, too, as an event `error` without id.
   */
  onError(callback: (error: unknown) => void): () => void;

  /** Send without an answer. Throws `overloaded` when the outbox is full. */
  send(topic: string, data?: unknown, options?: SendOptions): void;
  /** Ask; a cut does not end it. Rejects with an `EyewallError`. */
  request<T = Record<string, any>>(
    topic: string,
    data?: unknown,
    options?: RequestOptions,
  ): Promise<Answer<T>>;

  /**
   * With `since` the handlers first get what the room keeps from there, in order, each message
   * once, whether or not it was handled before; then what is live. After a cut the client goes
   * on from where it is. `timeout` is then for an answer or the next message.
   */
  join(room: string, options?: CallOptions & { since?: Since | null }): Promise<Answer<Joined>>;
  /** The room is left whether or not an answer comes, unless the hub refuses; no need to wait. */
  leave(room: string, options?: CallOptions): Promise<Answer<{ room: string }>>;
  publish(
    room: string,
    data?: unknown,
    options?: CallOptions & { event?: string },
  ): Promise<Answer<Published>>;
  members(
    room: string,
    options?: CallOptions & { limit?: number; cursor?: string },
  ): Promise<Answer<{ members: Member[]; cursor?: string }>>;
  presence(
    whom: string[] | { room: string },
    options?: CallOptions,
  ): Promise<Answer<{ users: Record<string, Presence> }>>;
  /**
   * Tell the others that one is typing; the hub takes it back after `ttl` seconds (5).
   *
   * At every key stroke, if you like: what was said less than half of its `ttl` ago is not sent
   * again, and resolves. `false` is always sent, and so is what comes after it.
   */
  typing(room: string, typing?: boolean, options?: CallOptions & { ttl?: number }): Promise<Answer>;
  history(
    room: string,
    options?: CallOptions & { since?: Position; limit?: number },
  ): Promise<Answer<Position & { messages: Message[] }>>;
}

/** A refusal, or what could not be done. */
export class EyewallError extends Error {
  constructor(code: string, text?: string, data?: Record<string, any>);
  /**
   * The protocol's code, or one of the client: `ack_timeout` (no answer came),
   * `connection_closed` (`cause` says why), `overloaded` (too much waits), `message_too_big`.
   */
  code: string;
  /** With `validation`: the messages by field. */
  fields?: Record<string, string[]>;
  /** With `rate_limited` and `overloaded`: seconds. */
  retryAfter?: number;
  data: Record<string, any>;
  /** What it comes from, where that is known. */
  cause?: unknown;
}

/** Whether a hub wants a client back after it closed with this code. */
export function comesBack(code: number): boolean;
/** Exponential back-off with full jitter, in seconds; attempts count from 0. */
export function backoff(attempt: number, random?: () => number): number;
/** Whether a subscription takes a topic. */
export function matches(pattern: string, topic: string): boolean;
/** An id that nobody can guess. */
export function newId(): string;

/** @internal */
export class Recent<K = any, V = any> {
  constructor(bound: number);
  get(key: K): V | undefined;
  take(key: K): V | undefined;
  add(key: K, value: V): void;
}

/** @internal */
export class Outbox {
  constructor(bound: number);
  readonly size: number;
  add(text: string, key?: unknown, generation?: number): void;
  takeBefore(generation: number): { text: string; key: any; generation: number }[];
  remove(key: unknown): void;
  take(): { text: string; key: any; generation: number }[];
}

/** @internal */
export class Positions {
  readonly rooms: string[];
  has(room: string): boolean;
  get(room: string): Position | null;
  set(room: string, place?: Partial<Position>): void;
  forget(room: string): void;
  ask(rooms?: string[]): Record<string, Partial<Position>>;
  take(
    stream: Position & { room: string },
    isLive?: boolean,
  ): "next" | "first" | "changed" | "again" | "repeat" | "gap";
  join(room: string, now: Partial<Position>): "here" | "gap" | "changed";
  want(room: string, replay: Replay): void;
  replays(room: string): Replay[];
  over(room: string, replay: Replay, place?: Position): boolean;
  isWantedAgain(stream: Position & { room: string }): boolean;
}

/** @internal */
export class Aside {
  keep(stream: Position & { room: string }, message: unknown, size: number): void;
  take(room: string): {
    messages: (Position & { message: any; size: number })[];
    missing: number;
  };
}

/** @internal */
export class Replay {
  constructor(since: Since);
  begun: boolean;
  lost: boolean;
  behind: boolean;
  progress: number;
  beginsWith(place: Position): boolean;
  came(place: Position, begins?: boolean): void;
  asks(place: Position | null): Since;
  isWhole(answer: { recovered?: unknown } & Partial<Position>): boolean;
}
