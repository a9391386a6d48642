/** Lists of rooms and people: one button per row. Rows are reused, so that the focus stays. */

import { el, tint } from "./conversation.js";

/**
 * @typedef {{label: string, person?: boolean, me?: boolean, current?: boolean, joined?: boolean,
 *            away?: boolean, count?: number, windows?: number, unread?: number,
 *            hint?: string, open?: () => void}} Row
 */

export const plural = (n, one, many) => `${n} ${n === 1 ? one : many}`;

/** Show `rows`, a map by key, in a list; moves as few elements as possible. */
export function showRows(list, rows) {
  const there = new Map([...list.children].map((item) => [item.dataset.key, item]));
  for (const [key, item] of there) if (!rows.has(key)) item.remove();
  let at = list.firstElementChild;
  for (const [key, row] of rows) {
    const item = there.get(key) ?? makeRow(key, row);
    if (item === at) at = at.nextElementSibling;
    else list.insertBefore(item, at);
    fillRow(item.firstElementChild, row);
  }
}

function makeRow(key, { label, person }) {
  const sign = el("span", { className: person ? "avatar" : "hash", ariaHidden: "true" });
  if (person) showAvatar(sign, label);
  else sign.textContent = "#";
  const button = el(
    "button",
    { type: "button" },
    sign,
    el("bdi", { className: "label" }),
    el("span", { className: "count" }),
    el("span", { className: "badge" }),
  );
  const item = el("li", {}, button);
  item.dataset.key = key;
  return item;
}

/** @param {Row} row */
function fillRow(button, row) {
  const [, label, count, badge] = button.children;
  label.textContent = row.me ? `${row.label} (you)` : row.label;
  count.textContent = row.count ?? (row.windows > 1 ? `×${row.windows}` : "");
  badge.textContent = row.unread ?? "";
  badge.hidden = !row.unread;
  button.ariaLabel = spoken(row);
  button.onclick = row.open ?? null;
  button.disabled = !row.open;
  button.title = row.hint ?? "";
  button.classList.toggle("joined", row.joined ?? true);
  button.classList.toggle("unread", Boolean(row.unread));
  button.classList.toggle("away", Boolean(row.away));
  if (row.current) button.setAttribute("aria-current", "true");
  else button.removeAttribute("aria-current");
}

/** The text of a row for screen readers: the numbers with what they count. */
function spoken({ label, me, count, windows, away, unread }) {
  const parts = [me ? `${label} (you)` : label];
  if (count !== undefined) parts.push(plural(count, "person", "people"));
  if (windows > 1) parts.push(`${windows} windows`);
  if (away) parts.push("not here");
  if (unread) parts.push(`${unread} unread`);
  return parts.join(", ");
}

export function showAvatar(element, name) {
  element.textContent = [...name][0]?.toUpperCase() ?? "";
  tint(element, name);
}

/** Move the focus through a list by the arrow keys. */
document.addEventListener("keydown", (event) => {
  const item = document.activeElement?.closest(".list > li");
  const next = { ArrowDown: item?.nextElementSibling, ArrowUp: item?.previousElementSibling }[event.key];
  if (!next) return;
  event.preventDefault();
  next.firstElementChild.focus();
});
