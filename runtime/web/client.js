/**
 * A bundle in a worker of its own, for a page:
 *
 *     const model = await Model.open("bundles/mine/");
 *     for await (const text of model.generate("Once upon a time")) output.append(text);
 */
export class Model {
  /**
   * @param {string} url the bundle's folder
   * @param {{threads?: number, onBytes?: (done: number, total: number) => void}} [options]
   * @returns {Promise<Model>}
   */
  static async open(url, { threads, onBytes } = {}) {
    const model = new Model();
    try {
      const options = { url: new URL(url, document.baseURI).href, threads };
      model.about = await model.call("open", options, { bytes: ({ done, total }) => onBytes?.(done, total) }).result;
    } catch (fault) {
      model.worker.terminate();
      throw fault;
    }
    return model;
  }

  constructor() {
    this.worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
    this.calls = new Map();
    this.count = 0;
    this.worker.onmessage = ({ data }) => this.receive(data);
    this.worker.onerror = (event) => this.fail(new Error(event.message ?? "the worker does not start"));
  }

  /**
   * Yield the text after `prompt` (text, or token ids) piece by piece; returns the tokens. Leaving the loop, or the
   * signal, ends the generation.
   *
   * @param {string | number[]} prompt
   * @param {import("./generate.js").Sampling & {maxNewTokens?: number, signal?: AbortSignal}} [options]
   */
  async *generate(prompt, { signal, ...options } = {}) {
    const pieces = [];
    let wake = () => {};
    const call = this.call("generate", { prompt, ...options }, { text: (text) => (pieces.push(text), wake()) });
    const cancel = () => this.worker.postMessage({ id: call.id, cancel: true });
    signal?.addEventListener("abort", cancel);
    if (signal?.aborted) cancel();
    let ended = false;
    const end = () => ((ended = true), wake());
    call.result.then(end, end);
    try {
      while (true) {
        while (pieces.length) yield pieces.shift();
        if (ended) return await call.result;
        await new Promise((resolve) => (wake = resolve));
      }
    } finally {
      if (!ended) cancel();
      signal?.removeEventListener("abort", cancel);
    }
  }

  /**
   * Return the profile of the bundle in this browser, with the keys of `edgeslim profile --json`.
   *
   * @param {{promptTokens?: number, newTokens?: number, repeats?: number, warmup?: number}} [options]
   * @param {(done: number, total: number) => void} [onRun]
   */
  profile(options = {}, onRun = () => {}) {
    return this.call("profile", options, { run: ({ done, total }) => onRun(done, total) }).result;
  }

  /** End the worker; what runs is lost. */
  close() {
    this.worker.terminate();
    this.fail(new Error("the model was closed"));
  }

  call(method, options, events = {}) {
    const id = ++this.count;
    const result = new Promise((resolve, reject) => this.calls.set(id, { resolve, reject, events }));
    result.catch(() => {}); // a caller that left the loop hears of no fault
    this.worker.postMessage({ id, method, options });
    return { id, result };
  }

  receive({ id, event, value }) {
    const call = this.calls.get(id);
    if (event === "done" || event === "failed") {
      this.calls.delete(id);
      if (event === "done") call.resolve(value);
      else call.reject(Object.assign(new Error(value.message), { name: value.name }));
    } else call.events[event]?.(value);
  }

  fail(fault) {
    for (const { reject } of this.calls.values()) reject(fault);
    this.calls.clear();
  }
}
