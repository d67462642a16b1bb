// The model runs here, off the page's thread. Messages in: {id, method, options}; {id, cancel: true}. Messages out:
// {id, event, value} with event one of text, token, bytes, run, done, failed.
import { readBundle } from "./bundle.js";
import { generate } from "./generate.js";
import { profile } from "./profile.js";
import { Session } from "./session.js";
import { Detokenizer, TextCodec } from "./text.js";

let session = null;
let codec = null;
const cancelled = new Set();

const methods = {
  async open({ url, threads }, say) {
    const bundle = await readBundle(url);
    await session?.close();
    session = null;
    codec = await TextCodec.open(bundle);
    session = await Session.open(bundle, { threads, onBytes: (done, total) => say("bytes", { done, total }) });
    return { threads: session.threads, loadSeconds: session.loadSeconds, weightBytes: bundle.weightBytes };
  },

  async generate({ prompt, maxNewTokens = 64, ...sampling }, say, id) {
    const tokens = Array.isArray(prompt) ? prompt : codec.encode(prompt);
    const detokenizer = new Detokenizer((ids) => codec.decode(ids));
    const made = [];
    for await (const token of generate(session, tokens, maxNewTokens, sampling)) {
      made.push(token);
      const text = detokenizer.push(token);
      if (text) say("text", text);
      await breathe();
      if (cancelled.has(id)) break;
    }
    const rest = detokenizer.flush();
    if (rest) say("text", rest);
    return { tokens: made, cancelled: cancelled.has(id) };
  },

  async profile(options, say) {
    return profile(session, { ...options, onRun: (done, total) => say("run", { done, total }) });
  },

  async close() {
    await session?.close();
    session = codec = null;
  },
};

// One call at a time: a session has one state.
let queue = Promise.resolve();

self.onmessage = ({ data: { id, method, options, cancel } }) => {
  if (cancel) return cancelled.add(id);
  const say = (event, value) => self.postMessage({ id, event, value });
  queue = queue.then(async () => {
    try {
      if (method !== "open" && method !== "close" && session === null) throw new Error("no bundle is open");
      say("done", await methods[method](options ?? {}, say, id));
    } catch (fault) {
      say("failed", { name: fault.name, message: fault.message });
    } finally {
      cancelled.delete(id);
    }
  });
};

/** Let messages in: a run blocks this thread, and awaiting one does not give way to them. */
function breathe() {
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(null);
  });
}
