import { BundleError } from "./errors.js";

/**
 * What a bundle says of itself, read over HTTP.
 *
 * @typedef {object} Bundle
 * @property {URL} base the folder
 * @property {number} vocabSize
 * @property {number | null} contextLength in tokens; null: nothing bounds it
 * @property {ReadonlySet<number>} eosIds ids that end a text
 * @property {number | null} weightBytes
 * @property {number | null} bundleBytes
 */

/**
 * Return the bundle in the folder at `url`. The same files decide as in Python (runtime/config.py).
 *
 * @param {string | URL} url
 * @returns {Promise<Bundle>}
 */
export async function readBundle(url) {
  const base = new URL(String(url).replace(/\/?$/, "/"), globalThis.location?.href);
  const names = ["edgeslim.json", "genai_config.json", "config.json", "generation_config.json"];
  const [manifest, genai, config, generation] = await Promise.all(names.map((name) => readJson(new URL(name, base))));
  if (!manifest && !genai) {
    throw new BundleError(`${base}: no edgeslim.json and no genai_config.json; expected a folder of \`edgeslim export\``);
  }
  if (manifest && manifest.format !== 1) {
    throw new BundleError(`${base}: has format ${manifest.format}, this page reads format 1; export it again`);
  }
  const model = genai?.model ?? {};
  const vocabSize = model.vocab_size || config?.vocab_size;
  if (!vocabSize) throw new BundleError(`${base}: neither genai_config.json nor config.json says vocab_size`);
  return {
    base,
    vocabSize,
    contextLength: model.context_length || config?.max_position_embeddings || null,
    eosIds: new Set([generation, model, config].map((each) => ids(each?.eos_token_id)).find((each) => each.length) ?? []),
    weightBytes: manifest?.weight_bytes ?? null,
    bundleBytes: manifest ? Object.values(manifest.files).reduce((sum, file) => sum + file.bytes, 0) : null,
  };
}

/**
 * Return the file at `url`, telling `onBytes` how many bytes have come and how many there are (0: not known).
 *
 * @param {URL} url
 * @param {(done: number, total: number) => void} [onBytes]
 * @returns {Promise<Uint8Array>}
 */
export async function readBytes(url, onBytes = () => {}) {
  const answer = await fetch(url);
  if (!answer.ok) throw new BundleError(`${url}: the server answers ${answer.status}; expected a file of the bundle`);
  const total = Number(answer.headers.get("content-length") ?? 0);
  const parts = [];
  let done = 0;
  for (const reader = answer.body.getReader(); ; ) {
    const { value, done: ended } = await reader.read();
    if (ended) break;
    parts.push(value);
    done += value.length;
    onBytes(done, total);
  }
  const bytes = new Uint8Array(done);
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}

/** Return the JSON at `url`, or null where there is no such file. */
export async function readJson(url) {
  const answer = await fetch(url);
  if (answer.status === 404) return null;
  if (!answer.ok) throw new BundleError(`${url}: the server answers ${answer.status}; expected a file of the bundle`);
  try {
    return await answer.json();
  } catch (fault) {
    throw new BundleError(`${url}: not valid JSON: ${fault.message}`);
  }
}

function ids(value) {
  return value == null ? [] : [value].flat();
}
