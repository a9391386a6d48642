/**
 * What a room has kept, shown to who comes in and to who comes back.
 *
 * Every message of a room has its place. What is shown of a room reaches up to a place with
 * nothing missing, or a notice stands where something is. A join says from where on we want it:
 * what is kept comes before the answer, and is shown with it, in the order of the places.
 */

import { clock } from "./conversation.js";

const ANSWER = 15; // seconds until an answer, or the next message before it
const HELD = 500; // messages that may wait for the answer; a conversation shows no more

export class History {
  #show;
  /** @type {import("./eyewall.js").Client | null} */
  client = null;
  /** Whether the connection was lost, and we are not in the rooms again yet. */
  away = false;

  /** @param {(room, said, how: {isNew: boolean}) => void} show puts what was said into a room's log */
  constructor(show) {
    this.#show = show;
  }

  /** A message of a room has come. */
  take(room, message) {
    if (room.held) {
      room.held.push(message);
      if (room.held.length > HELD) room.held.shift();
    } else if (room.reach(message.stream) && isSaid(room, message)) {
      if (this.away) this.#interlude(room);
      this.#show(room, message.data, { isNew: true });
    }
  }

  /** Let what comes from now on wait for what was said before it. */
  hold(room) {
    room.held ??= [];
  }

  /**
   * Get into a room, show what we have not seen of it, and say what that is.
   *
   * @param {string} away for how long we were away; empty if we were not
   * @param {() => boolean} isOver whether another attempt to get into the room has begun
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

  /** Messages are missing while we are in a room: show what is left of them, and say so. */
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

  /** Join; returns what was said until then, and what is to be said of a gap before it. */
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

  /** Show what was said until we joined. */
  #put(room, now, how) {
    for (const message of now.before) {
      if (room.reach(message.stream) && isSaid(room, message)) this.#show(room, message.data, how);
    }
    room.reach(now);
  }

  /** What has waited is live, as far as it is not shown yet. */
  #release(room) {
    const { held } = room;
    room.held = null;
    for (const message of held ?? []) this.take(room, message);
  }

  // --- saying what it is

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

  /** The notice before what was said while we were away; its text comes when all of that is here. */
  #interlude(room) {
    room.interlude ??= room.notice("You were away.");
    return room.interlude;
  }
}

/** Whether it is something that was said, and is not shown yet: anybody may publish other things. */
function isSaid(room, { topic, data }) {
  return topic === "chat:said" && !room.has(data);
}

function gapBefore({ epoch, recovered }, from) {
  if (epoch === undefined) return "What was said meanwhile is not here.";
  if (recovered) return "";
  if (from && from.epoch !== epoch) return "The room was started anew: something may be missing here.";
  return "Not all of it is kept any more: something is missing here.";
}
