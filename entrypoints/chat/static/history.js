/**
 * The kept messages of a room, shown after a join and after a reconnect.
 *
 * Every message of a room has a position. The log of a room is complete up to a position, or has
 * a notice where messages are missing. A join has the position as its `since`: the kept messages
 * come before the answer, and are shown with it, in the order of their positions.
 */

import { clock } from "./conversation.js";

const ANSWER = 15; // seconds until an answer, or the next message before it
const HELD = 500; // messages that may wait for the answer; a conversation shows no more

export class History {
  #show;
  /** @type {import("./eyewall.js").Client | null} */
  client = null;
  /** Whether the connection was lost, and the rooms are not joined again yet. */
  away = false;

  /** @param {(room, said, how: {isNew: boolean}) => void} show adds a message to a room's log */
  constructor(show) {
    this.#show = show;
  }

  /** Take a message of a room: show it, or hold it. */
  take(room, message) {
    if (room.held) {
      room.held.push(message);
      if (room.held.length > HELD) room.held.shift();
    } else if (room.reach(message.stream) && isSaid(room, message)) {
      if (this.away) this.#interlude(room);
      this.#show(room, message.data, { isNew: true });
    }
  }

  /** Hold the messages that come from now on, until older ones are shown. */
  hold(room) {
    room.held ??= [];
  }

  /**
   * Join a room, show its messages that are not shown yet, and add a notice about them.
   *
   * @param {string} away how long the connection was lost; empty if it was not
   * @param {() => boolean} isOver whether a newer attempt to join the room has begun
   */
  async enter(room, away, isOver) {
    const isFirst = !room.visited;
    const now = await this.#join(room, isOver);
    if (isOver()) return;
    if (isFirst) this.#cameIn(room, now);
    else this.#cameBack(room, now, away);
    room.visited = true;
    room.interlude = null;
    this.#release(room);
  }

  /** Fill a gap while the client is in a room, or add a notice that messages are missing. */
  async fill(room, isOver) {
    try {
      const now = await this.#join(room, isOver);
      if (isOver()) return;
      if (now.gap) room.notice(now.gap, "gap");
      this.#put(room, now, { isNew: true });
      this.#release(room);
    } catch (error) {
      if (!isOver()) room.notice(`Something may be missing here: ${error.message}.`, "gap");
    }
  }

  /** Join; returns the messages until then, and the text about a gap before them. */
  async #join(room, isOver) {
    this.hold(room);
    const from = room.place;
    try {
      const now = await this.client.join(room.id, { since: from ?? "start", timeout: ANSWER });
      const isBefore = ({ stream }) => stream?.epoch === now.epoch && stream?.offset <= now.offset;
      const before = now.epoch === undefined ? [] : (room.held ?? []).filter(isBefore);
      before.sort((one, other) => one.stream.offset - other.stream.offset);
      return { ...now, before, gap: gapBefore(now, from) };
    } catch (error) {
      if (!isOver()) this.#release(room);
      throw error;
    }
  }

  /** Show the messages from before the join. */
  #put(room, now, how) {
    for (const message of now.before) {
      if (room.reach(message.stream) && isSaid(room, message)) this.#show(room, message.data, how);
    }
    room.reach(now);
  }

  /** Take the held messages, as far as they are not shown yet. */
  #release(room) {
    const { held } = room;
    room.held = null;
    for (const message of held ?? []) this.take(room, message);
  }

  // --- notices

  #cameIn(room, now) {
    const keeps = now.epoch !== undefined;
    if (keeps && now.gap) room.notice("Older messages are not kept.");
    room.calmly(() => this.#put(room, now, { isNew: false }));
    const at = clock(Date.now());
    if (!keeps) room.notice(`You came in at ${at}. What was said before is not kept here.`, "here");
    else if (!room.isEmpty) room.notice(`Said before you came in at ${at}`, "here");
    else room.notice(`You came in at ${at}.${now.gap ? "" : " Nothing was said before."}`, "here");
  }

  #cameBack(room, now, away) {
    if (now.gap || now.before.some((message) => isSaid(room, message))) this.#interlude(room);
    const isSilent = room.interlude === null;
    const missed = isSilent ? "Nothing was said meanwhile." : "Nothing is missing: this was said meanwhile.";
    const was = away ? `You were away for ${away}.` : `You came back at ${clock(Date.now())}.`;
    const line = this.#interlude(room);
    line.textContent = `${was} ${now.gap || missed}`;
    line.classList.toggle("gap", Boolean(now.gap));
    this.#put(room, now, { isNew: true });
  }

  /** The notice before the messages of the time away; its text is set when all have come. */
  #interlude(room) {
    room.interlude ??= room.notice("You were away.");
    return room.interlude;
  }
}

/** Whether a message is a `chat:said` that is not shown yet: clients may publish others. */
function isSaid(room, { topic, data }) {
  return topic === "chat:said" && !room.has(data);
}

function gapBefore({ epoch, recovered }, from) {
  if (epoch === undefined) return "What was said meanwhile is not here.";
  if (recovered) return "";
  if (from && from.epoch !== epoch) return "The room was started anew: something may be missing here.";
  return "Not all of it is kept any more: something is missing here.";
}
