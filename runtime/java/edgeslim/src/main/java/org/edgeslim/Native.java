package org.edgeslim;

import java.nio.charset.StandardCharsets;

/** The functions of {@code libedgeslim_jni}. Texts go in as UTF-8 that ends with a zero; handles are pointers. */
final class Native {
  /** System property: path of {@code libedgeslim_jni}; without it the platform's library path is searched. */
  static final String PROPERTY = "edgeslim.library";

  static {
    String path = System.getProperty(PROPERTY);
    if (path == null) {
      System.loadLibrary("edgeslim_jni");
    } else {
      System.load(path);
    }
  }

  private Native() {}

  /** Returns {@code text} as C reads it, null for null. */
  static byte[] text(String text) {
    if (text != null && text.indexOf('\0') >= 0) {
      throw new IllegalArgumentException("a text must not hold a zero character");
    }
    return text == null ? null : (text + '\0').getBytes(StandardCharsets.UTF_8);
  }

  static native String version();

  static native long loadModel(byte[] folder, int flags, int threads, byte[] onnxruntime, byte[] graph);

  static native void freeModel(long model);

  /** vocab_size, context_length, room, bos_token, packed, threads. */
  static native long[] modelNumbers(long model);

  /** The version of ONNX Runtime, and what products run on. */
  static native String[] modelTexts(long model);

  static native int[] endTokens(long model);

  static native byte[] profile(
      byte[] folder, int flags, int threads, byte[] onnxruntime, byte[] graph, int[] counts);

  static native long openSession(long model, long room, long chunk);

  static native void freeSession(long session);

  static native void reset(long session);

  static native long position(long session);

  static native long room(long session);

  static native void feed(long session, int[] tokens);

  static native boolean logits(long session, float[] logits);

  static native int sample(long session, float[] numbers, int topK, long seed);

  /** Returns what ended the text. {@code endTokens} null: the bundle's. */
  static native int generate(
      long session,
      int[] prompt,
      long maxNewTokens,
      int[] endTokens,
      float[] numbers,
      int topK,
      long seed,
      TokenListener listener);

  static native void cancel(long session);

  static native void resume(long session);

  static native byte[] save(long session);

  static native void restore(long session, byte[] state);

  static native long openTokenizer(byte[] folder, byte[] library);

  static native void freeTokenizer(long tokenizer);

  static native int[] encode(long tokenizer, byte[] text, boolean special);

  static native byte[] decode(long tokenizer, int[] tokens);

  static native long openDecoder(long tokenizer);

  static native void freeDecoder(long decoder);

  /** Returns UTF-8 of whole characters. */
  static native byte[] push(long decoder, int token);
}
