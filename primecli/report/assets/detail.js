// One rollout: its facts and its coloured tokens, alone or beside another sample of its group.

const MOST_TOKENS = 4000; // drawn at once; a button shows the rest

class Detail {
  constructor(store, root, actions) {
    this.store = store;
    this.root = root;
    this.actions = actions; // open(row), close()
    this.rows = [];
    this.beside = false;
    this.preferred = store.index.values[0] || null;
    this.relative = "group";
    this.root.replaceChildren(el("p", { class: "empty" }, "Select a rollout from the list."));
  }

  show(row) {
    this.row = row;
    this.draw();
    this.root.scrollTop = 0;
  }

  /** The rows to draw: the rollout and, beside it, the first of its group with another verdict, else the next. */
  drawn() {
    const members = this.store.members.get(this.store.get("group", this.row));
    if (!this.beside || members.length < 2) return [this.row];
    const others = members.filter((member) => member !== this.row);
    const verdict = this.store.get("verdict", this.row);
    return [this.row, others.find((member) => this.store.get("verdict", member) !== verdict) ?? others[0]];
  }

  draw() {
    const { store, row } = this;
    const quantities = this.quantities(row);
    this.quantity = quantities.includes(this.preferred) ? this.preferred : quantities[0] || null;
    const members = store.members.get(store.get("group", row));
    const rows = this.drawn();
    const among = { rollout: null, group: members, all: null }[this.relative];
    this.scaleOf = (drawn) => store.scale(this.quantity, this.relative === "rollout" ? [drawn] : among);
    this.root.replaceChildren(
      this.controls(members.length),
      el("h3", {}, this.where(row)),
      el("p", { class: "where" }, visible(store.text("group.name", store.get("group", row)))),
      this.samples(members),
      el("details", { class: "prompt", open: store.prompt(row).length < 600 }, el("summary", {}, "Prompt"), el("pre", {}, visible(store.prompt(row)))),
      el("div", { class: "sides" }, rows.map((drawn) => this.side(drawn))),
    );
  }

  /** The quantities that a rollout has; one that was not trained on, say, has no process rewards. */
  quantities(row) {
    return this.store.index.values.filter((name) => !Number.isNaN(this.store.get(`${name}.scale`, row)));
  }

  where(row) {
    const { store } = this;
    const parts = [
      several ? data.runs[store.get("run", row)].name : null,
      store.label("purpose", row) === "training" ? null : store.label("purpose", row),
      `iteration ${store.get("iteration", row)}`,
      store.label("source", row) || null,
    ];
    return parts.filter(Boolean).join(" · ");
  }

  controls(size) {
    const { store } = this;
    const choice = (label, options, value, change) => el("label", {}, label,
      el("select", { onchange: (event) => change(event.target.value) }, options.map(([name, text]) => el("option", { value: name, selected: name === value }, text))));
    const scale = this.relative === "rollout" ? this.scaleOf(this.row) : this.quantity && this.scaleOf(this.row);
    return el("div", { class: "controls" },
      el("button", { type: "button", class: "back", onclick: () => this.actions.close() }, "← List"),
      this.quantity && choice("colour by", this.quantities(this.row).map((name) => [name, QUANTITIES[name].label]), this.quantity, (value) => this.set({ preferred: value })),
      this.quantity && choice("scale", [["rollout", "this rollout"], ["group", "its group"], ["all", "all rollouts"]], this.relative, (value) => this.set({ relative: value })),
      size > 1 ? el("button", { type: "button", id: "beside", "aria-pressed": String(this.beside), onclick: () => this.set({ beside: !this.beside }) }, "side by side") : null,
      this.quantity && this.legend(scale));
  }

  legend(scale) {
    const sequential = QUANTITIES[this.quantity].sequential;
    const bar = el("i");
    const stops = sequential ? [-1, -0.75, -0.5, -0.25, -0.1, 0] : [-1, -0.6, -0.3, -0.1, 0, 0.1, 0.3, 0.6, 1];
    bar.style.background = `linear-gradient(90deg, ${stops.map((stop) =>
      `${this.tint(stop)} ${(100 * (stop + 1)) / (sequential ? 1 : 2)}%`).join(", ")})`;
    return el("span", { class: "scale", role: "img", "aria-label": `Colours from ${show(-scale)} to ${sequential ? 0 : show(scale)} ${QUANTITIES[this.quantity].unit}` },
      show(-scale), bar, sequential ? `0 ${QUANTITIES[this.quantity].unit}` : `${show(scale, true)} ${QUANTITIES[this.quantity].unit}`);
  }

