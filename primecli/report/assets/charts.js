// Curves over iterations as SVG: axes, a cursor for pointer and arrow keys, a legend that toggles lines, a table of the numbers.

const AXES = { iteration: "iteration", rollouts: "rollouts", seconds: "busy time" };
const LONGEST = Math.max(0, ...data.runs.flatMap((run) => Object.values(run.seconds)));
const [TIME_UNIT, TIME_NAME] = LONGEST > 7200 ? [3600, "hours"] : LONGEST > 120 ? [60, "minutes"] : [1, "seconds"];
let axis = "iteration";
const charts = [];
const MANY = 100; // points; lines with at least as many can be smoothed
let smooth = data.charts.some((chart) => chart.series.some((series) => series.points.length >= MANY));
const LEAST_SPAN = 0.02; // of the largest value; the vertical axis spans at least this

/** The position of an iteration of a run on the chosen axis. */
function xOf(run, iteration) {
  if (axis === "iteration") return iteration;
  const value = data.runs[run][axis][iteration];
  return axis === "seconds" ? value / TIME_UNIT : value;
}

/** About `count` round numbers from low to high, and the step between them. */
function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
  const values = [];
  for (let number = Math.ceil(low / step - 1e-9); number * step <= high + step * 1e-9; number++) values.push(number * step);
  return { step, values };
}

function tickText(value, step) {
  if (value === 0) return "0";
  if (Math.abs(value) >= 1e6 || step < 1e-5) {
    const digits = Math.max(2, Math.ceil(Math.log10(Math.abs(value) / step)) + 1); // so that no two ticks look the same
    return String(Number(value.toPrecision(digits)).toExponential()).replaceAll("-", "−");
  }
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits }).replace("-", "−");
}

/** The mean of each value and of `reach` values on either side. */
function runningMean(values, reach) {
  return values.map((_, index) => {
    const near = values.slice(Math.max(0, index - reach), index + reach + 1);
    return near.reduce((sum, value) => sum + value, 0) / near.length;
  });
}

/** A card with one drawing. spec: title, unit, caption, series; with `bars` they are stacked by iteration instead of drawn as lines. */
class Chart {
  constructor(spec, parent) {
    this.spec = spec;
    this.off = new Set();
    this.cursor = null;
    this.root = el("div", { class: "card", "data-chart": spec.name || spec.title });
    this.tableButton = el("button", { type: "button", class: "quiet", "aria-pressed": "false", onclick: () => this.toggleTable() }, "table");
    this.head = el("header", {}, el("h3", {}, spec.title), el("span", { class: "unit" }, spec.unit), this.tableButton);
    this.body = el("div");
    this.legend = el("div", { class: "legend", role: "group", "aria-label": `Lines of ${spec.title}` });
    this.tip = el("div", { class: "tip", role: "status", hidden: true });
    this.root.append(this.head, this.legend, this.body, el("p", { class: "caption" }, spec.caption || ""), this.tip);
    parent.append(this.root);
    this.keys();
    charts.push(this);
    new ResizeObserver(() => this.root.clientWidth !== this.drawn && this.draw()).observe(this.root);
  }

  keys() {
    const look = ({ run, style }) => {
      if (this.spec.bars) return this.barLook(style);
      return several ? { ...lineLook(run, style), colour: "var(--dim)" } : lineLook(run, style);
    };
    const labels = new Map(this.spec.series.map((series) => [series.label, series]));
    this.legend.replaceChildren(...[...labels.values()].map((series) => this.key(series.label, look(series))));
    if (this.legend.childElementCount < 2 && this.spec.series.length < 2) this.legend.replaceChildren();
  }

  key(label, look) {
    const button = el("button", {
      type: "button", class: "key", "aria-pressed": String(!this.off.has(label)),
      onclick: () => {
        if (this.off.has(label)) this.off.delete(label);
        else this.off.add(label);
        button.setAttribute("aria-pressed", String(!this.off.has(label)));
        this.draw();
      },
    }, swatch(look), el("span", {}, label));
    return button;
  }

  barLook(style) {
    return { colour: `var(--c${style % 8})`, dash: "" };
  }

  shown() {
    return this.spec.series.filter((series) => !hiddenRuns.has(series.run) && !this.off.has(series.label) && series.points.length);
  }

  toggleTable() {
    const on = this.tableButton.getAttribute("aria-pressed") !== "true";
    this.tableButton.setAttribute("aria-pressed", String(on));
    this.draw();
  }

  name(series) {
    return several ? `${data.runs[series.run].name}: ${series.label}` : series.label;
  }

