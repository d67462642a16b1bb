import { argmax, mulberry32 } from "./generate.js";
import { ort } from "./vendor.js";

/**
 * Measure `session` and return the profile object that `edgeslim profile --json` prints, so that `edgeslim report` takes
 * it. A page cannot see its process: memory, energy and temperature are null, not measured.
 *
 * @param {import("./session.js").Session} session
 * @param {{promptTokens?: number, newTokens?: number, repeats?: number, warmup?: number,
 *   onRun?: (done: number, total: number) => void}} [options]
 */
export async function profile(session, { promptTokens = 128, newTokens = 64, repeats = 5, warmup = 1, onRun } = {}) {
  const random = mulberry32(0);
  const prompt = Array.from({ length: promptTokens }, () => Math.floor(random() * session.bundle.vocabSize));
  const runs = [];
  for (let run = 0; run < warmup + repeats; run++) {
    runs.push(await once(session, prompt, newTokens));
    onRun?.(run + 1, warmup + repeats);
  }
  const counted = runs.slice(warmup);
  const steps = counted.flatMap((run) => run.steps);
  const first = counted.map((run) => run.first);
  return {
    device: deviceName(),
    engine: `onnxruntime-web ${ort.env.versions.web}`,
    isa: "wasm-simd128",
    threads: session.threads,
    prompt_tokens: promptTokens,
    new_tokens: newTokens,
    load_s: session.loadSeconds,
    ttft_ms_p50: percentile(first, 50),
    ttft_ms_p90: percentile(first, 90),
    prefill_tok_s_p50: percentile(first.map((ms) => (promptTokens / ms) * 1e3), 50),
    decode_tok_s_p50: percentile(counted.map((run) => (run.steps.length / sum(run.steps)) * 1e3), 50),
    decode_ms_p50: percentile(steps, 50),
    decode_ms_p90: percentile(steps, 90),
    base_rss_bytes: null,
    peak_rss_bytes: null,
    bundle_bytes: session.bundle.bundleBytes,
    weight_bytes: session.bundle.weightBytes,
    energy_j_per_token: null,
    temperature_c: null,
    repeats,
    warmup,
    measured: true,
    warnings: globalThis.crossOriginIsolated ? [] : ["the page is not cross-origin isolated: one thread, coarse timers"],
    bundle: session.bundle.base.pathname.split("/").filter(Boolean).at(-1) ?? "bundle",
  };
}

/** Return the times of one greedy generation, in ms: until the first token, of each later token. No token ends it. */
async function once(session, prompt, newTokens) {
  const begin = performance.now();
  session.reset();
  let token = argmax(await session.feed(prompt));
  let last = performance.now();
  const first = last - begin;
  const steps = [];
  for (let made = 1; made < newTokens; made++) {
    token = argmax(await session.feed([token]));
    const now = performance.now();
    steps.push(now - last);
    last = now;
  }
  return { first, steps };
}

/** Return the percentile by linear interpolation, as numpy does. */
export function percentile(values, percent) {
  const sorted = [...values].sort((a, b) => a - b);
  const place = ((sorted.length - 1) * percent) / 100;
  const [low, high] = [sorted[Math.floor(place)], sorted[Math.ceil(place)]];
  return low + (high - low) * (place - Math.floor(place));
}

function sum(values) {
  return values.reduce((a, b) => a + b, 0);
}

function deviceName() {
  const agent = navigator.userAgent;
  const browser = ["Firefox", "Edg", "Chrome", "Version"].map((name) => agent.match(new RegExp(`${name}/(\\d+)`))).find(Boolean);
  const name = browser ? browser[0].replace("Version/", "Safari ").replace("Edg/", "Edge ").replace("/", " ") : "browser";
  return `${name}, ${navigator.platform || "unknown platform"}, ${navigator.hardwareConcurrency || "?"} threads`;
}
