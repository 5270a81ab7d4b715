// The list of rollouts: filters, sorting, drawing only the rows in view, and the keyboard.

const ROW_HEIGHT = 84;
const OVERSCAN = 6; // rows drawn above and below those in view
const ORDERS = {
  order: ["as in the run", (store, row) => row],
  sum: ["process reward", (store, row) => store.get("sum", row)],
  lowest: ["lowest token reward", (store, row) => store.lowest(row)],
  disagreement: ["PRM vs outcome", (store, row) => store.disagreement(row)],
  outcome: ["outcome reward", (store, row) => store.get("outcome", row)],
  tokens: ["length", (store, row) => store.get("tokens", row)],
  accuracy: ["group accuracy", (store, row) => store.groupAccuracy(row)],
};
const DESCENDING_FIRST = new Set(["disagreement", "tokens"]);

class Browser {
  constructor(store) {
    this.store = store;
    this.list = byId("list");
    this.runway = byId("runway");
    this.shown = [];
    this.active = 0;
    this.descending = false;
    this.pool = new Map();
    this.detail = new Detail(store, byId("detail"), { open: (row) => this.openRow(row), close: () => this.close() });
    this.filters = {};
    this.makeFilters();
    this.list.addEventListener("scroll", () => this.drawRows(), { passive: true });
    new ResizeObserver(() => this.drawRows(true)).observe(this.list);
    this.list.addEventListener("click", (event) => {
      const row = event.target.closest("[data-index]");
      if (row) this.go(Number(row.dataset.index), true);
    });
    document.addEventListener("keydown", (event) => this.key(event));
    changed.addEventListener("theme", () => this.drawRows(true));
    changed.addEventListener("runs", () => this.apply());
    this.apply();
    this.fromAddress();
  }

  /** A filter; null where there is nothing to choose. options: value, count and text of each. */
  select(name, label, options) {
    const used = options.filter(([, count]) => count !== 0);
    if (used.length < 2) return null;
    const select = el("select", { id: `filter-${name}`, onchange: () => this.apply() },
      el("option", { value: "" }, "all"), used.map(([value, count, text]) => el("option", { value }, `${text ?? value} (${count.toLocaleString("en")})`)));
    this.filters[name] = select;
    return el("label", {}, label, select);
  }

  /** How often each value of a column occurs. */
  counts(name) {
    const counts = new Map();
    for (const value of this.store.columns[name]) counts.set(value, (counts.get(value) || 0) + 1);
    return counts;
  }

