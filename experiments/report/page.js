// What a mark or a cell stands for, beside it: under pointer or finger, or chosen by keys.
"use strict";
const tip = document.body.appendChild(document.createElement("div"));
tip.id = "tip";
tip.setAttribute("role", "tooltip");
let shown = null;

function show(mark) {
  shown?.classList.remove("shown");
  shown = mark;
  tip.classList.toggle("on", Boolean(mark));
  if (!mark) return;
  mark.classList.add("shown");
  tip.textContent = mark.dataset.tip;
  const at = mark.getBoundingClientRect(), edge = document.documentElement.clientWidth - tip.offsetWidth - 8;
  const above = at.top - tip.offsetHeight - 8;
  tip.style.left = `${Math.max(8, Math.min(at.left + (at.width - tip.offsetWidth) / 2, edge))}px`;
  tip.style.top = `${above < 8 ? at.bottom + 8 : above}px`;
}

// A finger is wider than a mark: the nearest within its reach counts.
function nearest(event) {
  const group = event.target.closest?.(".plot svg, .map");
  if (!group) return null;
  const cell = event.target.closest("[data-tip]");
  if (cell || group.matches(".map")) return cell;
  const away = (mark) => {
    const at = mark.getBoundingClientRect();
    return Math.hypot(at.x + at.width / 2 - event.clientX, at.y + at.height / 2 - event.clientY);
  };
  const found = [...group.querySelectorAll(".mark")].map((mark) => [away(mark), mark]);
  const [distance, mark] = found.reduce((a, b) => (b[0] < a[0] ? b : a), [Infinity, null]);
  return distance < 24 ? mark : null;
}

for (const group of document.querySelectorAll(".plot svg, .map")) {
  const marks = [...group.querySelectorAll(".mark, td[title]")];
  marks.forEach((mark, place) => {
    const title = mark.querySelector("title");
    mark.dataset.tip = title ? title.textContent : mark.title;
    if (title) {
      title.remove();
      mark.setAttribute("role", "img");
      mark.setAttribute("aria-label", mark.dataset.tip);
    } else mark.removeAttribute("title");
    mark.tabIndex = place ? -1 : 0;
  });
  group.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const next = marks[marks.indexOf(event.target) + step];
    if (!next) return;
    event.preventDefault();
    marks.forEach((mark) => (mark.tabIndex = mark === next ? 0 : -1));
    next.focus();
  });
}
for (const name of ["pointermove", "pointerdown"]) {
  document.addEventListener(name, (event) => show(nearest(event)));
}
document.addEventListener("focusin", (event) => show(event.target.closest("[data-tip]")));
// What has the focus was scrolled to; what is under a finger was left.
const scrolled = () => show(shown === document.activeElement ? shown : null);
document.addEventListener("scroll", scrolled, { passive: true, capture: true });
document.addEventListener("keydown", (event) => event.key === "Escape" && show(null));
