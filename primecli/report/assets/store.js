// The columns of the rollouts, unpacked from the page's payload, and what can be asked about a row. payload.py describes the layout.

const KINDS = { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, i4: Int32Array, i1: Int8Array, f4: Float32Array };
const QUANTITIES = {
  process_rewards: { label: "process reward", unit: "nats" },
  advantages: { label: "advantage", unit: "" },
  rollout_logprobs: { label: "log-probability", unit: "nats", sequential: true },
  values: { label: "value", unit: "" },
};

/** The store of a payload in base64. */
async function unpack(text, encoding) {
  const binary = atob(text.trim());
  let bytes = new Uint8Array(binary.length);
  for (let index = 0; index < binary.length; index++) bytes[index] = binary.charCodeAt(index);
  if (encoding === "gzip") {
    if (typeof DecompressionStream === "undefined") {
      throw new Error("this browser cannot decompress them; make the report with --no-compress, or use a newer browser");
    }
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  }
  return new Store(bytes.buffer);
}

class Store {
  constructor(buffer) {
    const size = new DataView(buffer).getUint32(0, true);
    const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    this.index = JSON.parse(decoder.decode(new Uint8Array(buffer, 4, size)));
    this.decoder = decoder;
    this.rows = this.index.rows;
    this.columns = {};
    for (const [name, [kind, start, count]] of Object.entries(this.index.columns)) {
      this.columns[name] = new KINDS[kind](buffer, 4 + size + start, count);
    }
    const spelled = this.columns.spelled;
    this.starts = {
      pieces: runningTotal(this.rows, (row) => (spelled[row] ? this.columns.tokens[row] : 0)),
    };
    for (const name of this.index.values) {
      const scales = this.columns[`${name}.scale`];
      this.starts[name] = runningTotal(this.rows, (row) => (Number.isNaN(scales[row]) ? 0 : this.columns.tokens[row]));
    }
    for (const name of ["text", "answer", "detail", "group.name", "group.prompt", "group.question", "group.truth"]) {
      const lengths = this.columns[`${name}.length`];
      this.starts[name] = runningTotal(lengths.length, (index) => lengths[index]);
    }
    this.members = new Map();
    for (let row = 0; row < this.rows; row++) {
      const group = this.columns.group[row];
      if (this.members.has(group)) this.members.get(group).push(row);
      else this.members.set(group, [row]);
    }
    this.scales = new Map();
    this.lower = [];
  }

  get(name, row) {
    return this.columns[name][row];
  }

  /** The name behind a code, such as that of a verdict. */
  label(name, row) {
    const lists = { verdict: "verdicts", purpose: "purposes", stage: "stages", finish: "finishes", source: "sources" };
    return this.index[lists[name]][this.columns[name][row]];
  }

  /** Text number `index` of a column. */
  text(name, index) {
    const starts = this.starts[name];
    return this.decoder.decode(this.columns[name].subarray(starts[index], starts[index + 1]));
  }

  prompt(row) {
    return this.text("group.prompt", this.get("group", row));
  }

  /** The prompt without what all prompts of the data set share, shortened. */
  question(row) {
    return this.text("group.question", this.get("group", row));
  }

  truth(row) {
    return this.text("group.truth", this.get("group", row));
  }

  /** The text of each token; null if no tokenizer was found. */
  pieces(row) {
    if (!this.get("spelled", row)) return null;
    const text = this.text("text", row);
    const starts = this.starts.pieces;
    const pieces = [];
    let from = 0;
    for (let index = starts[row]; index < starts[row + 1]; index++) {
      const to = from + this.columns.pieces[index];
      pieces.push(text.slice(from, to));
      from = to;
    }
    return pieces;
  }

  /** One number per token, exact to 1/254 of the row's largest; null if the row has none. */
  values(name, row) {
    if (!this.index.values.includes(name)) return null;
    const scale = this.columns[`${name}.scale`][row];
    if (Number.isNaN(scale)) return null;
    const starts = this.starts[name];
    const levels = this.columns[name].subarray(starts[row], starts[row + 1]); // -127 … 127
    const values = new Float32Array(levels.length);
    for (let token = 0; token < levels.length; token++) values[token] = (levels[token] * scale) / 127;
    return values;
  }

  /** The value that gets the full colour: the largest among these rows, or, for null, the 99th percentile of all rows' largest. */
  scale(name, among) {
    if (among !== null) {
      return Math.max(0, ...among.map((row) => this.columns[`${name}.scale`][row]).filter((scale) => !Number.isNaN(scale)));
    }
    if (!this.scales.has(name)) {
      const largest = Array.from(this.columns[`${name}.scale`]).filter((scale) => !Number.isNaN(scale)).sort((a, b) => a - b);
      this.scales.set(name, largest[Math.floor(0.99 * (largest.length - 1))] || 0);
    }
    return this.scales.get(name);
  }

  /** The text that a search looks through, in lower case. */
  haystack(row) {
    this.lower[row] ??= [this.prompt(row), this.text("text", row), this.text("answer", row), this.truth(row),
      this.text("group.name", this.get("group", row))].join("\n").toLowerCase();
    return this.lower[row];
  }

  /** The mean outcome reward of the row's group. */
  groupAccuracy(row) {
    let [sum, count] = [0, 0];
    for (const member of this.members.get(this.get("group", row))) {
      const reward = this.get("outcome", member);
      if (!Number.isNaN(reward)) [sum, count] = [sum + reward, count + 1];
    }
    return count ? sum / count : NaN;
  }

  /** How far the PRM's probability of a correct response, sigmoid(sum of rewards), is from the outcome reward. */
  disagreement(row) {
    return Math.abs(1 / (1 + Math.exp(-this.get("sum", row))) - this.get("outcome", row));
  }

  /** The lowest process reward of any token. */
  lowest(row) {
    const scale = this.columns["process_rewards.scale"][row];
    const [levels, starts] = [this.columns.process_rewards, this.starts.process_rewards];
    let low = 127;
    for (let index = starts[row]; index < starts[row + 1]; index++) if (levels[index] < low) low = levels[index];
    return (low * scale) / 127;
  }
}

/** Where each of `count` items starts, and where the last ends, from their lengths. */
function runningTotal(count, length) {
  const starts = new Float64Array(count + 1);
  for (let index = 0; index < count; index++) starts[index + 1] = starts[index] + length(index);
  return starts;
}