  set(change) {
    Object.assign(this, change);
    if (this.row !== undefined) this.draw();
  }

  nextQuantity() {
    const names = this.row === undefined ? [] : this.quantities(this.row);
    if (names.length) this.set({ preferred: names[(names.indexOf(this.quantity) + 1) % names.length] });
  }

  samples(members) {
    const { store } = this;
    if (members.length < 2) return null;
    return el("div", { class: "samples", role: "group", "aria-label": "Samples of this prompt" }, members.map((member) =>
      el("button", { type: "button", "aria-current": member === this.row ? "true" : null, onclick: () => this.actions.open(member) },
        `#${store.get("sample", member)} `, verdictMark(store, member))));
  }

  side(row) {
    const { store } = this;
    const pieces = store.pieces(row);
    const values = this.quantity && store.values(this.quantity, row);
    const readout = el("p", { class: "readout", role: "status" });
    const box = pieces ? this.tokens(row, pieces, values, readout) : el("pre", { class: "tokens", tabindex: 0, "aria-label": "Response" }, visible(store.text("text", row)));
    if (!pieces) readout.textContent = "The tokenizer was not found, so the text has no colours; the bars have one value per token.";
    return el("div", { class: "side", "data-row": row }, this.facts(row), box, values ? this.bars(values, row) : null, readout);
  }

  facts(row) {
    const { store } = this;
    const sum = store.get("sum", row);
    const outcome = store.get("outcome", row);
    const fact = (name, value) => (value === "" ? null : el("span", {}, `${name} `, el("b", {}, visible(value))));
    return el("div", { class: "facts" }, verdictMark(store, row),
      fact("sample", `#${store.get("sample", row)}`),
      fact("outcome reward", show(outcome)),
      fact("answer", store.text("answer", row)),
      fact("ground truth", store.truth(row)),
      fact("process rewards", Number.isNaN(sum) ? "" : `${show(sum, true)} (P(correct) = ${show(1 / (1 + Math.exp(-sum)))})`),
      fact("tokens", `${store.get("tokens", row)}${store.label("finish", row) === "length" ? ", cut off at the limit" : ""}`),
      fact("", store.get("dropped", row) ? "dropped by the filter" : ""),
      fact("verifier", store.text("detail", row)));
  }

  tokens(row, pieces, values, readout) {
    const box = el("div", { class: "tokens", tabindex: 0, role: "application", "aria-label": "Response, token by token; use the arrow keys" });
    const draw = (limit) => {
      const most = Math.min(limit, pieces.length);
      const spans = [];
      for (let token = 0; token < most; token++) spans.push(this.token(token, pieces[token], values, this.quantity && this.scaleOf(row)));
      box.replaceChildren(...spans);
      if (most < pieces.length) box.append(el("button", { type: "button", onclick: () => draw(Infinity) }, `show all ${pieces.length} tokens`));
    };
    draw(MOST_TOKENS);
    let current = -1;
    const go = (token) => {
      if (current >= 0) box.children[current]?.classList.remove("here");
      current = token;
      box.children[current].classList.add("here");
      this.read(readout, row, current, pieces[current]);
    };
    const over = (event) => {
      const span = event.target.closest("[data-token]");
      if (span) go(Number(span.dataset.token));
    };
    box.addEventListener("pointerover", over);
    box.addEventListener("click", over);
    box.addEventListener("keydown", (event) => {
      const last = box.querySelectorAll("[data-token]").length - 1;
      const to = { ArrowLeft: current - 1, ArrowRight: current + 1, Home: 0, End: last }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      go(Math.max(0, Math.min(last, to)));
      box.children[current].scrollIntoView({ block: "nearest" });
    });
    readout.textContent = "Point at a token, or use ← →, to see its numbers.";
    return box;
  }

