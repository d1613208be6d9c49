// The console's keyboard: what has data-key is done by that key, data-row is moved among by j and k.
"use strict";

const FIELDS = "input, textarea, select";

function act(element) {
  if (element.matches(FIELDS)) element.focus();
  else element.click();
}

function move(step) {
  const rows = [...document.querySelectorAll("[data-row]")];
  if (!rows.length) return;
  const here = rows.indexOf(document.activeElement);
  const there = here < 0 ? (step > 0 ? 0 : rows.length - 1) : here + step;
  rows[Math.min(Math.max(there, 0), rows.length - 1)].focus();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.matches(FIELDS)) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const element = /^[a-z]$/.test(event.key) && document.querySelector(`[data-key="${event.key}"]`);
  if (element) act(element);
  else if (event.key === "j") move(1);
  else if (event.key === "k") move(-1);
  else return;
  event.preventDefault();
});
