/** In narrow windows the lists of rooms and people are panels that open from the side. */

const $ = (id) => document.getElementById(id);

const PANELS = [
  [$("open-rooms"), $("rooms-panel")],
  [$("open-people"), $("people-panel")],
];

function open(button, panel) {
  panel.classList.add("open");
  button.setAttribute("aria-expanded", "true");
  $("talk").inert = true;
  panel.querySelector(".close").focus();
}

/** Close the open panel, and put the focus back to its button. */
export function closePanels() {
  $("talk").inert = false;
  for (const [button, panel] of PANELS) {
    if (!panel.classList.contains("open")) continue;
    panel.classList.remove("open");
    button.setAttribute("aria-expanded", "false");
    button.focus();
  }
}

for (const [button, panel] of PANELS) {
  button.addEventListener("click", () => open(button, panel));
  panel.querySelector(".close").addEventListener("click", closePanels);
}
$("veil").addEventListener("click", closePanels);
document.addEventListener("keydown", (event) => event.key === "Escape" && closePanels());
for (const width of ["(min-width: 48rem)", "(min-width: 64rem)"]) {
  matchMedia(width).addEventListener("change", closePanels);
}