  /** The element of a token, coloured by its share of the scale. */
  token(index, piece, values, scale) {
    const ghost = piece === "";
    const parts = ghost ? ["◦"] : visible(piece).split(/(\n|\t)/).flatMap((part) => (part === "\n" ? [el("i", {}, "↵"), part] : part === "\t" ? [el("i", {}, "⇥"), part] : [part]));
    const span = el("span", { "data-token": index, class: ghost ? "ghost" : null }, parts);
    if (values && scale > 0) {
      const share = values[index] / scale;
      if (strength(share) >= 0.01) span.style.backgroundColor = this.tint(share);
      if (Math.abs(share) >= 0.5 && !QUANTITIES[this.quantity].sequential) span.classList.add(share < 0 ? "strong-minus" : "strong-plus");
    }
    return span;
  }

  /** The colour of a share of the scale, -1 … 1. */
  tint(share) {
    const name = QUANTITIES[this.quantity].sequential ? "rare" : share < 0 ? "minus" : "plus";
    return `color-mix(in srgb, var(--${name}) ${Math.round(100 * strength(share))}%, transparent)`;
  }

  /** Writes the numbers of a token below the text. */
  read(readout, row, token, piece) {
    const { store } = this;
    const parts = [`token ${token + 1} of ${store.get("tokens", row)} `, el("span", { class: "mono" }, piece === "" ? "part of the next character" : visible(JSON.stringify(piece).slice(1, -1)))];
    for (const name of store.index.values) {
      const values = store.values(name, row);
      if (values) parts.push(` · ${QUANTITIES[name].label} `, el("b", {}, show(values[token], !QUANTITIES[name].sequential)));
      if (values && name === "process_rewards") {
        parts.push(" · sum so far ", el("b", {}, show(values.slice(0, token + 1).reduce((sum, value) => sum + value, 0), true)));
      }
    }
    readout.replaceChildren(...parts);
  }

  /** One bar per token; for process rewards also a line of their running sum, which has its own scale. */
  bars(values, row) {
    const [width, height] = [600, 74];
    const scale = this.scaleOf(row) || 1;
    const sequential = QUANTITIES[this.quantity].sequential;
    const middle = sequential ? 4 : height / 2;
    const reach = sequential ? height - 8 : height / 2 - 3;
    const step = width / values.length;
    const thick = Math.max(step * 0.82, 0.6);
    const shapes = { up: "", down: "", rare: "" };
    values.forEach((value, token) => {
      const size = Math.min(1, Math.abs(value) / scale) * reach;
      if (size < 0.2) return;
      const top = value > 0 ? middle - size : middle;
      shapes[sequential ? "rare" : value > 0 ? "up" : "down"] += `M${(token * step).toFixed(2)} ${top.toFixed(2)}h${thick.toFixed(2)}v${size.toFixed(2)}h${(-thick).toFixed(2)}z`;
    });
    const drawing = svg("svg", { class: "plot bars", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img", height, "aria-label": `${QUANTITIES[this.quantity].label} by token` });
    drawing.style.height = `${height}px`;
    for (const [name, shape] of Object.entries(shapes)) if (shape) drawing.append(svg("path", { class: name, d: shape }));
    drawing.append(svg("line", { class: "axis", x1: 0, x2: width, y1: middle, y2: middle, "vector-effect": "non-scaling-stroke" }));
    let caption = `${QUANTITIES[this.quantity].label} by token`;
    if (this.quantity === "process_rewards") {
      let sum = 0;
      const sums = Array.from(values, (value) => (sum += value));
      const most = Math.max(...sums.map(Math.abs), 1e-30);
      const points = sums.map((value, token) => `${((token + 0.5) * step).toFixed(2)},${(middle - (value / most) * reach).toFixed(2)}`);
      drawing.append(svg("polyline", { class: "total", points: points.join(" "), "vector-effect": "non-scaling-stroke" }));
      caption += `; the line is their running sum, with ±${show(most)} at the edges`;
    }
    return el("figure", { style: null, class: "figure" }, drawing, el("figcaption", { class: "where" }, caption));
  }
}

function verdictMark(store, row) {
  const verdict = store.label("verdict", row);
  const [sign, kind] = verdict === "correct" ? ["✓", "correct"] : verdict === "ungraded" || verdict === "error" ? ["○", "none"] : ["✗", "other"];
  return el("span", { class: `verdict ${kind}` }, `${sign} ${verdict}`);
}
