/** Draws the chat. Nothing here changes its state. */

import { keyOf, names } from "./conversation.js";
import { plural, showRows } from "./rows.js";

/** @typedef {import("./chat.js").chat} Chat */

const $ = (id) => document.getElementById(id);

const MOST = 200; // people that the list shows

const STATES = {
  connecting: ["Connecting", "Connecting…"],
  open: ["Online", ""],
  draining: ["Restarting", "The server is about to restart. You will be back soon; what you write waits."],
  waiting: ["Offline", "The connection is lost. What you write waits until it is back."],
  closed: ["Disconnected", "You are disconnected"],
};

/** The texts for close codes after which the client does not reconnect. */
const REASONS = {
  policy_violation: "the server refused this connection",
  message_too_big: "a message was too large",
  replaced: "another window took the place of this one",
  disconnected: "somebody at the server has closed the connection",
  auth_failed: "the server does not let you in with this name or token",
};

export const reasonOf = ({ reason, code }) => REASONS[reason] || reason || `code ${code}`;

// --- the connection

/** @param {Chat["state"]} state */
export function showState(state) {
  const [word, line] = STATES[state.name];
  const text = state.name === "closed" ? `${line}: ${reasonOf(state)}.` : line;
  $("state-word").textContent = word;
  $("banner").hidden = state.name === "open";
  $("banner-text").textContent = text;
  $("reconnect").hidden = !["waiting", "closed"].includes(state.name);
  $("reconnect").textContent = state.name === "closed" ? "Reconnect" : "Try now";
  tell(text || "Online.");
  showCountdown(state);
}

export function showCountdown({ name, at }) {
  const left = name === "waiting" ? Math.max(1, Math.ceil((at - Date.now()) / 1000)) : 0;
  $("countdown").textContent = left ? `Next try in ${left} s.` : "";
}

/** Tell who listens instead of looking. */
export function tell(text) {
  $("status").textContent = text;
}

// --- the conversation

/** @param {Chat} chat */
export function showTalk(chat) {
  const { kind, id, typists } = chat.current;
  const room = kind === "room";
  $("title").textContent = room ? `# ${id}` : id;
  $("subtitle").textContent = subtitle(chat);
  $("leave-room").hidden = !room || id === chat.lobby;
  const verb = typists.length > 1 ? "are" : "is";
  $("typing").textContent = typists.length ? `${names(typists)} ${verb} typing…` : "";
  showPeople(chat);
}

function subtitle({ state, current, listed, online }) {
  if (state.name !== "open") return STATES[state.name][0];
  if (current.kind === "private") return `In private, ${online.has(current.id) ? "online" : "not here"}`;
  return current.joined ? plural(countOf(current, listed), "person", "people") : "You are not in this room";
}

/** The hub counts windows; of a room that we are in, we know the people. */
function countOf(room, listed) {
  return room.joined && !room.more ? room.people.size : (listed.get(room.id) ?? 0);
}

function showPeople({ me, current, online, openPrivate }) {
  const room = current.kind === "room";
  const here = room ? current.people : new Map([[me, 1], [current.id, 1]]);
  const ordered = [...here].sort(([a], [b]) => (b === me) - (a === me) || `${a}`.localeCompare(`${b}`));
  const row = (name, windows) => {
    const other = name !== me && name !== null; // who came without a name can't be written to
    return {
      label: name ?? "a guest",
      person: true,
      me: name === me,
      windows,
      away: !room && other && !online.has(name),
      hint: other && room ? `Write to ${name} in private` : "",
      open: other && room ? () => openPrivate(name) : undefined,
    };
  };
  const rows = ordered.slice(0, MOST).map(([name, windows]) => [`${name}`, row(name, windows)]);
  showRows($("people"), new Map(rows));
  $("people-title").textContent = room ? "Here" : "In private";
  $("alone").hidden = !room || !current.joined || here.size > 1 || current.log.childElementCount > 3;
}

// --- the lists

/** @param {Chat} chat */
export function showLists(chat) {
  const talks = [...chat.conversations.values()];
  const rooms = talks.filter(({ kind }) => kind === "room").map(({ id }) => id);
  const ids = new Set([chat.lobby, ...[...rooms, ...chat.listed.keys()].sort()]);
  showRows($("rooms"), new Map([...ids].map((id) => [id, roomRow(chat, id)])));
  const privates = talks.filter(({ kind }) => kind === "private");
  showRows($("privates"), new Map(privates.map((talk) => [talk.id, privateRow(chat, talk)])));
  $("private-section").hidden = !privates.length;
  showUnread(chat, talks.reduce((sum, { unread }) => sum + unread, 0));
}

function roomRow({ conversations, current, listed, openRoom }, id) {
  const room = conversations.get(keyOf("room", id));
  return {
    label: id,
    joined: Boolean(room?.joined),
    current: Boolean(room) && room === current,
    count: room ? countOf(room, listed) : listed.get(id),
    unread: room?.unread,
    open: () => openRoom(id),
  };
}

function privateRow({ current, online, openPrivate }, talk) {
  return {
    label: talk.id,
    person: true,
    away: !online.has(talk.id),
    current: talk === current,
    unread: talk.unread,
    open: () => openPrivate(talk.id),
  };
}

function showUnread({ current }, unread) {
  document.title = `${unread ? `(${unread}) ` : ""}${current ? `${current.id} · ` : ""}eyewall`;
  $("elsewhere").hidden = !unread;
  $("elsewhere").textContent = unread;
}

// --- scrolling: stay with the newest message, unless somebody reads further up

let follows = true;

export function scrollDown() {
  $("scroll").scrollTop = $("scroll").scrollHeight;
  $("newest").hidden = true;
  follows = true;
}

/** Something was added at the end. */
export function showNewest() {
  if (follows) scrollDown();
  else $("newest").hidden = false;
}

$("scroll").addEventListener("scroll", () => {
  const { scrollHeight, scrollTop, clientHeight } = $("scroll");
  follows = scrollHeight - scrollTop - clientHeight < 48;
  if (follows) $("newest").hidden = true;
});

$("newest").addEventListener("click", () => {
  scrollDown();
  $("text").focus();
});

// A phone's keyboard takes half of the window away.
new ResizeObserver(() => follows && scrollDown()).observe($("scroll"));
