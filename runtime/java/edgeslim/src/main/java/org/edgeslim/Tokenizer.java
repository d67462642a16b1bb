package org.edgeslim;

import java.nio.charset.StandardCharsets;

/**
 * A bundle's tokenizer, by onnxruntime-extensions (0.15 or newer): an app that ships {@code libortextensions} hands text;
 * any app may hand tokens. Calls of it and its decoders from several threads wait for one another. Its memory goes when
 * it and all of its decoders are closed, in any order.
 */
public final class Tokenizer implements AutoCloseable {
  private final long handle;
  private int users = 1;
  private boolean closed;

  private Tokenizer(long handle) {
    this.handle = handle;
  }

  /** Opens the tokenizer of the bundle in {@code folder} with the extensions that the app or the system has. */
  public static Tokenizer open(String folder) {
    return open(folder, null);
  }

  /**
   * Opens the tokenizer of the bundle in {@code folder}.
   *
   * @param extensions path of {@code libortextensions}, or of the folder it lies in; null: the app's or the system's
   * @throws EdgeslimException with RUNTIME_UNAVAILABLE without the extensions, BAD_BUNDLE where they cannot read it
   */
  public static Tokenizer open(String folder, String extensions) {
    return new Tokenizer(Native.openTokenizer(Native.text(folder), Native.text(extensions)));
  }

  /** The tokens of {@code text}, with those that the bundle puts around a text. */
  public int[] encode(String text) {
    return encode(text, true);
  }

  /** The tokens of {@code text}; {@code special}: with those that the bundle puts around a text. */
  public synchronized int[] encode(String text, boolean special) {
    refuseClosed();
    return Native.encode(handle, Native.text(text), special);
  }

  /** The text of {@code tokens}, without special tokens and characters that are not complete. */
  public synchronized String decode(int... tokens) {
    refuseClosed();
    return new String(Native.decode(handle, tokens), StandardCharsets.UTF_8);
  }

  /** A decoder of tokens as they come. */
  public synchronized Decoder decoder() {
    refuseClosed();
    Decoder decoder = new Decoder(Native.openDecoder(handle));
    ++users;
    return decoder;
  }

  @Override
  public synchronized void close() {
    if (!closed) {
      closed = true;
      release();
    }
  }

  private void refuseClosed() {
    if (closed) {
      throw new IllegalStateException("the tokenizer is closed");
    }
  }

  private void release() {
    if (--users == 0) {
      Native.freeTokenizer(handle);
    }
  }

  /** Tokens in, text out, one token at a time. */
  public final class Decoder implements AutoCloseable {
    private long decoder; // 0: closed

    private Decoder(long decoder) {
      this.decoder = decoder;
    }

    /** The text that {@code token} completes, often none: always whole characters. */
    public String push(int token) {
      synchronized (Tokenizer.this) {
        if (decoder == 0) {
          throw new IllegalStateException("the decoder is closed");
        }
        return new String(Native.push(decoder, token), StandardCharsets.UTF_8);
      }
    }

    @Override
    public void close() {
      synchronized (Tokenizer.this) {
        if (decoder != 0) {
          Native.freeDecoder(decoder);
          decoder = 0;
          release();
        }
      }
    }
  }
}
