/** The page of the answer stream: what it shows are the messages of one room, from the start. */

import { connect } from "/eyewall.js";

const ROOM = "answers";
const SHOWN = 10; // answers
const STATES = {
  connecting: "Connecting…",
  open: "Connected",
  waiting: "Offline, trying again. The answer is written on, and comes then.",
  closed: "Disconnected",
};
const ENDS = { done: "", stopped: "Stopped." };

const $ = (id) => document.getElementById(id);
const answers = new Map(); // id -> its element, those that are shown

const client = connect("/ws");
client.on("answer", ({ event, data }) => events[event]?.(data));
client.onLost(begin); // the server has begun anew, or we were away for too long
client.onState((state) => {
  document.body.dataset.state = state;
  $("state").textContent = STATES[state];
});
$("form").addEventListener("submit", ask);
$("stop").addEventListener("click", () => request("answer:stop"));
/** All that the room keeps comes through the same handlers, and then what is new. */
function join() {
  return client.join(ROOM, { since: "start", timeout: Infinity });
}

function begin() {
  answers.clear();
  $("answers").replaceChildren();
  update();
  return join();
}

/** What a message of the room does to the page; of an answer that is not shown, nothing. */
const events = {
  question({ answer, text }) {
    answers.get(answer)?.remove(); // it is told anew: between two cuts the page may have joined twice
    answers.delete(answer);
    const element = make("article", "", "sheet");
    element.ariaBusy = "true";
    element.append(make("h2", text), make("p", "", "text"), make("p", "", "end"));
    answers.set(answer, element);
    $("answers").prepend(element);
    const [[oldest, last]] = answers;
    if (answers.size > SHOWN) {
      last.remove();
      answers.delete(oldest);
    }
    update();
  },

  piece({ answer, text }) {
    answers.get(answer)?.querySelector(".text").append(text);
  },

  end({ answer, text }) {
    const element = answers.get(answer);
    if (element === undefined) return;
    element.ariaBusy = "false";
    element.querySelector(".end").textContent = ENDS[text] ?? text;
    update();
  },
};

function update() {
  $("stop").disabled = ![...answers.values()].some(({ ariaBusy }) => ariaBusy === "true");
}

async function ask(event) {
  event.preventDefault();
  if (await request("answer:ask", { text: $("question").value })) $("form").reset();
}

/** Ask the server; what it refuses is said beside the form. */
async function request(topic, data) {
  $("note").textContent = "";
  try {
    return await client.request(topic, data);
  } catch (error) {
    $("note").textContent = `That was not possible: ${error.message}.`;
    return null;
  }
}

function make(tag, text, className = "") {
  return Object.assign(document.createElement(tag), { textContent: text, className });
}

await join();
