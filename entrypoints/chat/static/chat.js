/** The chat: the state of the page, changed by messages of the connection and by the user. */

import { Client } from "./eyewall.js";
import { Conversation, keyOf } from "./conversation.js";
import { History } from "./history.js";
import { Letters } from "./letters.js";
import { closePanels } from "./panels.js";
import { plural, showAvatar } from "./rows.js";
import * as view from "./view.js";

const PEOPLE = 200; // members of a room that the page requests
const PRIVATES = 50; // private conversations that the page keeps
const TYPING_EVERY = 3000;
const PRESENCE_EVERY = 15000;
// The server's rule: visible characters, and those that join others.
const NAME = /^[^\p{Cc}\p{Cs}\u200b\u2028-\u202e\u2060\u2066-\u2069\ufeff]{1,32}$/u;
const BAD_NAME = "A name has up to 32 letters, digits, signs or spaces.";

const $ = (id) => document.getElementById(id);
const tidy = (name) => name.trim().replace(/\s+/gu, " ");

export const chat = {
  me: "",
  lobby: "general",
  /** @type {Client | null} */
  client: null,
  /** The client's state, or `draining`, with its details. */
  state: { name: "closed" },
  /** @type {Map<string, Conversation>} */
  conversations: new Map(),
  /** @type {Conversation | null} */
  current: null,
  /** Rooms with their numbers of connections, from the hub's last list. */
  listed: new Map(),
  /** The users of private conversations who are online. */
  online: new Set(),
  openRoom,
  openPrivate,
};

let lostAt = null;
let typingSince = 0;

const letters = new Letters((talk, text) => {
  if (text && talk === chat.current && !$("text").value) setText(text);
  $("text").focus();
});

const history = new History(receive);

const all = (kind) => [...chat.conversations.values()].filter((talk) => talk.kind === kind);

// --- state that survives a reload, per window

const memory = JSON.parse(sessionStorage.getItem("eyewall") ?? "{}");

function remember() {
  const drafted = [...chat.conversations.values()].filter(({ draft }) => draft);
  const kept = {
    name: chat.me,
    rooms: all("room").map(({ id }) => id),
    open: chat.current.kind === "room" ? chat.current.id : chat.lobby,
    drafts: Object.fromEntries(drafted.map(({ key, draft }) => [key, draft])),
  };
  sessionStorage.setItem("eyewall", JSON.stringify(kept));
}

// --- the login

$("enter").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = tidy($("name").value);
  if (NAME.test(name)) {
    $("door-note").textContent = "";
    knock(name);
    return;
  }
  $("door-note").textContent = name ? BAD_NAME : "Please give a name first.";
  $("name").focus();
});

function knock(name) {
  chat.client?.close();
  // If the server wants tokens, the page was opened with one: ?token=...
  const url = new URL(`/ws${location.search}`, location.href);
  url.searchParams.set("name", name);
  const client = new Client(url);
  chat.client = client;
  letters.client = client;
  history.client = client;
  client.onState(onState);
  client.onLost(onLost);
  client.on("*", onMessage);
  client.on("system:kicked", ({ data }) => onKicked(data));
  client.connect();
}

/** A browser does not say why a WebSocket was refused: check whether the server answers. */
async function explainDoor(asked, state) {
  if (state.name === "closed" && state.code !== 1000) {
    $("door-note").textContent = `The door stays closed: ${view.reasonOf(state)}.`;
  }
  if (state.name !== "waiting") return;
  const alive = await fetch("/", { method: "HEAD", cache: "no-store" }).then(({ ok }) => ok, () => false);
  if (asked !== chat.client || chat.current) return;
  $("door-note").textContent = alive
    ? "The server is there, but does not let you in: it may not take this name, ask for a token, or be full. " +
      "Trying again…"
    : "The server does not answer. Trying again…";
}

function comeIn() {
  chat.me = chat.client.userId ?? "";
  $("door").hidden = true;
  $("house").hidden = false;
  $("me").textContent = chat.me;
  showAvatar($("me-avatar"), chat.me);
  for (const id of new Set([chat.lobby, ...(memory.rooms ?? [])])) conversation("room", id);
  show(conversation("room", memory.open ?? chat.lobby));
}

$("leave-house").addEventListener("click", () => {
  chat.client.close();
  sessionStorage.removeItem("eyewall");
  location.reload();
});

// --- the connection

function onState(name, info) {
  const isDraining = name === "open" && info.draining !== undefined;
  const state = { ...info, name: isDraining ? "draining" : name };
  chat.state = state;
  letters.online = state.name === "open";
  document.body.dataset.state = state.name;
  document.body.style.setProperty("--wait", `${state.delay ?? 1}s`);
  if (state.name === "open" && !chat.current) comeIn();
  if (!chat.current) {
    explainDoor(chat.client, state);
    return;
  }
  if (state.name === "open") arrive();
  if (state.name === "waiting" || state.name === "closed") depart();
  view.showState(state);
  view.showTalk(chat);
}

