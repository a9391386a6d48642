/**
 * Sending messages, and showing what became of them.
 *
 * A message of this user is a letter until the hub has confirmed it. Without a connection it
 * waits, and is sent when there is one. A letter in flight at a cut is retransmitted by the
 * client under its id, so that the hub handles it once. If no answer comes, its outcome is
 * unknown, and the user decides.
 */

import { Letter } from "./conversation.js";
import { newId } from "./eyewall.js";

const MOST = 100; // letters of one conversation that may wait
const ANSWER = 60; // seconds, cuts included; the hub keeps the session of a client for longer

export class Letters {
  #edit;
  /** @type {import("./eyewall.js").Client | null} */
  client = null;
  /** Whether there is a connection that does not drain. */
  online = false;

  /** @param {(talk, text: string) => void} edit puts the text of a letter back into the field */
  constructor(edit) {
    this.#edit = edit;
  }

  /** Whether a letter would be written at once. */
  ready(talk) {
    return this.online && (talk.kind === "private" || talk.joined);
  }

  /** Send a letter; false if too many wait already. */
  write(talk, text) {
    if (talk.letters.length >= MOST) return false;
    const letter = new Letter(newId(), text);
    talk.post(letter);
    this.#send(talk, letter);
    return true;
  }

  /** The connection is lost: letters in flight wait, too. */
  interrupt(talk) {
    for (const letter of talk.letters.filter(({ state }) => state === "sending")) {
      this.#wait(talk, letter, "Not confirmed when the connection broke.");
    }
  }

  /** The connection is back: send the waiting letters in their order. */
  flush(talk) {
    for (const letter of talk.letters.filter(({ state }) => state === "waiting")) {
      if (letter.sent) letter.become("sending", ""); // the client retransmits it
      else this.#send(talk, letter);
    }
  }

  async #send(talk, letter) {
    if (!this.ready(talk)) {
      this.#wait(talk, letter, "Waits for the connection.");
      return;
    }
    letter.become("sending", "");
    letter.sent = new AbortController();
    const { signal } = letter.sent;
    const [topic, data] =
      talk.kind === "room"
        ? ["chat:say", { room: talk.id, text: letter.text }]
        : ["chat:private", { to: talk.id, text: letter.text }];
    try {
      const answer = await this.client.request(topic, data, { id: letter.id, timeout: ANSWER, signal });
      this.#settle(talk, letter, answer);
    } catch (error) {
      if (!signal.aborted) this.#returned(talk, letter, error);
    }
  }

  #wait(talk, letter, why) {
    letter.become("waiting", why, [this.#takeBack(talk, letter)]);
  }

  #settle(talk, letter, { delivered, online }) {
    if (talk.kind === "room") talk.confirm(letter);
    else if (delivered === 1) talk.confirm(letter, { mark: "Delivered" });
    else if (delivered) talk.confirm(letter, { mark: `Delivered to ${delivered} windows` });
    else if (online) this.#fail(talk, letter, "failed", "No window of theirs has confirmed it.");
    else this.#fail(talk, letter, "failed", "Not delivered: they are not here.");
  }

  #returned(talk, letter, error) {
    if (error.code === "ack_timeout" || error.code === "connection_closed") {
      this.#fail(talk, letter, "unknown", "Not confirmed: it may have arrived or not.");
    } else {
      this.#fail(talk, letter, "failed", `Not sent: ${error.message}.`);
    }
  }

  #fail(talk, letter, state, why) {
    letter.sent = null;
    letter.become(state, why, [
      ["Send again", () => this.#sendAgain(talk, letter)],
      this.#takeBack(talk, letter),
    ]);
    talk.changed(talk);
  }

  #sendAgain(talk, letter) {
    // The hub answers a duplicate id with its first answer: a refused letter needs a new id.
    if (letter.state === "failed") letter.id = newId();
    this.#send(talk, letter);
    this.#edit(talk, "");
  }

  #takeBack(talk, letter) {
    const takeBack = () => {
      letter.sent?.abort();
      talk.take(letter);
      this.#edit(talk, letter.text);
    };
    return ["Take back", takeBack];
  }
}
