/**
 * What a room has kept, shown to who comes in and to who comes back.
 *
 * Every message of a room has its place. What is shown of a room reaches up to a place with
 * nothing missing, or a notice stands where something is. While older messages are on their
 * way, newer ones wait: they are shown in the order of their places, each once.
 */

import { clock } from "./conversation.js";

const PAGE = 100; // as many as a room keeps
const ANSWER = 15; // seconds that older messages may take
const HELD = 500; // messages that may wait for older ones; a conversation shows no more

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

  #release(room) {
    const { held } = room;
    room.held = null;
    for (const message of held ?? []) this.take(room, message);
  }

  /**
   * We are in a room that stands at `now`: show what we have not seen of it, and say what it is.
   *
   * @param {{epoch?: string, offset?: number}} now the answer to the join
   * @param {string} away for how long we were away; empty if we were not
   * @param {() => boolean} isOver whether another attempt to get into the room has begun
   */
  async enter(room, now, away, isOver) {
    const isFirst = !room.visited;
    const keeps = now.epoch !== undefined;
    try {
      let gap = keeps ? "" : "What was said meanwhile is not here.";
      let isTrimmed = false;
      if (keeps && isFirst) isTrimmed = await this.#before(room, isOver);
      else if (keeps && !room.reaches(now)) gap = await this.#since(room, isOver, () => this.#interlude(room));
      if (isOver()) return;
      if (isFirst) cameIn(room, keeps, isTrimmed);
      else this.#cameBack(room, away, gap);
    } catch (error) {
      if (isOver()) return;
      room.notice(`What was said before could not be loaded: ${error.message}.`, "gap");
    }
    room.visited = true;
    room.interlude = null;
    this.#release(room);
  }

  /** Messages may be missing while we are in a room: show what is left of them, and say so. */
  async fill(room, isOver) {
    try {
      await this.#since(room, isOver, (gap) => gap && room.notice(gap, "gap"));
    } catch (error) {
      if (!isOver()) room.notice(`Something may be missing here: ${error.message}.`, "gap");
    }
    if (!isOver()) this.#release(room);
  }

  // --- asking for it

  #ask(room, since) {
    return this.client.history(room.id, { since: since ?? undefined, limit: PAGE, timeout: ANSWER });
  }

  /** Show what was said before we came; returns whether older messages are gone. */
  async #before(room, isOver) {
    const page = await this.#ask(room, null);
    if (isOver()) return false;
    const isTrimmed = firstOf(page) > 1;
    if (isTrimmed) room.notice("Older messages are not kept.");
    room.calmly(() => {
      for (const message of page.messages) {
        if (isSaid(room, message)) this.#show(room, message.data, { isNew: false });
      }
    });
    room.reach(page);
    return isTrimmed;
  }

  /**
   * Show what was said after the last that is shown.
   *
   * `begin` is called before it with what is to be said of a gap there, empty if there is none;
   * that is returned, too.
   */
  async #since(room, isOver, begin) {
    this.hold(room);
    let page = await this.#ask(room, room.place);
    if (isOver()) return "";
    const gap = gapBefore(page, room.place);
    if (page.epoch !== undefined && page.epoch !== room.place?.epoch) {
      page = await this.#ask(room, null);
      if (isOver()) return "";
    }
    if (gap) begin(gap);
    let hasBegun = Boolean(gap);
    for (;;) {
      for (const message of page.messages) {
        if (!room.reach(message.stream) || !isSaid(room, message)) continue;
        if (!hasBegun) begin(gap);
        hasBegun = true;
        this.#show(room, message.data, { isNew: true });
      }
      if (!page.messages.length || room.reaches(page)) break;
      page = await this.#ask(room, room.place);
      if (isOver()) return gap;
    }
    room.reach(page);
    return gap;
  }

  // --- saying what it is

  /** The notice before what was said while we were away; its text comes when all of that is here. */
  #interlude(room) {
    room.interlude ??= room.notice("You were away.");
    return room.interlude;
  }

  #cameBack(room, away, gap) {
    const isSilent = room.interlude === null;
    const missed = isSilent ? "Nothing was said meanwhile." : "Nothing is missing: this was said meanwhile.";
    const was = away ? `You were away for ${away}.` : `You came back at ${clock(Date.now())}.`;
    const line = this.#interlude(room);
    line.textContent = `${was} ${gap || missed}`;
    line.classList.toggle("gap", Boolean(gap));
  }
}

/** Whether it is something that was said, and is not shown yet: anybody may publish other things. */
function isSaid(room, { topic, data }) {
  return topic === "chat:said" && !room.has(data);
}

/** The offset of the first message of a page; one beyond the room's last if there is none. */
function firstOf({ messages, offset }) {
  return messages[0]?.stream.offset ?? offset + 1;
}

function gapBefore(page, place) {
  if (page.epoch === undefined) return "What was said meanwhile is not here.";
  if (page.epoch !== place?.epoch) return "The room was started anew: something may be missing here.";
  if (firstOf(page) > place.offset + 1) return "Not all of it is kept any more: something is missing here.";
  return "";
}

function cameIn(room, keeps, isTrimmed) {
  const now = clock(Date.now());
  if (!keeps) room.notice(`You came in at ${now}. What was said before is not kept here.`, "here");
  else if (!room.isEmpty) room.notice(`Said before you came in at ${now}`, "here");
  else room.notice(`You came in at ${now}.${isTrimmed ? "" : " Nothing was said before."}`, "here");
}
