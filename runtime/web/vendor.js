// The one file that knows where npm puts the two libraries. A worker has no import map, so the paths are relative.
import * as ort from "./node_modules/onnxruntime-web/dist/ort.wasm.min.mjs";

export { Tokenizer } from "./node_modules/@huggingface/tokenizers/dist/tokenizers.min.mjs";
export { ort };

// WebAssembly comes from this server, never from a CDN. Threads need a page that is cross-origin isolated.
ort.env.wasm.wasmPaths = new URL("./node_modules/onnxruntime-web/dist/", import.meta.url).href;
ort.env.logLevel = "error";