/** The connection is open: join the rooms (again), then send the waiting letters. */
async function arrive() {
  const since = lostAt;
  lostAt = null;
  history.away = false;
  for (const talk of all("private")) letters.flush(talk);
  for (const room of all("room")) enter(room, since);
  const list = await quietly("chat:rooms", {});
  if (list) setRooms(list.rooms);
  watchPresence();
}

function depart() {
  lostAt ??= Date.now();
  history.away = true;
  for (const talk of chat.conversations.values()) {
    talk.joined = false;
    letters.interrupt(talk);
    for (const name of talk.typists) talk.stopped(name);
  }
}

/** Join a room, and create it if it is gone; `since` is when the connection was lost. */
async function enter(room, since = null) {
  const { client } = chat;
  const turn = {};
  room.entering = turn; // after a cut a new attempt begins
  const isOver = () => room.entering !== turn || !letters.online;
  try {
    await client.request("chat:create", { room: room.id });
    const away = since ? duration(Date.now() - since) : "";
    await history.enter(room, away, isOver);
    const { members, cursor } = await client.members(room.id, { limit: PEOPLE });
    if (isOver()) return;
    room.joined = true;
    room.setPeople(members, { more: Boolean(cursor) });
  } catch (error) {
    if (!isOver()) room.notice(`You can't join this room: ${error.message}.`, "gap");
    return;
  }
  letters.flush(room);
}

/** Messages of a room may be missing. During a reconnect the join finds out. */
function onLost(id, { code }) {
  const room = chat.conversations.get(keyOf("room", id));
  if (!room?.visited) return;
  history.hold(room);
  if (!letters.online) return;
  if (code) {
    outOf(room, "You are not in this room any more.");
    return;
  }
  const turn = room.entering;
  history.fill(room, () => room.entering !== turn || !letters.online);
}

function duration(milliseconds) {
  const seconds = Math.max(1, Math.round(milliseconds / 1000));
  if (seconds < 120) return plural(seconds, "second", "seconds");
  return plural(Math.round(seconds / 60), "minute", "minutes");
}

$("reconnect").addEventListener("click", () => {
  chat.client.connect();
  $("text").focus();
});

/** Send a request whose failure does not matter. */
function quietly(topic, data, options) {
  return chat.client.request(topic, data, options).catch(() => null);
}

// --- receiving

function onMessage(message) {
  const { topic, event, data, stream } = message;
  if (topic === "chat:said" || stream) onSaid(stream?.room ?? data.room, message);
  else if (topic === "chat:rooms") setRooms(data.rooms);
  else if (topic === "chat:private") onPrivate(data);
  else if (topic.startsWith("room:")) onRoom(topic.slice("room:".length), event, data);
}

function onSaid(id, message) {
  const room = chat.conversations.get(keyOf("room", id));
  if (room) history.take(room, message);
}

/** Of a room's own topic only the hub's notices count: clients can publish other messages. */
function onRoom(id, event, data) {
  const room = chat.conversations.get(keyOf("room", id));
  if (!room) return;
  if (event === "typing") room.typing(data.user_id, data.typing);
  else if (event === "join" || event === "leave") room.present(data.user_id, data.connections);
}

function onPrivate(data) {
  const mine = data.from === chat.me;
  const talk = conversation("private", mine ? data.to : data.from);
  if (!mine) chat.online.add(data.from);
  // The answer to the request says more than this copy: whether it was delivered.
  if (!mine || !talk.letters.some(({ id }) => id === data.id)) receive(talk, data);
}

function receive(talk, message, { isNew = true } = {}) {
  const mine = message.from === chat.me;
  if (talk.has(message)) return;
  const letter = mine && talk.letters.find(({ id }) => id === message.id);
  if (letter) {
    talk.confirm(letter, message);
    return;
  }
  if (isNew && !mine && (talk !== chat.current || document.hidden)) talk.unread += 1;
  if (talk.kind === "private" && talk !== chat.current) view.tell(`Private message from ${message.from}.`);
  talk.add(message);
}

function onKicked({ room: id, reason }) {
  const room = chat.conversations.get(keyOf("room", id));
  if (room?.joined) outOf(room, `You were taken out of this room${reason ? `: ${reason}` : ""}.`);
}

function outOf(room, why) {
  room.joined = false;
  room.setPeople([]);
  room.notice(why, "gap");
}

