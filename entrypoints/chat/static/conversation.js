/**
 * One conversation, with a room or with a user: its messages, unconfirmed letters and
 * members. Text of users is set as text, never as HTML.
 */

const KEPT = 500; // messages and notices that one conversation keeps
const TOGETHER = 5 * 60 * 1000; // within this time a user's messages are grouped under one name
const TYPING = 6000; // the hub ends typing after 5 s

/** Create an element with these properties, or attributes if it has no such property. */
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** The colour of a user, the same in every window. */
export function tint(element, name) {
  let hash = 7;
  for (const char of name) hash = (hash * 31 + char.codePointAt(0)) % 3600;
  element.style.setProperty("--hue", String(hash / 10));
}

/** "ada", "ada and ben", "ada, ben and 3 others": each name keeps its own direction. */
export function names(all) {
  const shown = all.slice(0, all.length > 3 ? 2 : 3).map((name) => `\u2068${name}\u2069`);
  const more = all.length - shown.length;
  if (more) shown.push(`${more} others`);
  return shown.length > 1 ? `${shown.slice(0, -1).join(", ")} and ${shown.at(-1)}` : shown[0];
}

/** The time of day; with the day before it if that is not today. */
export function clock(time) {
  const date = new Date(time);
  const isToday = date.toDateString() === new Date().toDateString();
  const day = isToday ? {} : { weekday: "short" };
  return date.toLocaleTimeString([], { ...day, hour: "numeric", minute: "2-digit" });
}

/** A message of this user that the hub has not confirmed yet. */
export class Letter {
  /** @type {"waiting" | "sending" | "failed" | "unknown"} */
  state = "waiting";
  /** @type {AbortController | null} cancels it while it is in flight */
  sent = null;

  constructor(id, text) {
    this.id = id;
    this.text = text;
    this.mark = el("p", { className: "mark" });
    this.element = el(
      "li",
      { className: "line mine waiting" },
      el("p", { className: "text", dir: "auto", textContent: text }),
      this.mark,
    );
  }

  /** @param {[string, () => void][]} actions the buttons beside it */
  become(state, text, actions = []) {
    this.state = state;
    this.element.className = `line mine ${state}`;
    const buttons = actions.map(([label, onclick]) =>
      el("button", { type: "button", textContent: label, onclick }),
    );
    this.mark.replaceChildren(text, ...buttons);
  }
}

export class Conversation {
  /** Members: name -> number of connections. The name of anonymous members is null. */
  people = new Map();
  /** Whether there are more members than these. */
  more = false;
  /** Unconfirmed letters, in the order in which they were written. */
  letters = [];
  unread = 0;
  draft = "";
  /** A room only: whether this connection has joined it. */
  joined = false;
  /** A room only: the newest attempt to join it. */
  entering = null;
  /** A room only: whether it was joined before. */
  visited = false;
  /** A room only: the position up to which messages are shown; null before the first one. */
  place = null;
  /** A room only: messages that are held until older ones are shown; null if none are held. */
  held = null;
  /** A room only: the notice before the messages of the time away, until all have come. */
  interlude = null;

  #said = new Set(); // author and id of the newest messages
  #typing = new Map(); // name -> timer
  #comings = null; // the notice about joins and leaves, while it is the last line
  #last = null; // {from, at} of the last line, if it is a message

  /**
   * @param {"room" | "private"} kind
   * @param {{me: string, changed: (talk: Conversation, grown?: boolean) => void}} owner
   */
  constructor(kind, id, { me, changed }) {
    this.kind = kind;
    this.id = id;
    this.me = me;
    this.changed = changed;
    this.key = keyOf(kind, id);
    this.log = el("ol", { role: "log", "aria-live": "polite", "aria-label": "Messages" });
    this.outbox = el("ol", { "aria-label": "Not confirmed yet" });
    this.view = el("div", {}, this.log, this.outbox);
  }

  // --- messages

  /**
   * Whether this message is shown already. A hub that was restarted may send a retransmitted
   * message twice. Ids are per author.
   */
  has({ id, from }) {
    return Boolean(id) && this.#said.has(`${id} ${from}`);
  }

