// The rollouts' columns out of the page's payload, and what is asked of a row. See payload.py for the layout.

const KINDS = { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, i4: Int32Array, i1: Int8Array, f4: Float32Array };
const QUANTITIES = {
  process_rewards: { label: "process reward", unit: "nats" },
  advantages: { label: "advantage", unit: "" },
  rollout_logprobs: { label: "log-probability", unit: "nats", sequential: true },
  values: { label: "value", unit: "" },
};

async function unpack(text, encoding) {
  const binary = atob(text.trim());
  let bytes = new Uint8Array(binary.length);
  for (let place = 0; place < binary.length; place++) bytes[place] = binary.charCodeAt(place);
  if (encoding === "gzip") {
    if (typeof DecompressionStream === "undefined") {
      throw new Error("this browser cannot decompress: make the report with --no-compress, or open it in a newer one");
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
      pieces: running(this.rows, (row) => (spelled[row] ? this.columns.tokens[row] : 0)),
    };
    for (const name of this.index.values) {
      const scales = this.columns[`${name}.scale`];
      this.starts[name] = running(this.rows, (row) => (Number.isNaN(scales[row]) ? 0 : this.columns.tokens[row]));
    }
    for (const name of ["text", "answer", "detail", "group.name", "group.prompt", "group.truth"]) {
      const lengths = this.columns[`${name}.length`];
      this.starts[name] = running(lengths.length, (place) => lengths[place]);
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

  /** One of the names that the index lists, such as a verdict. */
  label(name, row) {
    const lists = { verdict: "verdicts", purpose: "purposes", stage: "stages", finish: "finishes", source: "sources" };
    return this.index[lists[name]][this.columns[name][row]];
  }

  text(name, place) {
    const starts = this.starts[name];
    return this.decoder.decode(this.columns[name].subarray(starts[place], starts[place + 1]));
  }

  prompt(row) {
    return this.text("group.prompt", this.get("group", row));
  }

  truth(row) {
    return this.text("group.truth", this.get("group", row));
  }

  /** The tokens' texts; null where no tokenizer was found. */
  pieces(row) {
    if (!this.get("spelled", row)) return null;
    const text = this.text("text", row);
    const starts = this.starts.pieces;
    const found = [];
    let from = 0;
    for (let place = starts[row]; place < starts[row + 1]; place++) {
      const to = from + this.columns.pieces[place];
      found.push(text.slice(from, to));
      from = to;
    }
    return found;
  }

  /** One number a token, to 1/127 of the row's largest; null where the row has none. */
  values(name, row) {
    if (!this.index.values.includes(name)) return null;
    const scale = this.columns[`${name}.scale`][row];
    if (Number.isNaN(scale)) return null;
    const starts = this.starts[name];
    const parts = this.columns[name].subarray(starts[row], starts[row + 1]);
    const found = new Float32Array(parts.length);
    for (let place = 0; place < parts.length; place++) found[place] = (parts[place] * scale) / 127;
    return found;
  }

  /** The value that has the full colour. among: the rows it is of; null is all rows, by the 99th percentile of their largest. */
  scale(name, among) {
    if (among !== null) {
      return Math.max(0, ...among.map((row) => this.columns[`${name}.scale`][row]).filter((scale) => !Number.isNaN(scale)));
    }
    if (!this.scales.has(name)) {
      const found = Array.from(this.columns[`${name}.scale`]).filter((scale) => !Number.isNaN(scale)).sort((a, b) => a - b);
      this.scales.set(name, found[Math.floor(0.99 * (found.length - 1))] || 0);
    }
    return this.scales.get(name);
  }

  /** What a search looks through, in lower case. */
  haystack(row) {
    this.lower[row] ??= [this.prompt(row), this.text("text", row), this.text("answer", row), this.truth(row),
      this.text("group.name", this.get("group", row))].join("\n").toLowerCase();
    return this.lower[row];
  }

  /** Mean outcome reward of the row's group. */
  groupAccuracy(row) {
    let [sum, count] = [0, 0];
    for (const member of this.members.get(this.get("group", row))) {
      const reward = this.get("outcome", member);
      if (!Number.isNaN(reward)) [sum, count] = [sum + reward, count + 1];
    }
    return count ? sum / count : NaN;
  }

  /** The PRM's probability of being right, sigmoid(sum of rewards), against the outcome reward. */
  disagreement(row) {
    return Math.abs(1 / (1 + Math.exp(-this.get("sum", row))) - this.get("outcome", row));
  }

  /** The lowest process reward of a token. */
  lowest(row) {
    const scale = this.columns["process_rewards.scale"][row];
    const [parts, starts] = [this.columns.process_rewards, this.starts.process_rewards];
    let low = 127;
    for (let place = starts[row]; place < starts[row + 1]; place++) if (parts[place] < low) low = parts[place];
    return (low * scale) / 127;
  }
}

function running(count, length) {
  const starts = new Float64Array(count + 1);
  for (let place = 0; place < count; place++) starts[place + 1] = starts[place] + length(place);
  return starts;
}