function setRooms(list) {
  chat.listed = new Map(list.map(({ id, members }) => [id, members]));
  view.showLists(chat);
}

// --- writing

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (!text) return;
  if (!letters.write(chat.current, text)) {
    view.tell("Too many messages are waiting. This one stays in the field.");
    return;
  }
  setText("");
  stopTyping();
  view.scrollDown();
});

$("text").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("composer").requestSubmit();
});

$("text").addEventListener("input", () => {
  const talk = chat.current;
  talk.draft = $("text").value;
  remember();
  if (!talk.draft) stopTyping();
  else if (talk.kind === "room" && letters.ready(talk) && Date.now() - typingSince > TYPING_EVERY) {
    typingSince = Date.now();
    quietly("system:typing", { room: talk.id, typing: true });
  }
});

function stopTyping() {
  const { kind, id } = chat.current;
  if (typingSince && kind === "room" && letters.ready(chat.current)) {
    quietly("system:typing", { room: id, typing: false });
  }
  typingSince = 0;
}

function setText(text) {
  $("text").value = text;
  chat.current.draft = text;
  remember();
}

// --- rooms and people

$("create").addEventListener("submit", async (event) => {
  event.preventDefault();
  const name = tidy($("room").value);
  const fits = NAME.test(name);
  $("create-note").textContent = fits ? "" : BAD_NAME;
  if (!fits) return;
  try {
    const { room } = await chat.client.request("chat:create", { room: name });
    $("room").value = "";
    openRoom(room);
  } catch (error) {
    $("create-note").textContent = error.message;
  }
});

function openRoom(id) {
  const room = conversation("room", id);
  if (!room.joined && letters.online) enter(room);
  show(room);
}

function openPrivate(name) {
  show(conversation("private", name));
  watchPresence();
}

$("leave-room").addEventListener("click", () => {
  const room = chat.current;
  if (room.letters.length) {
    room.notice("Not all of your messages here are confirmed. Send them or take them back first.", "gap");
    return;
  }
  // Without a timeout: until the answer the client would resume the room.
  quietly("system:leave", { room: room.id }, { timeout: Infinity });
  chat.conversations.delete(room.key);
  show(conversation("room", chat.lobby));
});

/** Return the conversation of this kind and name; makes one if there is none. */
function conversation(kind, id) {
  const key = keyOf(kind, id);
  if (!chat.conversations.has(key)) {
    const talk = new Conversation(kind, id, { me: chat.me, changed: onChanged });
    talk.draft = memory.drafts?.[key] ?? "";
    chat.conversations.set(key, talk);
    if (all("private").length > PRIVATES) forgetOne();
  }
  return chat.conversations.get(key);
}

function forgetOne() {
  const idle = all("private").find((talk) => talk !== chat.current && !talk.unread && !talk.letters.length);
  if (idle) chat.conversations.delete(idle.key);
}

async function watchPresence() {
  const users = all("private").map(({ id }) => id);
  if (!users.length || !letters.online) return;
  const answer = await quietly("system:presence", { users });
  if (!answer) return;
  chat.online = new Set(users.filter((user) => answer.users[user]?.online));
  view.showLists(chat);
  view.showTalk(chat);
}

/** Show a conversation, and focus its text field. */
function show(talk) {
  closePanels();
  if (chat.current !== talk) {
    if (chat.current) stopTyping();
    chat.current = talk;
    $("scroll").replaceChildren(talk.view);
    $("text").value = talk.draft;
    $("text-label").textContent = `Message to ${talk.id}`;
    $("text").placeholder = talk.kind === "room" ? `Say something in ${talk.id}` : `Write to ${talk.id}`;
  }
  talk.unread = 0;
  remember();
  view.showLists(chat);
  view.showTalk(chat);
  view.scrollDown();
  // On a phone the keyboard would cover the conversation.
  $(matchMedia("(pointer: fine)").matches ? "text" : "title").focus();
}

let drawing = false;

/** Draw once for many changes: a storm of joins must not block the page. */
function onChanged(talk, grown) {
  if (grown && talk === chat.current) view.showNewest();
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    view.showLists(chat);
    view.showTalk(chat);
  });
}

// --- the window itself

document.addEventListener("visibilitychange", () => {
  if (document.hidden || !chat.current) return;
  chat.current.unread = 0;
  view.showLists(chat);
});

window.addEventListener("beforeunload", (event) => {
  if ([...chat.conversations.values()].some((talk) => talk.letters.length)) event.preventDefault();
});

setInterval(() => view.showCountdown(chat.state), 250);
setInterval(watchPresence, PRESENCE_EVERY);

if (memory.name) {
  $("name").value = memory.name;
  knock(memory.name);
} else {
  $("name").focus();
}