  draw() {
    this.drawn = this.root.clientWidth;
    this.tip.hidden = true;
    this.cursor = null;
    if (this.tableButton.getAttribute("aria-pressed") === "true") return this.drawTable();
    this.body.replaceChildren(this.spec.bars ? this.drawBars() : this.drawLines());
    return null;
  }

  drawTable() {
    const series = this.shown();
    const iterations = [...new Set(series.flatMap((line) => line.points.map((point) => point[0])))].sort((a, b) => a - b);
    const maps = series.map((line) => new Map(line.points));
    const rows = [["iteration", ...series.map((line) => this.name(line))],
      ...iterations.map((iteration) => [String(iteration), ...maps.map((map) => show(map.get(iteration)))])];
    this.body.replaceChildren(el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `${this.spec.title}, table` }, table(rows)));
  }

  /** A drawing with axes, and its scales. inner: leave room at both ends, for bars. */
  frame(xs, low, high, inner) {
    const width = Math.max(this.root.clientWidth - 30, 200);
    const height = Math.min(236, Math.max(170, width * 0.52));
    const vertical = ticks(low, high, 4);
    const longest = Math.max(...vertical.values.map((tick) => tickText(tick, vertical.step).length));
    const box = { left: Math.max(48, 14 + 6.6 * longest), right: width - 10, top: 8, bottom: height - 34 };
    const y = (value) => box.bottom - ((value - low) / (high - low)) * (box.bottom - box.top);
    const [first, last] = [Math.min(...xs), Math.max(...xs)];
    const pad = inner ? 0.5 : 0;
    const span = last - first + 2 * pad || 1;
    const x = (value) => box.left + 6 + ((value - first + pad) / span) * (box.right - box.left - 12);
    const drawing = svg("svg", { class: "plot", viewBox: `0 0 ${width} ${height}`, tabindex: 0, role: "img", "aria-label": this.describe() });
    for (const tick of vertical.values) {
      drawing.append(svg("line", { class: "grid", x1: box.left, x2: box.right, y1: y(tick), y2: y(tick) }),
        svg("text", { x: box.left - 6, y: y(tick) + 4, "text-anchor": "end" }, tickText(tick, vertical.step)));
    }
    drawing.append(svg("line", { class: "axis", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }));
    const whole = axis !== "seconds" || this.spec.bars;
    const horizontal = ticks(first, last, Math.min(8, Math.max(2, Math.floor(width / 64))));
    for (const tick of first === last ? [first] : horizontal.values) {
      if (whole && !Number.isInteger(Number(tick.toPrecision(12)))) continue;
      drawing.append(svg("text", { x: x(tick), y: box.bottom + 15, "text-anchor": "middle" }, tickText(tick, first === last || whole ? 1 : horizontal.step)));
    }
    const label = this.spec.bars ? AXES.iteration : axis === "seconds" ? `busy time, ${TIME_NAME}` : AXES[axis];
    drawing.append(svg("text", { x: (box.left + box.right) / 2, y: height - 4, "text-anchor": "middle" }, label));
    return { drawing, x, y, box };
  }

  /** The drawing in words, for screen readers. */
  describe() {
    const parts = this.shown().slice(0, 6).map((series) => {
      const [first, last] = [series.points[0], series.points[series.points.length - 1]];
      return `${this.name(series)} from ${show(first[1])} at iteration ${first[0]} to ${show(last[1])} at iteration ${last[0]}`;
    });
    return `${this.spec.title}, ${this.spec.unit}: ${parts.join("; ") || "nothing shown"}`;
  }

  drawLines() {
    const series = this.shown();
    const values = series.flatMap((line) => line.points.map((point) => point[1]));
    let low = values.length ? Math.min(...values) : 0;
    let high = values.length ? Math.max(...values) : 1;
    const least = LEAST_SPAN * Math.max(Math.abs(low), Math.abs(high)); // so that noise does not look like a trend
    if (low === 0 && high === 0) high = 1;
    else if (high - low < least) [low, high] = [(low + high - least) / 2, (low + high + least) / 2];
    else if (low > 0 && low < 0.35 * high) low = 0;
    for (let round = 0; round < 2; round++) { // a wider range may need wider steps
      const { step } = ticks(low, high, 4);
      low = Math.floor(low / step + 1e-9) * step;
      high = Math.ceil(high / step - 1e-9) * step;
    }
    const xs = series.flatMap((line) => line.points.map((point) => xOf(line.run, point[0])));
    const frame = this.frame(xs.length ? xs : [0, 1], low, high, false);
    const { drawing, x, y } = frame;
    for (const line of series) {
      const look = lineLook(line.run, line.style);
      const points = line.points.map(([iteration, value]) => [x(xOf(line.run, iteration)), y(value)]);
      const smoothed = smooth && points.length >= MANY;
      const draw = (heights, attributes) => {
        const path = svg("polyline", { points: points.map((point, index) => `${point[0].toFixed(1)},${heights[index].toFixed(1)}`).join(" "), fill: "none", "stroke-linejoin": "round", "stroke-dasharray": look.dash, ...attributes });
        path.style.stroke = look.colour;
        drawing.append(path);
      };
      const heights = points.map((point) => point[1]);
      draw(heights, smoothed ? { "stroke-width": 1, opacity: 0.28, "stroke-dasharray": "" } : { "stroke-width": points.length >= MANY ? 1.4 : 2 });
      if (smoothed) draw(runningMean(heights, Math.ceil(points.length / 40)), { "stroke-width": 2 });
      if (points.length > 40) continue;
      for (const [cx, cy] of points) {
        const dot = svg("circle", { cx: cx.toFixed(1), cy: cy.toFixed(1), r: 2.8 });
        dot.style.fill = look.colour;
        drawing.append(dot);
      }
    }
    const stops = [...new Set(xs)].sort((a, b) => a - b);
    this.cursorOn(frame, stops, (stop) => series.map((line) => {
      const point = line.points.find(([iteration]) => xOf(line.run, iteration) === stop);
      return point && { label: this.name(line), value: show(point[1]), colour: lineLook(line.run, line.style).colour, iteration: point[0] };
    }).filter(Boolean));
    return drawing;
  }

  drawBars() {
    const series = this.shown();
    const runs = [...new Set(series.map((bar) => bar.run))];
    const iterations = [...new Set(series.flatMap((bar) => bar.points.map((point) => point[0])))].sort((a, b) => a - b);
    const maps = series.map((bar) => new Map(bar.points));
    const total = (iteration, run) => series.reduce((sum, bar, index) => sum + (bar.run === run ? maps[index].get(iteration) || 0 : 0), 0);
    const highest = Math.max(1e-9, ...iterations.flatMap((iteration) => runs.map((run) => total(iteration, run))));
    const { step } = ticks(0, highest, 4);
    const frame = this.frame(iterations.length ? iterations : [0, 1], 0, Math.ceil(highest / step - 1e-9) * step, true);
    const { drawing, x, y } = frame;
    const slot = Math.min(x(1) - x(0), 90) * 0.78;
    const width = Math.max(slot / Math.max(runs.length, 1), 0.8);
    for (const iteration of iterations) {
      runs.forEach((run, index) => {
        let base = 0;
        const left = x(iteration) - slot / 2 + index * width;
        series.forEach((bar, number) => {
          const value = bar.run === run ? maps[number].get(iteration) : 0;
          if (!value) return;
          const part = svg("rect", { x: left.toFixed(1), width: Math.max(width - (runs.length > 1 ? 2 : 0), 0.8).toFixed(1), y: y(base + value).toFixed(1), height: Math.max(y(base) - y(base + value) - 0.6, 0.2).toFixed(1) });
          part.style.fill = this.barLook(bar.style).colour;
          if (index % 2) part.style.opacity = 0.72;
          drawing.append(part);
          base += value;
        });
      });
    }
    this.cursorOn(frame, iterations, (stop) => runs.flatMap((run) => [
      ...(several ? [{ label: data.runs[run].name, value: duration(total(stop, run)), colour: "transparent", iteration: stop }] : []),
      ...series.map((bar, index) => bar.run === run && maps[index].has(stop) &&
        { label: bar.label, value: duration(maps[index].get(stop)), colour: this.barLook(bar.style).colour, iteration: stop }).filter(Boolean),
      ...(several ? [] : [{ label: "all", value: duration(total(stop, run)), colour: "transparent", iteration: stop }]),
    ]));
    return drawing;
  }

  /** A dashed line with a box of values that follows pointer and arrow keys. stops: its positions on the axis, in order. */
  cursorOn({ drawing, x, box }, stops, valuesAt) {
    const line = svg("line", { class: "cursor", y1: box.top, y2: box.bottom, visibility: "hidden" });
    drawing.append(line);
    const go = (index) => {
      if (!stops.length) return;
      this.cursor = Math.max(0, Math.min(stops.length - 1, index));
      const stop = stops[this.cursor];
      const at = x(stop);
      line.setAttribute("x1", at);
      line.setAttribute("x2", at);
      line.setAttribute("visibility", "visible");
      const values = valuesAt(stop);
      const named = [...new Set(values.map((value) => value.iteration))].join(", ");
      this.tip.replaceChildren(el("div", {}, `iteration ${named}`), ...values.map((value) => {
        const mark = el("i");
        mark.style.background = value.colour;
        return el("div", {}, mark, `${value.label} `, el("b", {}, value.value));
      }));
      this.tip.hidden = false;
      const [inside, outside] = [drawing.getBoundingClientRect(), this.root.getBoundingClientRect()];
      const left = inside.left - outside.left + (at * inside.width) / drawing.viewBox.baseVal.width;
      const room = this.root.clientWidth - this.tip.offsetWidth - 6;
      const side = left + 14 > room ? left - this.tip.offsetWidth - 14 : left + 14;
      this.tip.style.left = `${Math.max(6, Math.min(side, room))}px`;
      this.tip.style.top = `${inside.top - outside.top + 10}px`;
    };
    const leave = () => {
      line.setAttribute("visibility", "hidden");
      this.tip.hidden = true;
      this.cursor = null;
    };
    const nearest = (event) => {
      const bounds = drawing.getBoundingClientRect();
      const at = ((event.clientX - bounds.left) / bounds.width) * drawing.viewBox.baseVal.width;
      go(stops.reduce((best, stop, index) => (Math.abs(x(stop) - at) < Math.abs(x(stops[best]) - at) ? index : best), 0));
    };
    drawing.addEventListener("pointermove", nearest);
    drawing.addEventListener("pointerdown", nearest);
    drawing.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && leave());
    drawing.addEventListener("blur", leave);
    drawing.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (step) {
        event.preventDefault();
        go(this.cursor === null ? (step > 0 ? 0 : stops.length - 1) : this.cursor + step);
      } else if (event.key === "Escape") leave();
    });
  }
}

