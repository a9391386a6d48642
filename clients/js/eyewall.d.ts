/** Any JSON value. */
export type Json = null | boolean | number | string | Json[] | { [key: string]: Json };

/** A position in the history of a room. */
export interface Position {
  epoch: string;
  offset: number;
}

/**
 * Where `join` starts in the history of a room: at the first message, at a number of newest
 * messages, or after a position (a message's `stream`, say).
 */
export type Since = "start" | number | Position;

/** A message, with the fields of the wire protocol. */
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
 * - `connecting`: before the welcome; after a cut also while missed messages come
 * - `open`: connected, and all rooms are resumed
 * - `waiting`: the connection was lost, and the client will reconnect
 * - `closed`: not connected yet, or ended for good; a refused client reconnects with `setToken`
 */
export type State = "connecting" | "open" | "waiting" | "closed";

/** The details of a state. */
export interface StateInfo {
  /** `waiting`: seconds until the next attempt. */
  delay?: number;
  /** `waiting`: the time of the next attempt, in milliseconds as of `Date.now()`. */
  at?: number;
  /** `waiting`: whether the hub has asked for the delay; only `connect()` shortens it then. */
  asked?: boolean;
  /** `waiting`, `closed`: the close code; 1006 if there was none. See also `lastError`. */
  code?: number;
  /** `waiting`, `closed`: the hub's reason. */
  reason?: string;
  /** `connecting`, `open`: the hub drains; seconds between its close and the reconnect. */
  draining?: number;
}

/** A room that has to be loaded again. */
export interface Lost {
  /** The position of the room now; absent if it keeps no history. */
  epoch?: string;
  offset?: number;
  /** Why this client is not in the room any more; absent if it still is. */
  code?: string;
}

export type Handler<T = any> = (message: Message<T>) => unknown;

/**
 * A token, or one with its end, as token endpoints answer: in seconds from now, or as a time
 * (ISO 8601, or milliseconds). Seconds do not depend on this machine's clock.
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

/** A token, or a callback for one. */
export type TokenSource = string | null | (() => Token | Promise<Token>);

export interface Options {
  /**
   * A token, or a callback for one, which is also called to renew the token before its end.
   * The callback ends the client with `throw new EyewallError("unauthorized", "log in again")`.
   */
  token?: TokenSource;
  /** How many messages may wait for the connection. Default 256. */
  outbox?: number;
  /** The WebSocket class, where there is no global one (Node 20). */
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
  /** Cancels the request; it then rejects with the signal's reason. */
  signal?: AbortSignal;
}

export interface RequestOptions extends SendOptions, CallOptions {
  /** Within a session, the hub handles a repeated id once. */
  id?: string;
}

/** The data of an ack: these fields, and those of the handler's return value. */
export type Answer<T = {}> = { message_id: string; status: "ok" } & T;

export interface Joined extends Partial<Position> {
  room: string;
  role: string;
  members: number;
  /** With `since`: whether all messages from there came; those that are kept come in any case. */
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
 * Make a client and connect it. It can be used at once: messages wait until it is connected.
 *
 * @param url the hub's address; on a page it may be relative
 */
export function connect(url: string | URL, options?: Options): Client;

export class Client {
  /** Throws a TypeError for a malformed address or token, without its secrets. */
  constructor(url: string | URL, options?: Options);

  /** The user, by the hub's welcome; null before it, and for an anonymous connection. */
  userId: string | null;
  /** The connection's id; a new one after each cut. */
  connId: string | null;
  readonly state: State;
  /**
   * Why it waits or is closed; null while it is open, and before that. Its code: `unauthorized`
   * and `forbidden` if the hub refuses the client, `unavailable` if no hub was reached or it is
   * overloaded, `connection_closed` if the connection has ended.
   */
  readonly lastError: EyewallError | null;

  /** Connect now: for the first time, after the end, or instead of waiting. */
  connect(): void;
  /** Close for good. Unanswered requests reject with `connection_closed`. */
  close(): void;
  /**
   * Use this token from now on, or the tokens of this function. A client that was refused
   * reconnects with it; an open connection sends a new token to the hub. If the next connection is
   * another user's, messages from before that still wait are not sent.
   */
  setToken(token: TokenSource): void;
  /** Resolves when the connection is open; rejects with `lastError` when the client is closed. */
  ready(): Promise<Client>;

