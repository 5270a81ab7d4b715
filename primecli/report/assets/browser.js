// The list of rollouts: filters, orders, a window of rows that follows the scroll, and the keyboard.

const ROW_HEIGHT = 66;
const OVERSCAN = 6;
const ORDERS = {
  order: ["as in the run", (store, row) => row],
  sum: ["process reward", (store, row) => store.get("sum", row)],
  lowest: ["lowest token reward", (store, row) => store.lowest(row)],
  disagreement: ["PRM against outcome", (store, row) => store.disagreement(row)],
  outcome: ["outcome reward", (store, row) => store.get("outcome", row)],
  tokens: ["length", (store, row) => store.get("tokens", row)],
  accuracy: ["accuracy of the group", (store, row) => store.groupAccuracy(row)],
};
const DESCENDING_FIRST = new Set(["disagreement", "tokens"]);

class Browser {
  constructor(store) {
    this.store = store;
    this.list = byId("list");
    this.runway = byId("runway");
    this.found = [];
    this.active = 0;
    this.descending = false;
    this.pool = new Map();
    this.detail = new Detail(store, byId("detail"), { open: (row) => this.openRow(row), close: () => this.close() });
    this.filters = {};
    this.makeFilters();
    this.list.addEventListener("scroll", () => this.drawRows(), { passive: true });
    new ResizeObserver(() => this.drawRows(true)).observe(this.list);
    this.list.addEventListener("click", (event) => {
      const row = event.target.closest("[data-place]");
      if (row) this.go(Number(row.dataset.place), true);
    });
    document.addEventListener("keydown", (event) => this.key(event));
    changed.addEventListener("theme", () => this.drawRows(true));
    changed.addEventListener("runs", () => this.apply());
    this.apply();
    this.fromAddress();
  }

  select(name, label, options) {
    const used = options.filter(([, count]) => count !== 0);
    if (used.length < 2) return null;
    const select = el("select", { id: `filter-${name}`, onchange: () => this.apply() },
      el("option", { value: "" }, "all"), used.map(([value, count, text]) => el("option", { value }, `${text ?? value} (${count.toLocaleString("en")})`)));
    this.filters[name] = select;
    return el("label", {}, label, select);
  }

  counts(name) {
    const found = new Map();
    for (const value of this.store.columns[name]) found.set(value, (found.get(value) || 0) + 1);
    return found;
  }