/** Whether no line of a chart ever changes: then its values are listed instead of drawn. */
function still(spec) {
  return !spec.bars && spec.series.some((series) => series.points.length > 1) && spec.series.every((series) =>
    series.points.every((point) => Math.abs(point[1] - series.points[0][1]) <= 1e-6 * Math.abs(series.points[0][1])));
}

function curves() {
  const redraw = () => charts.forEach((chart) => chart.draw());
  for (const [name, label] of Object.entries(AXES)) {
    byId("x-axis").append(el("button", {
      type: "button", "aria-pressed": String(name === axis),
      onclick: (event) => {
        axis = name;
        for (const button of byId("x-axis").children) button.setAttribute("aria-pressed", String(button === event.currentTarget));
        redraw();
      },
    }, label));
  }
  if (smooth) {
    byId("x-axis").after(el("button", {
      type: "button", id: "smooth", "aria-pressed": "true", title: "Running mean over a twentieth of the iterations, with the raw values behind it",
      onclick: (event) => {
        smooth = !smooth;
        event.currentTarget.setAttribute("aria-pressed", String(smooth));
        redraw();
      },
    }, "smoothed"));
  }
  const root = byId("charts");
  for (const section of [...new Set(data.charts.map((chart) => chart.section))]) {
    const cards = el("div", { class: "cards" });
    root.append(el("div", { class: "chips" }, el("h3", {}, section)), cards);
    const specs = data.charts.filter((chart) => chart.section === section);
    for (const spec of specs) if (!still(spec)) new Chart(spec, cards);
    const unchanged = specs.filter(still).map((spec) =>
      `${spec.title}: ${spec.series.map((series) => `${several ? `${data.runs[series.run].name} ` : ""}${series.label} ${show(series.points[0][1])}`).join(", ")}`);
    if (unchanged.length) root.append(el("p", { class: "still" }, el("b", {}, "Unchanged throughout. "), `${unchanged.join(" · ")}.`));
  }
  const names = Object.keys(data.metrics);
  if (names.length) {
    const cards = el("div", { class: "cards" });
    root.append(el("div", { class: "chips" }, el("h3", {}, "Any metric")), cards);
    const spec = { name: "any", title: "", unit: "", caption: "Every number in the summaries.", series: [] };
    const chart = new Chart(spec, cards);
    const select = el("select", {
      "aria-label": "Metric",
      onchange: () => {
        spec.title = select.value;
        spec.series = data.metrics[select.value].map((points, run) => ({ run, style: 0, label: select.value, points }));
        chart.keys();
        chart.draw();
      },
    }, names.map((name) => el("option", { value: name }, name)));
    chart.head.querySelector("h3").replaceWith(select);
    select.value = names.find((name) => data.metrics[name].some((points) => !still({ series: [{ points }] }))) ?? names[0];
    select.dispatchEvent(new Event("change"));
  }
  changed.addEventListener("runs", redraw);
}
