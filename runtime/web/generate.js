/**
 * Choosing tokens. Temperature 0 is greedy; else the next token is drawn from the `topK` likeliest (0: all) by a seeded
 * generator, so that a seed repeats its text here (Python draws by other random numbers).
 *
 * @typedef {{temperature?: number, topK?: number, seed?: number}} Sampling
 */

/**
 * Yield up to `count` tokens after `prompt`; the model's end tokens end it and are not given.
 *
 * @param {import("./session.js").Session} session
 * @param {number[]} prompt
 * @param {number} count
 * @param {Sampling} [sampling]
 */
export async function* generate(session, prompt, count, sampling = {}) {
  const choose = chooser(sampling);
  session.reset();
  let logits = await session.feed(prompt);
  for (let made = 0; made < count; made++) {
    const token = choose(logits);
    if (session.bundle.eosIds.has(token)) return;
    yield token;
    if (made + 1 < count) logits = await session.feed([token]);
  }
}

/** @param {Float32Array} logits @returns {number} the first index of the largest */
export function argmax(logits) {
  let best = 0;
  for (let n = 1; n < logits.length; n++) if (logits[n] > logits[best]) best = n;
  return best;
}

/** @param {Sampling} sampling @returns {(logits: Float32Array) => number} */
export function chooser({ temperature = 0, topK = 0, seed = 0 }) {
  if (temperature <= 0) return argmax;
  const random = mulberry32(seed);
  return (logits) => {
    const order = Array.from(logits.keys()).sort((a, b) => logits[b] - logits[a]);
    const kept = topK > 0 ? order.slice(0, topK) : order;
    const weights = kept.map((id) => Math.exp((logits[id] - logits[kept[0]]) / temperature));
    let left = random() * weights.reduce((a, b) => a + b, 0);
    return kept.find((_, n) => (left -= weights[n]) < 0) ?? kept[0];
  };
}

/** Return a generator of numbers in [0, 1). Source: Tommy Ettinger's mulberry32, public domain. */
export function mulberry32(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
}