  /** @param {{id: string | null, from: string, text: string, at: string}} message */
  add({ id, from, text, at }, mark = "") {
    this.#said.add(`${id} ${from}`);
    if (this.#said.size > KEPT) this.#said.delete(this.#said.values().next().value);
    const when = new Date(at).getTime();
    const follows = this.#last?.from === from && when - this.#last.at < TOGETHER;
    const who = el("bdi", { className: "who", textContent: from });
    tint(who, from);
    const head = el(
      "p",
      { className: "line-head" },
      who,
      el("time", { dateTime: at, title: new Date(when).toLocaleString(), textContent: clock(when) }),
    );
    const line = el(
      "li",
      { className: "line" },
      head,
      el("p", { className: "text", dir: "auto", textContent: text }),
    );
    line.classList.toggle("follows", follows);
    line.classList.toggle("mine", from === this.me);
    if (mark) {
      line.classList.add("delivered");
      line.append(el("p", { className: "mark", textContent: mark }));
    }
    this.#append(line);
    this.#last = { from, at: when };
    this.stopped(from);
  }

  /** Whether there are no messages. */
  get isEmpty() {
    return this.log.querySelector(".line") === null;
  }

  /** Whether all messages up to a position are shown. */
  reaches({ epoch, offset }) {
    return this.place?.epoch === epoch && this.place.offset >= offset;
  }

  /** Move to a position; false if its message is shown already. */
  reach(place) {
    if (place?.epoch === undefined) return true; // it has none
    if (this.reaches(place)) return false;
    this.place = { epoch: place.epoch, offset: place.offset };
    return true;
  }

  /** Add many messages at once, without a screen reader reading them out. */
  calmly(add) {
    this.log.ariaLive = "off";
    add();
    requestAnimationFrame(() => (this.log.ariaLive = "polite"));
  }

  notice(text, className = "") {
    const line = el("li", { className: `notice ${className}`, textContent: text });
    this.#append(line);
    return line;
  }

  #append(line) {
    this.#comings = null;
    this.#last = null;
    this.log.append(line);
    while (this.log.childElementCount > KEPT) this.log.firstElementChild.remove();
    this.log.firstElementChild.classList.remove("follows");
    this.changed(this, true);
  }

  // --- letters

  post(letter) {
    this.letters.push(letter);
    this.outbox.append(letter.element);
    this.changed(this, true);
  }

  take(letter) {
    this.letters = this.letters.filter((other) => other !== letter);
    letter.element.remove();
    this.changed(this);
  }

  /** Move a letter that the hub has confirmed to the messages. */
  confirm(letter, { at = new Date().toISOString(), mark = "" } = {}) {
    if (!this.letters.includes(letter)) return;
    this.take(letter);
    this.add({ id: letter.id, from: this.me, text: letter.text, at }, mark);
  }

  // --- members

  setPeople(members, { more = false } = {}) {
    this.people = new Map(members.map((member) => [member.user_id, member.connections]));
    this.more = more;
    this.changed(this);
  }

  /** Note how many connections a user has here after a join or leave. */
  present(name, connections) {
    const was = this.people.get(name) ?? 0;
    if (connections) this.people.set(name, connections);
    else this.people.delete(name);
    if (!connections) this.stopped(name);
    if (name !== this.me && name !== null && Boolean(was) !== Boolean(connections)) {
      this.#tellComing(name, connections ? "came" : "left");
    }
    this.changed(this);
  }

  /** Successive joins and leaves share one line. */
  #tellComing(name, what) {
    const comings = this.#comings ?? { line: this.notice(""), who: new Map() };
    this.#comings = comings;
    const back = what === "came" && comings.who.get(name) === "left";
    comings.who.set(name, back ? "back" : what);
    const those = (state) => [...comings.who].filter(([, s]) => s === state).map(([n]) => n);
    const parts = [
      [those("came"), "came in"],
      [those("back"), "came back"],
      [those("left"), "left"],
    ];
    comings.line.textContent = parts
      .filter(([who]) => who.length)
      .map(([who, verb]) => `${names(who)} ${verb}`)
      .join("; ");
  }

  typing(name, isTyping) {
    this.stopped(name);
    if (!isTyping || name === null || name === this.me) return;
    this.#typing.set(name, setTimeout(() => this.stopped(name), TYPING));
    this.changed(this);
  }

  stopped(name) {
    if (!this.#typing.has(name)) return;
    clearTimeout(this.#typing.get(name));
    this.#typing.delete(name);
    this.changed(this);
  }

  get typists() {
    return [...this.#typing.keys()];
  }
}

export function keyOf(kind, id) {
  return `${kind}:${id}`;
}