  makeFilters() {
    const { store } = this;
    const named = (name, list) => list.map((text, place) => [String(place), this.counts(name).get(place) || 0, visible(text || "(none)")]);
    const iterations = [...this.counts("iteration")].sort((a, b) => a[0] - b[0]).map(([value, count]) => [String(value), count]);
    this.search = byId("search");
    let waiting = null;
    this.search.addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => this.apply(), 120);
    });
    byId("filters").addEventListener("submit", (event) => event.preventDefault());
    const orders = Object.entries(ORDERS).filter(([name]) => !["sum", "lowest", "disagreement"].includes(name) || store.index.values.includes("process_rewards"));
    this.order = el("select", { id: "order", onchange: () => {
      this.descending = DESCENDING_FIRST.has(this.order.value);
      this.apply();
    } }, orders.map(([name, [text]]) => el("option", { value: name }, text)));
    this.direction = el("button", { type: "button", id: "direction", onclick: () => {
      this.descending = !this.descending;
      this.apply();
    } });
    const fields = [
      this.select("run", "Run", data.runs.map((run, place) => [String(place), this.counts("run").get(place) || 0, run.name])),
      this.select("purpose", "Set", named("purpose", store.index.purposes)),
      this.select("iteration", "Iteration", iterations),
      this.select("verdict", "Verdict", named("verdict", store.index.verdicts)),
      this.select("source", "Data source", named("source", store.index.sources)),
      this.select("finish", "Ended by", named("finish", store.index.finishes)),
      this.select("dropped", "Filter", [["0", this.counts("dropped").get(0) || 0, "kept"], ["1", this.counts("dropped").get(1) || 0, "dropped"]]),
      el("label", {}, "Order", this.order), this.direction,
      el("button", { type: "button", id: "clear", onclick: () => this.clear() }, "clear"),
    ];
    byId("filters").append(...fields.filter(Boolean));
  }

  clear() {
    for (const select of Object.values(this.filters)) select.value = "";
    this.search.value = "";
    this.order.value = "order";
    this.descending = false;
    this.apply();
  }

  /** Filters and sorts anew, and goes to the first rollout of what is found. */
  apply() {
    const { store } = this;
    const wanted = Object.entries(this.filters).filter(([, select]) => select.value !== "").map(([name, select]) => [store.columns[name], Number(select.value)]);
    const words = this.search.value.toLowerCase().trim();
    this.found = [];
    for (let row = 0; row < store.rows; row++) {
      if (hiddenRuns.has(store.columns.run[row])) continue;
      if (wanted.every(([column, value]) => column[row] === value) && (!words || store.haystack(row).includes(words))) this.found.push(row);
    }
    const key = ORDERS[this.order.value][1];
    const keys = new Float64Array(store.rows);
    for (const row of this.found) keys[row] = key(store, row);
    const sign = this.descending ? -1 : 1;
    this.found.sort((a, b) => { // rows without a value last, whatever the direction
      if (Number.isNaN(keys[a]) || Number.isNaN(keys[b])) return Number.isNaN(keys[a]) - Number.isNaN(keys[b]) || a - b;
      return sign * (keys[a] - keys[b]) || a - b;
    });
    this.direction.textContent = this.descending ? "↓ high first" : "↑ low first";
    byId("count").textContent = `${this.found.length.toLocaleString("en")} of ${store.rows.toLocaleString("en")} rollouts`;
    this.active = 0;
    this.runway.style.height = `${this.found.length * ROW_HEIGHT}px`;
    this.list.scrollTop = 0;
    this.drawRows(true);
    if (this.found.length && !this.narrow()) this.detail.show(this.found[0]);
  }

  /** Draws the rows in view and a few around; those out of view leave the document. */
  drawRows(anew = false) {
    const first = Math.max(0, Math.floor(this.list.scrollTop / ROW_HEIGHT) - OVERSCAN);
    const last = Math.min(this.found.length, Math.ceil((this.list.scrollTop + this.list.clientHeight) / ROW_HEIGHT) + OVERSCAN);
    if (anew) {
      this.runway.replaceChildren();
      this.pool.clear();
      this.palette = { plus: colour("plus"), minus: colour("minus") };
    }
    for (const [place, node] of this.pool) {
      if (place < first || place >= last) {
        node.remove();
        this.pool.delete(place);
      }
    }
    for (let place = first; place < last; place++) {
      if (!this.pool.has(place)) {
        const node = this.row(place);
        this.pool.set(place, node);
        this.runway.append(node);
      }
      this.pool.get(place).setAttribute("aria-selected", String(place === this.active));
    }
    if (this.found.length) this.list.setAttribute("aria-activedescendant", `row-${this.active}`);
    else this.list.removeAttribute("aria-activedescendant");
  }

  row(place) {
    const { store } = this;
    const row = this.found[place];
    const sum = store.get("sum", row);
    const prompt = visible(store.prompt(row).trim().slice(-90)).replace(/\s+/g, " ");
    const where = [several ? data.runs[store.get("run", row)].name : null, store.label("purpose", row) === "training" ? null : store.label("purpose", row),
      `iteration ${store.get("iteration", row)}`, `#${store.get("sample", row)}`, store.get("dropped", row) ? "dropped" : null].filter(Boolean).join(" · ");
    const node = el("div", { class: "row", role: "option", id: `row-${place}`, "data-place": place, "aria-setsize": this.found.length, "aria-posinset": place + 1 },
      el("div", { class: "first" }, verdictMark(store, row), el("span", { class: "dim" }, where), el("b", {}, Number.isNaN(sum) ? `${store.get("tokens", row)} tokens` : show(sum, true))),
      el("div", { class: "snippet" }, prompt || " "),
      this.strip(row));
    node.style.top = `${place * ROW_HEIGHT}px`;
    return node;
  }

  /** The rewards of a response as a strip of colours, the strongest of neighbouring tokens where they do not fit. */
  strip(row) {
    const values = this.store.values("process_rewards", row);
    if (!values) return null;
    const canvas = el("canvas", { width: 180, height: 1, "aria-hidden": "true" });
    const scale = this.store.scale("process_rewards", this.store.members.get(this.store.get("group", row))) || 1;
    const pen = canvas.getContext("2d");
    const cells = Math.min(180, values.length);
    for (let cell = 0; cell < cells; cell++) {
      let strongest = 0;
      for (let place = Math.floor((cell * values.length) / cells); place < Math.floor(((cell + 1) * values.length) / cells); place++) {
        if (Math.abs(values[place]) > Math.abs(strongest)) strongest = values[place];
      }
      pen.globalAlpha = strength(strongest / scale);
      pen.fillStyle = strongest < 0 ? this.palette.minus : this.palette.plus;
      pen.fillRect((cell * 180) / cells, 0, 180 / cells, 1);
    }
    return canvas;
  }

  reveal() {
    const top = this.active * ROW_HEIGHT;
    if (top < this.list.scrollTop) this.list.scrollTop = top;
    else if (top + ROW_HEIGHT > this.list.scrollTop + this.list.clientHeight) this.list.scrollTop = top + ROW_HEIGHT - this.list.clientHeight;
  }

  narrow() {
    return matchMedia("(max-width: 820px)").matches;
  }

  /** Makes a place of the list the active one; beside the list it is shown at once, on a phone when it is opened. */
  go(place, open = false) {
    if (!this.found.length) return;
    this.active = Math.max(0, Math.min(this.found.length - 1, place));
    this.reveal();
    this.drawRows();
    if (open || !this.narrow()) this.open(this.found[this.active]);
  }

  open(row) {
    this.detail.show(row);
    byId("browser").classList.add("open");
    history.replaceState(null, "", `#rollout-${row}`);
    if (this.narrow()) byId("detail").focus();
  }

  /** Opens a rollout that may not be among those found. */
  openRow(row) {
    const place = this.found.indexOf(row);
    if (place >= 0) this.go(place, true);
    else this.open(row);
  }

  close() {
    byId("browser").classList.remove("open");
    this.list.focus();
  }

  /** Opens the rollout that the address names. */
  fromAddress() {
    const match = /^#rollout-(\d+)$/.exec(location.hash);
    if (match && Number(match[1]) < this.store.rows) {
      this.openRow(Number(match[1]));
      byId("rollouts").scrollIntoView();
    }
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
    const typing = event.target.closest("input, select, textarea");
    if (event.key === "Escape") {
      if (typing || byId("detail").contains(document.activeElement) || byId("browser").classList.contains("open")) this.close();
      return;
    }
    if (typing) return;
    const inList = document.activeElement === this.list;
    const page = Math.max(1, Math.floor(this.list.clientHeight / ROW_HEIGHT) - 1);
    const step = { j: 1, k: -1, ...(inList ? { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity } : {}) }[event.key];
    const actions = {
      "/": () => this.search.focus(),
      s: () => this.detail.row !== undefined && this.detail.set({ beside: !this.detail.beside }),
      c: () => this.detail.nextQuantity(),
      "[": () => this.sample(-1),
      "]": () => this.sample(1),
      "?": () => byId("help").showModal(),
      ...(inList ? { Enter: () => this.enter(), " ": () => this.enter() } : {}),
    };
    if (step !== undefined) {
      event.preventDefault();
      if (!inList && !this.inDetail()) this.list.focus();
      this.go(this.detail.row === undefined && !inList ? 0 : this.active + step, this.inDetail());
    } else if (actions[event.key]) {
      event.preventDefault();
      actions[event.key]();
    }
  }

  inDetail() {
    return byId("detail").contains(document.activeElement);
  }

  enter() {
    this.go(this.active, true);
    (byId("detail").querySelector(".tokens") || byId("detail")).focus();
  }

  sample(step) {
    const { row } = this.detail;
    if (row === undefined) return;
    const members = this.store.members.get(this.store.get("group", row));
    this.openRow(members[(members.indexOf(row) + step + members.length) % members.length]);
  }
}

async function start() {
  themeButton();
  runButtons();
  overview();
  curves();
  byId("help-open").addEventListener("click", () => byId("help").showModal());
  const note = byId("rollouts-note");
  note.textContent = data.rollouts.note;
  try {
    if (!data.rollouts.shown) return;
    const store = await unpack(byId("payload").textContent, data.rollouts.encoding);
    byId("browser").hidden = false;
    new Browser(store);
  } catch (error) {
    note.textContent = `The rollouts cannot be shown: ${error.message}`;
  } finally {
    document.documentElement.dataset.ready = "true";
  }
}

start();
