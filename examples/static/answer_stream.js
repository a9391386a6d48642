/** The page of the answer stream: it shows the messages of one room, from the start. */

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
client.onLost(begin); // the server was restarted, or the connection was lost for too long
client.onState((state) => {
  document.body.dataset.state = state;
  $("state").textContent = STATES[state];
});
$("form").addEventListener("submit", ask);
$("stop").addEventListener("click", () => request("answer:stop"));
/** The kept messages come through the same handlers, and then the live ones. */
function join() {
  return client.join(ROOM, { since: "start", timeout: Infinity });
}

function begin() {
  answers.clear();
  $("answers").replaceChildren();
  update();
  return join();
}

/** Apply a message of the room to the page, unless its answer is not shown any more. */
const events = {
  question({ answer, text }) {
    answers.get(answer)?.remove(); // it comes again: the page may have joined twice between two cuts
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

/** Send a request; a refusal is shown beside the form. */
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
