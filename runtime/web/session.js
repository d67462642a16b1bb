import { readBytes } from "./bundle.js";
import { BundleError } from "./errors.js";
import { ort } from "./vendor.js";

const PAST = "past_key_values.";
const PRESENT = "present.";
const DATA = "model.onnx.data";
const ARRAYS = { float32: Float32Array, int64: BigInt64Array, int32: Int32Array };

/**
 * A bundle's graph on onnxruntime-web: tokens in, logits out, the state kept between calls, one sequence at a time.
 */
export class Session {
  /**
   * Fetch and load the graph and its weights.
   *
   * @param {import("./bundle.js").Bundle} bundle
   * @param {{threads?: number, onBytes?: (done: number, total: number) => void}} [options] `threads` beyond 1 need a
   *   page that is cross-origin isolated; left out: as many as the machine has physical cores, at most 4
   */
  static async open(bundle, { threads, onBytes } = {}) {
    const graph = await readBytes(new URL("model.onnx", bundle.base));
    const data = await readBytes(new URL(DATA, bundle.base), onBytes);
    ort.env.wasm.numThreads = usableThreads(threads);
    const started = performance.now();
    let session;
    try {
      session = await ort.InferenceSession.create(graph, {
        executionProviders: ["wasm"],
        externalData: [{ path: DATA, data }],
        graphOptimizationLevel: "all",
      });
    } catch (fault) {
      throw new BundleError(`${bundle.base}model.onnx does not load: ${String(fault.message ?? fault).split("\n")[0]}`);
    }
    return new Session(bundle, session, (performance.now() - started) / 1e3);
  }

  constructor(bundle, session, loadSeconds) {
    this.bundle = bundle;
    this.loadSeconds = loadSeconds;
    this.threads = ort.env.wasm.numThreads;
    this.session = session;
    this.inputs = new Map(session.inputMetadata.map((each) => [each.name, each]));
    this.stateInputs = session.inputMetadata.filter((each) => each.name.startsWith(PAST));
    const grows = this.stateInputs.some((each) => each.shape.slice(1).some((size) => typeof size === "string"));
    this.contextLength = grows ? bundle.contextLength : null; // a recurrent state has no end
    this.reset();
  }

  /** Empty the state. */
  reset() {
    this.position = 0;
    this.state = Object.fromEntries(this.stateInputs.map((each) => [each.name, emptyState(each)]));
  }

  /**
   * Append `tokens` to the state and return the logits after the last of them.
   *
   * @param {readonly number[]} tokens
   * @returns {Promise<Float32Array>} [vocabulary]
   */
  async feed(tokens) {
    this.check(tokens);
    const outputs = await this.session.run({ ...this.tokenInputs(tokens), ...this.state });
    this.state = Object.fromEntries(this.stateInputs.map(({ name }) => [name, outputs[PRESENT + name.slice(PAST.length)]]));
    this.position += tokens.length;
    const logits = outputs.logits;
    return logits.data.subarray(logits.data.length - logits.dims.at(-1));
  }

  /** Give the memory back. */
  async close() {
    this.state = {};
    await this.session.release();
  }

  check(tokens) {
    const end = this.position + tokens.length;
    if (tokens.length === 0) throw new BundleError("there is no token to feed; give at least one");
    if (this.contextLength !== null && end > this.contextLength) {
      throw new BundleError(`${end} tokens do not fit the model's context of ${this.contextLength}`);
    }
    const foreign = tokens.find((id) => !Number.isInteger(id) || id < 0 || id >= this.bundle.vocabSize);
    if (foreign !== undefined) throw new BundleError(`token ids must be in [0, ${this.bundle.vocabSize}), got ${foreign}`);
  }

  tokenInputs(tokens) {
    const end = this.position + tokens.length;
    const given = { input_ids: integers(tokens) };
    if (this.inputs.has("attention_mask")) given.attention_mask = integers(new Array(end).fill(1));
    if (this.inputs.has("position_ids")) given.position_ids = integers(tokens.map((_, n) => this.position + n));
    return given;
  }
}

function integers(values) {
  return new ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);
}

/** Return an empty state: the batch is one sequence, other symbolic dimensions count past tokens. */
function emptyState({ name, type, shape }) {
  const dims = shape.map((size, axis) => (axis === 0 ? 1 : typeof size === "string" ? 0 : size));
  if (!(type in ARRAYS)) throw new BundleError(`${name} is ${type}; expected ${Object.keys(ARRAYS).join(", ")}`);
  return new ort.Tensor(type, new ARRAYS[type](dims.reduce((a, b) => a * b, 1)), dims);
}

function usableThreads(threads) {
  if (!globalThis.crossOriginIsolated) return 1;
  return threads ?? Math.max(1, Math.min(4, Math.ceil((navigator.hardwareConcurrency || 1) / 2)));
}