  /**
   * Listen to a topic, to all topics that begin with `prefix:` (`prefix:*`), or to all (`*`,
   * without `system:`). A message that asks for an ack gets it when all its handlers are done:
   * the first return value is the `result`, and an exception makes it a nack. Events may have any
   * name, `ack` and `error` too.
   *
   * @returns a function that ends this registration only
   */
  on<T = any>(topic: string, handler: Handler<T>): () => void;
  /** End the last registration of a function for a topic. */
  off(topic: string, handler: Handler): void;
  /** @returns a function that ends the registration, as for the next two */
  onState(callback: (state: State, info: StateInfo) => void): () => void;
  /** Messages of a room may be missing: load it again. */
  onLost(callback: (room: string, lost: Lost) => void): () => void;
  /**
   * Errors without a caller: of a handler, of a refused `send`, of a token. The refusal of a
   * `send` goes to the handlers of its topic, too, as an event `error` without id.
   */
  onError(callback: (error: unknown) => void): () => void;

  /** Send without an ack. Throws `overloaded` if the outbox is full. */
  send(topic: string, data?: unknown, options?: SendOptions): void;
  /** Send a request; it is retransmitted after a cut. Rejects with an `EyewallError`. */
  request<T = Record<string, any>>(
    topic: string,
    data?: unknown,
    options?: RequestOptions,
  ): Promise<Answer<T>>;

  /**
   * With `since` the handlers first get the kept messages from there, in order, each once, even
   * if it was handled before; then the live ones. After a cut the client continues from its
   * position. `timeout` is then for the answer or the next message.
   */
  join(room: string, options?: CallOptions & { since?: Since | null }): Promise<Answer<Joined>>;
  /** The client has left even if no answer comes, unless it is a refusal; need not be awaited. */
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
   * Tell the other members that the user types; it ends after `ttl` seconds (5).
   *
   * May be called at every key stroke: within half of its `ttl` it is not sent again, and resolves.
   * `false` is always sent, and so is the first call after it.
   */
  typing(room: string, typing?: boolean, options?: CallOptions & { ttl?: number }): Promise<Answer>;
  history(
    room: string,
    options?: CallOptions & { since?: Position; limit?: number },
  ): Promise<Answer<Position & { messages: Message[] }>>;
}

/** A refusal of the hub, or a failure of the client. */
export class EyewallError extends Error {
  constructor(code: string, text?: string, data?: Record<string, any>);
  /**
   * The protocol's code, or one of the client: `ack_timeout` (no answer came),
   * `connection_closed` (`cause` says why), `overloaded` (too many wait), `message_too_big`.
   */
  code: string;
  /** With `validation`: the messages by field. */
  fields?: Record<string, string[]>;
  /** With `rate_limited` and `overloaded`: seconds. */
  retryAfter?: number;
  data: Record<string, any>;
  /** The error behind it, where it is known. */
  cause?: unknown;
}

/** Whether a client reconnects after a close with this code. */
export function comesBack(code: number): boolean;
/** Exponential back-off with full jitter, in seconds; attempts count from 0. */
export function backoff(attempt: number, random?: () => number): number;
/** Whether a subscription takes a topic. */
export function matches(pattern: string, topic: string): boolean;
/** An id that can't be guessed. */
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
  set(room: string, position?: Partial<Position>): void;
  forget(room: string): void;
  ask(rooms?: string[]): Record<string, Partial<Position>>;
  take(
    stream: Position & { room: string },
    isLive?: boolean,
  ): "next" | "first" | "changed" | "again" | "repeat" | "gap";
  join(room: string, now: Partial<Position>): "here" | "gap" | "changed";
  beginReplay(room: string, replay: Replay): void;
  replays(room: string): Replay[];
  endReplay(room: string, replay: Replay, position?: Position): boolean;
  isReplayed(stream: Position & { room: string }): boolean;
}

/** @internal */
export class ReorderBuffer {
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
  startsAt(position: Position): boolean;
  received(position: Position, begins?: boolean): void;
  sinceFor(position: Position | null): Since;
  isWhole(answer: { recovered?: unknown } & Partial<Position>): boolean;
}
