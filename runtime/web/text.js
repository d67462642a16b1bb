import { readJson } from "./bundle.js";
import { BundleError } from "./errors.js";
import { Tokenizer } from "./vendor.js";

const BROKEN = "\uFFFD"; // what decoders make of an incomplete character

/** A bundle's tokenizer. */
export class TextCodec {
  /** @param {import("./bundle.js").Bundle} bundle */
  static async open(bundle) {
    const names = ["tokenizer.json", "tokenizer_config.json"];
    const [tokenizer, config] = await Promise.all(names.map((name) => readJson(new URL(name, bundle.base))));
    if (!tokenizer) throw new BundleError(`${bundle.base}: it has no tokenizer.json`);
    return new TextCodec(new Tokenizer(tokenizer, config ?? {}));
  }

  constructor(tokenizer) {
    this.tokenizer = tokenizer;
  }

  /** @returns {number[]} the tokens of `text`, with those that the tokenizer puts around a text */
  encode(text) {
    return Array.from(this.tokenizer.encode(text).ids, Number);
  }

  /** @returns {string} the text of `ids` without special tokens */
  decode(ids) {
    return ids.length ? this.tokenizer.decode(ids, { skip_special_tokens: true, clean_up_tokenization_spaces: false }) : "";
  }
}

/**
 * Tokens in, text out, one token at a time; an incomplete character waits for its remaining bytes. Each step decodes a
 * short window twice, with the new tokens and without; the difference is what is new (as runtime/text.py does).
 */
export class Detokenizer {
  constructor(decode) {
    this.decode = decode;
    this.ids = [];
    this.start = 0; // the window begins here
    this.read = 0; // the tokens before this one are out already
  }

  /** @returns {string} the text that `token` completes, often none */
  push(token) {
    this.ids.push(token);
    const text = this.pending();
    if (!text || text.endsWith(BROKEN)) return "";
    [this.start, this.read] = [this.read, this.ids.length];
    return text;
  }

  /** @returns {string} what still waits, without a character that never became complete */
  flush() {
    const text = this.pending().replace(/\uFFFD+$/, "");
    this.start = this.read = this.ids.length;
    return text;
  }

  pending() {
    const known = this.decode(this.ids.slice(this.start, this.read));
    return this.decode(this.ids.slice(this.start)).slice(known.length);
  }
}
