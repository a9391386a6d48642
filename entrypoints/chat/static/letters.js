/**
 * Sending, and saying honestly what became of it.
 *
 * A message of ours is a letter until the hub has confirmed it. While there is no
 * connection it waits, and goes out by itself when there is one. One that was on the
 * wire when the connection broke is sent again under its id, if the hub has given us
 * our session back: it then handles the id once. Otherwise nobody can know, and the
 * writer decides.
 */

import { newId } from "./connection.js";
import { Letter } from "./conversation.js";

const MOST = 100; // letters of one conversation that may wait

export class Letters {
  #edit;
  /** @type {import("./connection.js").Connection | null} */
  connection = null;

  /** @param {(talk, text: string) => void} edit puts the text of a letter back into the field */
  constructor(edit) {
    this.#edit = edit;
  }

  /** Whether what is sent now would leave now. */
  ready(talk) {
    return Boolean(this.connection?.online) && (talk.kind === "private" || talk.joined);
  }

  /** Write a letter; false if too many are waiting already. */
  write(talk, text) {
    if (talk.letters.length >= MOST) return false;
    const letter = new Letter(newId(), text);
    talk.post(letter);
    this.#send(talk, letter);
    return true;
  }

  /** The connection is back: send what has waited, in the order in which it was written. */
  flush(talk) {
    for (const letter of talk.letters.filter(({ state }) => state === "waiting")) {
      if (letter.inDoubt && !this.connection.resumed) this.#doubt(talk, letter);
      else this.#send(talk, letter);
    }
  }

  async #send(talk, letter) {
    if (!this.ready(talk)) {
      letter.become("waiting", "Waits for the connection.", [this.#takeBack(talk, letter)]);
      return;
    }
    letter.become("sending", "");
    const [topic, data] =
      talk.kind === "room"
        ? ["chat:say", { room: talk.id, text: letter.text }]
        : ["chat:private", { to: talk.id, text: letter.text }];
    try {
      this.#settle(talk, letter, await this.connection.request(topic, data, { id: letter.id }));
    } catch (error) {
      this.#returned(talk, letter, error);
    }
  }

  #settle(talk, letter, { delivered, online }) {
    if (talk.kind === "room") talk.confirm(letter);
    else if (delivered === 1) talk.confirm(letter, { mark: "Delivered" });
    else if (delivered) talk.confirm(letter, { mark: `Delivered to ${delivered} windows` });
    else if (online) this.#fail(talk, letter, "failed", "No window of theirs has confirmed it.");
    else this.#fail(talk, letter, "failed", "Not delivered: they are not here.");
  }

  #returned(talk, letter, error) {
    if (error.code === "lost") {
      letter.inDoubt = true;
      letter.become("waiting", "Not confirmed when the connection broke.", [this.#takeBack(talk, letter)]);
    } else if (error.code === "timeout") {
      this.#doubt(talk, letter);
    } else if (error.code === "offline" || this.connection.state.name === "draining") {
      letter.become("waiting", "Waits for the connection.", [this.#takeBack(talk, letter)]);
    } else {
      this.#fail(talk, letter, "failed", `Not sent: ${error.message}.`);
    }
  }

  #doubt(talk, letter) {
    this.#fail(talk, letter, "unknown", "Not confirmed: it may have arrived or not.");
  }

  #fail(talk, letter, state, why) {
    letter.become(state, why, [
      ["Send again", () => this.#sendAgain(talk, letter)],
      this.#takeBack(talk, letter),
    ]);
    talk.changed(talk);
  }

  #sendAgain(talk, letter) {
    // The hub answers a repeated id with its first answer: what it refused needs a new one.
    if (letter.state === "failed") letter.id = newId();
    this.#send(talk, letter);
    this.#edit(talk, "");
  }

  #takeBack(talk, letter) {
    const takeBack = () => {
      talk.take(letter);
      this.#edit(talk, letter.text);
    };
    return ["Take back", takeBack];
  }
}