  makeFilters() {
    const { store } = this;
    const named = (name, list) => list.map((text, code) => [String(code), this.counts(name).get(code) || 0, visible(text || "(none)")]);
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
      this.select("run", "Run", data.runs.map((run, index) => [String(index), this.counts("run").get(index) || 0, run.name])),
      this.select("purpose", "Set", named("purpose", store.index.purposes)),
      this.select("iteration", "Iteration", iterations),
      this.select("verdict", "Verdict", named("verdict", store.index.verdicts)),
      this.select("source", "Data source", named("source", store.index.sources)),
      this.select("finish", "Finish reason", named("finish", store.index.finishes)),
      this.select("dropped", "Filter", [["0", this.counts("dropped").get(0) || 0, "kept"], ["1", this.counts("dropped").get(1) || 0, "dropped"]]),
      el("label", {}, "Sort by", this.order), this.direction,
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

  /** Filters and sorts again, and goes to the first rollout. */
  apply() {
    const { store } = this;
    const conditions = Object.entries(this.filters).filter(([, select]) => select.value !== "").map(([name, select]) => [store.columns[name], Number(select.value)]);
    const words = this.search.value.toLowerCase().trim();
    this.shown = [];
    for (let row = 0; row < store.rows; row++) {
      if (hiddenRuns.has(store.columns.run[row])) continue;
      if (conditions.every(([column, value]) => column[row] === value) && (!words || store.haystack(row).includes(words))) this.shown.push(row);
    }
    const key = ORDERS[this.order.value][1];
    const keys = new Float64Array(store.rows);
    for (const row of this.shown) keys[row] = key(store, row);
    const sign = this.descending ? -1 : 1;
    this.shown.sort((a, b) => { // rows without a value come last in either direction
      if (Number.isNaN(keys[a]) || Number.isNaN(keys[b])) return Number.isNaN(keys[a]) - Number.isNaN(keys[b]) || a - b;
      return sign * (keys[a] - keys[b]) || a - b;
    });
    this.direction.textContent = this.descending ? "↓ highest first" : "↑ lowest first";
    byId("count").textContent = `${this.shown.length.toLocaleString("en")} of ${store.rows.toLocaleString("en")} rollouts`;
    this.active = 0;
    this.runway.style.height = `${this.shown.length * ROW_HEIGHT}px`;
    this.list.scrollTop = 0;
    this.drawRows(true);
    if (this.shown.length && !this.narrow()) this.detail.show(this.shown[0]);
  }

  /** Draws the rows in view and a few around them; the others leave the document. */
  drawRows(anew = false) {
    const first = Math.max(0, Math.floor(this.list.scrollTop / ROW_HEIGHT) - OVERSCAN);
    const last = Math.min(this.shown.length, Math.ceil((this.list.scrollTop + this.list.clientHeight) / ROW_HEIGHT) + OVERSCAN);
    if (anew) {
      this.runway.replaceChildren();
      this.pool.clear();
      this.palette = { plus: colour("plus"), minus: colour("minus") };
    }
    for (const [index, node] of this.pool) {
      if (index < first || index >= last) {
        node.remove();
        this.pool.delete(index);
      }
    }
    for (let index = first; index < last; index++) {
      if (!this.pool.has(index)) {
        const node = this.row(index);
        this.pool.set(index, node);
        this.runway.append(node);
      }
      this.pool.get(index).setAttribute("aria-selected", String(index === this.active));
    }
    if (this.shown.length) this.list.setAttribute("aria-activedescendant", `row-${this.active}`);
    else this.list.removeAttribute("aria-activedescendant");
  }

  /** The element of one row of the list. */
  row(index) {
    const { store } = this;
    const row = this.shown[index];
    const sum = store.get("sum", row);
    const line = (text) => visible(text.trim().slice(0, 120)).replace(/\s+/g, " ") || " ";
    const where = [several ? data.runs[store.get("run", row)].name : null, store.label("purpose", row) === "training" ? null : store.label("purpose", row),
      `iteration ${store.get("iteration", row)}`, `#${store.get("sample", row)}`, store.get("dropped", row) ? "dropped" : null].filter(Boolean).join(" · ");
    const node = el("div", { class: "row", role: "option", id: `row-${index}`, "data-index": index, "aria-setsize": this.shown.length, "aria-posinset": index + 1 },
      el("div", { class: "first" }, verdictMark(store, row), el("span", { class: "dim" }, where), el("b", {}, Number.isNaN(sum) ? `${store.get("tokens", row)} tokens` : show(sum, true))),
      el("div", { class: "snippet" }, line(store.question(row))),
      el("div", { class: "snippet response" }, line(store.text("text", row))),
      this.strip(row));
    node.style.top = `${index * ROW_HEIGHT}px`;
    return node;
  }

  /** The rewards of a response as a strip of colours; where tokens share a cell, the strongest one colours it. */
  strip(row) {
    const values = this.store.values("process_rewards", row);
    if (!values) return null;
    const canvas = el("canvas", { width: 180, height: 1, "aria-hidden": "true" });
    const scale = this.store.scale("process_rewards", this.store.members.get(this.store.get("group", row))) || 1;
    const pen = canvas.getContext("2d");
    const cells = Math.min(180, values.length);
    for (let cell = 0; cell < cells; cell++) {
      let strongest = 0;
      for (let token = Math.floor((cell * values.length) / cells); token < Math.floor(((cell + 1) * values.length) / cells); token++) {
        if (Math.abs(values[token]) > Math.abs(strongest)) strongest = values[token];
      }
      pen.globalAlpha = strength(strongest / scale);
      pen.fillStyle = strongest < 0 ? this.palette.minus : this.palette.plus;
      pen.fillRect((cell * 180) / cells, 0, 180 / cells, 1);
    }
    return canvas;
  }

  /** Scrolls the active row into view. */
  reveal() {
    const top = this.active * ROW_HEIGHT;
    if (top < this.list.scrollTop) this.list.scrollTop = top;
    else if (top + ROW_HEIGHT > this.list.scrollTop + this.list.clientHeight) this.list.scrollTop = top + ROW_HEIGHT - this.list.clientHeight;
  }

  /** Whether the rollout covers the list, as on a phone. */
  narrow() {
    return matchMedia("(max-width: 820px)").matches;
  }

  /** Makes a row of the list the active one. Beside the list, its rollout is shown at once; on a phone, only with `open`. */
  go(index, open = false) {
    if (!this.shown.length) return;
    this.active = Math.max(0, Math.min(this.shown.length - 1, index));
    this.reveal();
    this.drawRows();
    if (open || !this.narrow()) this.open(this.shown[this.active]);
  }

  open(row) {
    this.detail.show(row);
    byId("browser").classList.add("open");
    history.replaceState(null, "", `#rollout-${row}`);
    if (this.narrow()) byId("detail").focus();
  }

  /** Opens a rollout, even if the filters hide it. */
  openRow(row) {
    const index = this.shown.indexOf(row);
    if (index >= 0) this.go(index, true);
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

  /** Whether the keyboard is in the rollout. */
  inDetail() {
    return byId("detail").contains(document.activeElement);
  }

  enter() {
    this.go(this.active, true);
    (byId("detail").querySelector(".tokens") || byId("detail")).focus();
  }

  /** Opens the next or previous sample of the group. */
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
