// What charts and rollouts share: elements, numbers, the theme, the choice of runs, the overview.

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const hiddenRuns = new Set();
const several = data.runs.length > 1;

/** An element with attributes (on… are listeners) and children; strings become text, never markup. */
function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** An SVG element, likewise. */
function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

/** A number to `digits` significant digits; empty if there is none. */
function show(value, signed = false, digits = 4) {
  if (value === null || value === undefined || Number.isNaN(value)) return "";
  const size = Math.abs(value);
  let text;
  if (size === 0) text = "0";
  else if (size >= 1000) text = Math.round(size).toLocaleString("en");
  else if (size < 0.0001) text = size.toExponential(digits - 2).replace("e-", "e−");
  else text = String(Number(size.toPrecision(digits)));
  return (value < 0 ? "−" : signed && value > 0 ? "+" : "") + text;
}

/** Seconds as people write them. */
function duration(seconds) {
  if (seconds < 60) return `${show(Number(seconds.toPrecision(3)))} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${Math.floor(seconds % 60)} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** The text with its code points in place of characters that are invisible or change its direction. */
function visible(text) {
  return text.replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]/g,
    (character) => `\\u{${character.codePointAt(0).toString(16)}}`);
}

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

/** The current value of a CSS colour variable, for a canvas. */
function colour(name) {
  const probe = el("i");
  probe.style.color = `var(--${name})`;
  document.body.append(probe);
  const value = getComputedStyle(probe).color;
  probe.remove();
  return value;
}

/** How strongly to colour a share of the scale, 0 … 1. The exponent keeps small values visible beside a large one. */
const strength = (share) => Math.min(1, Math.abs(share)) ** 0.6;

const changed = new EventTarget(); // its events: "theme", "runs"
const announce = (name) => changed.dispatchEvent(new Event(name));

function themeButton() {
  const names = { "": ["◐", "system"], light: ["☀", "light"], dark: ["☾", "dark"] };
  const button = byId("theme");
  let chosen = "";
  try {
    chosen = localStorage.getItem("primecli-theme") || "";
  } catch {
    chosen = ""; // a page opened from a file may have no storage
  }
  const apply = () => {
    if (chosen) document.documentElement.dataset.theme = chosen;
    else delete document.documentElement.dataset.theme;
    button.textContent = names[chosen][0];
    button.title = `Colour theme: ${names[chosen][1]}`;
    button.setAttribute("aria-label", button.title);
    announce("theme");
  };
  button.addEventListener("click", () => {
    const next = { "": isDark() ? "light" : "dark", light: "dark", dark: "light" }[chosen];
    chosen = next === (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light") ? "" : next;
    try {
      localStorage.setItem("primecli-theme", chosen);
    } catch {
      // then the choice lasts only as long as the page
    }
    apply();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => announce("theme"));
  apply();
}

/** How a line looks. With a single run its colour is that of the line; with several that of the run, and dashes tell lines apart. */
function lineLook(run, style) {
  return {
    colour: `var(--c${(several ? run : style) % 8})`,
    dash: several ? ["", "7 4", "2 3", "9 3 2 3"][style % 4] : style >= 4 ? "7 4" : "",
  };
}

/** A short piece of a line, for legends. */
function swatch(look) {
  const line = svg("line", { x1: 1, x2: 19, y1: 6, y2: 6, "stroke-width": 2.6, "stroke-dasharray": look.dash });
  line.style.stroke = look.colour;
  return svg("svg", { width: 20, height: 12, "aria-hidden": "true" }, line);
}

function runButtons() {
  if (!several) return;
  data.runs.forEach((run, index) => {
    const button = el("button", {
      type: "button", class: "run", "aria-pressed": "true", title: run.path,
      onclick: () => {
        if (hiddenRuns.has(index)) hiddenRuns.delete(index);
        else hiddenRuns.add(index);
        button.setAttribute("aria-pressed", String(!hiddenRuns.has(index)));
        announce("runs");
      },
    }, swatch(lineLook(index, 0)), el("span", {}, run.name));
    byId("runs").append(button);
  });
}

/** A table from rows of cells. The first row is the head, the first cell of a row its heading; `left` columns are aligned to the left. */
function table(rows, caption = null, left = 1) {
  const [head, ...body] = rows;
  const align = (column) => (column < left ? "left" : null);
  return el("table", { class: "data" },
    caption === null ? null : el("caption", {}, caption),
    el("thead", {}, el("tr", {}, head.map((cell, column) => el("th", { scope: "col", class: align(column) }, cell)))),
    el("tbody", {}, body.map((row) => el("tr", {}, row.map((cell, column) =>
      column === 0 ? el("th", { scope: "row" }, cell) : el("td", { class: align(column) }, cell))))));
}

function overview() {
  const only = data.runs[0];
  document.title = data.title;
  byId("overview-title").textContent = several ? `${data.runs.length} runs` : only.name;
  byId("subtitle").textContent = several ? data.runs.map((run) => run.path).join(" · ") : only.path;
  if (several) {
    const rows = [["run", ...data.headlines.map((line) => line.label)]];
    data.runs.forEach((run, index) => rows.push([
      el("span", { class: "name" }, swatch(lineLook(index, 0)), run.name),
      ...data.headlines.map((line) => headline(line, index)),
    ]));
    byId("summary").append(el("div", { class: "scroll" }, table(rows)));
  } else {
    byId("summary").append(el("div", { class: "tiles" }, data.headlines.map(tile)));
  }
  if (data.differences.length) {
    const rows = [["stage", "option", ...data.runs.map((run) => run.name)], ...data.differences];
    byId("summary").append(el("div", { class: "scroll narrow" }, table(rows, "Differences in configuration", 2)));
  }
  byId("notes").append(...data.notes.map((note) => el("p", { class: "note" }, note)));
  byId("foot").textContent = `primecli ${data.version}, ${data.made}`;
}

/** A headline of one of several runs: the last value, and its change since the first. */
function headline(line, run) {
  const numbers = line.runs[run];
  if (!numbers) return "";
  const value = line.unit === "s" ? duration(numbers.last) : show(numbers.last, false, 3);
  return numbers.first === null ? value : `${value} (${show(numbers.last - numbers.first, true, 2)})`;
}

/** A headline of the only run, with a sparkline. */
function tile(line) {
  const numbers = line.runs[0];
  const more = numbers.first === null ? "" : `${show(numbers.last - numbers.first, true, 2)} from ${show(numbers.first, false, 3)}`;
  return el("div", { class: "tile" },
    el("div", { class: "label" }, line.label),
    el("div", { class: "value" }, line.unit === "s" ? duration(numbers.last) : show(numbers.last, false, 3)),
    el("div", { class: "more" }, more), spark(numbers.points));
}

function spark(points) {
  const drawing = svg("svg", { viewBox: "0 0 160 26", preserveAspectRatio: "none", "aria-hidden": "true" });
  if (points.length < 2) return drawing;
  const values = points.map((point) => point[1]);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const flat = high - low < 0.005 * Math.max(Math.abs(low), Math.abs(high)); // so that noise does not look like a trend
  const coordinates = values.map((value, index) =>
    `${(160 * index) / (values.length - 1)},${flat ? 13 : 24 - (22 * (value - low)) / (high - low)}`);
  const line = svg("polyline", { points: coordinates.join(" "), fill: "none", "stroke-width": 1.6, "vector-effect": "non-scaling-stroke" });
  line.style.stroke = "var(--accent)";
  drawing.append(line);
  return drawing;
}
