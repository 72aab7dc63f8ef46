"""The script of a report's page: details of what the pointer is on, filter, tabs, sorting, zoom."""

from __future__ import annotations

from memarch.studies.report.zoom import ZOOM

SCRIPT = (
    r"""
(() => {
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const data = JSON.parse(document.getElementById("data").textContent);
const tip = document.getElementById("tip"), card = document.getElementById("card");

// Numbers for people, in the units of the page's tables.
const trimmed = (value, digits) => String(Number(value.toPrecision(digits)));
const scaled = (value, base, units, gap, digits) => {
  let step = 0;
  while (Math.abs(value) >= base && step < units.length - 1) { value /= base; step += 1; }
  const text = step || value % 1 ? trimmed(value, digits || 3) : String(value);
  return text + gap + units[step];
};
const shown = (name, value, digits) => {
  if (typeof value !== "number") return String(value);
  if (name.endsWith("_bytes")) {
    return scaled(value, 1024, ["B", "KiB", "MiB", "GiB", "TiB"], " ", digits);
  }
  if (name.endsWith("seconds")) {
    const [time, unit] = value < 120 ? [value, " s"] : [value / 60, " min"];
    return (digits ? trimmed(time, digits) : time.toFixed(1)) + unit;
  }
  if (name.startsWith("cost/") || Math.abs(value) >= 1e5) {
    return scaled(value, 1000, ["", "k", "M", "G", "T", "P"], "", digits);
  }
  return trimmed(value, digits || 4);
};
const element = (tag, words, parent) => {
  const made = document.createElement(tag);
  made.textContent = words;
  parent.append(made);
  return made;
};
const describe = (box, number, everything) => {
  const [title, state, reason, values] = data.trials[number];
  element("b", title, box);
  if (state !== "complete") element("p", state + (reason ? ": " + reason : ""), box);
  const list = element("dl", "", box);
  data.names.forEach((name, index) => {
    const value = values[index];
    if (value === null || (!everything && index >= data.shown)) return;
    const row = element("div", "", list);
    element("dt", name, row);
    element("dd", shown(name, value), row);
  });
};
const owner = (node) => node.closest ? node.closest("[data-t]") : null;
const numbers = (node) => node.dataset.t.split(" ");

// The pointer shows a trial; a click keeps it, marks it in every picture and in the tables.
const place = (event) => {
  const room = 14, box = tip.getBoundingClientRect();
  const left = event.clientX + room + box.width > innerWidth ? event.clientX - room - box.width
                                                             : event.clientX + room;
  tip.style.left = Math.max(4, left) + "px";
  tip.style.top = Math.max(4, Math.min(event.clientY + room, innerHeight - box.height - 4)) + "px";
};
document.addEventListener("pointermove", (event) => {
  const node = owner(event.target);
  if (!node || node.closest("table") || node.closest("#card")) { tip.hidden = true; return; }
  if (tip.hidden || tip.dataset.t !== node.dataset.t) {
    tip.dataset.t = node.dataset.t;
    tip.textContent = "";
    const known = numbers(node).filter((number) => data.trials[number]);
    known.slice(0, 3).forEach((number) => describe(tip, number, false));
    if (known.length > 3) element("p", "and " + (known.length - 3) + " more trials", tip);
    tip.hidden = known.length === 0;
  }
  place(event);
});
const pick = (number) => {
  all(".picked").forEach((node) => node.classList.remove("picked"));
  card.hidden = number === null;
  if (number === null) return;
  all("[data-t]").filter((node) => numbers(node).includes(number))
    .forEach((node) => node.classList.add("picked"));
  card.textContent = "";
  const close = element("button", "\u00d7", card);
  close.setAttribute("aria-label", "close");
  close.addEventListener("click", () => pick(null));
  describe(card, number, true);
};
document.addEventListener("click", (event) => {
  const node = owner(event.target);
  if (node && !event.target.closest("#card, a, button")) pick(numbers(node)[0]);
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") pick(null); });

// Long tables show their first rows, of the variants that are not switched off.
const FIRST = 20;
const limit = (table) => {
  let seen = 0;
  for (const row of table.tBodies[0].rows) {
    const off = row.classList.contains("off");
    seen += off ? 0 : 1;
    row.hidden = !off && !table.classList.contains("all") && seen > FIRST;
  }
  const more = table.parentElement.nextElementSibling;
  if (!more || !more.classList.contains("more")) return;
  more.hidden = seen <= FIRST;
  const unfolded = table.classList.contains("all");
  more.textContent = unfolded ? "show the first " + FIRST : "show all " + seen;
};
all("table").forEach((table) => {
  const more = document.createElement("button");
  more.className = "more";
  more.addEventListener("click", () => { table.classList.toggle("all"); limit(table); });
  table.parentElement.after(more);
  limit(table);
});

// The legend switches variants off and on, everywhere; with a double click, all others.
const toggles = all("[data-v]").filter((node) => node.tagName === "BUTTON");
const apply = () => {
  for (const toggle of toggles) {
    const off = toggle.getAttribute("aria-pressed") === "false";
    all("." + toggle.dataset.v).forEach((node) => node.classList.toggle("off", off));
  }
  all("table").forEach(limit);
};
for (const toggle of toggles) {
  toggle.addEventListener("click", () => {
    const on = toggle.getAttribute("aria-pressed") === "true";
    toggle.setAttribute("aria-pressed", String(!on));
    apply();
  });
  toggle.addEventListener("dblclick", () => {
    for (const other of toggles) other.setAttribute("aria-pressed", String(other === toggle));
    apply();
  });
}
const reset = document.getElementById("reset");
if (reset) reset.addEventListener("click", () => {
  for (const toggle of toggles) toggle.setAttribute("aria-pressed", "true");
  apply();
});

// Tabs: one of several panels.
for (const tabs of all(".tabs")) {
  const buttons = all(":scope > .bar button", tabs), panels = all(":scope > .panel", tabs);
  const show = (index) => {
    panels.forEach((panel, other) => { panel.hidden = other !== index; });
    buttons.forEach((button, other) =>
      button.setAttribute("aria-selected", String(other === index)));
  };
  buttons.forEach((button, index) => button.addEventListener("click", () => show(index)));
  show(0);
}

// A click on a heading sorts.
for (const head of all("th")) {
  head.addEventListener("click", () => {
    const row = head.parentElement, table = head.closest("table"), body = table.tBodies[0];
    const index = [...row.children].indexOf(head);
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of row.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = (line) => {
      const cell = line.children[index], raw = cell.dataset.s ?? cell.textContent;
      return raw.trim() !== "" && !isNaN(raw) ? Number(raw) : raw;
    };
    const order = (a, b) => (typeof a === "number" && typeof b === "number")
      ? a - b : String(a).localeCompare(String(b));
    [...body.rows].sort((a, b) => (up ? 1 : -1) * order(value(a), value(b)))
      .forEach((line) => body.append(line));
    limit(table);
  });
}

// Light or dark: the reader's system decides, the button decides otherwise.
const theme = document.getElementById("theme");
theme.addEventListener("click", () => {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const now = document.documentElement.dataset.theme || (dark ? "dark" : "light");
  document.documentElement.dataset.theme = now === "dark" ? "light" : "dark";
});
"""
    + ZOOM
    + "})();\n"
)
