package org.edgeslim;

/**
 * A loaded bundle. Any number of sessions on any threads may share it. Its memory goes when it and all of its sessions
 * are closed, in any order.
 */
public final class Model implements AutoCloseable {
  private final long handle;
  private final long[] numbers;
  private final String[] texts;
  private final int[] endTokens;
  private int users = 1;
  private boolean closed;

  private Model(long handle) {
    this.handle = handle;
    numbers = Native.modelNumbers(handle);
    texts = Native.modelTexts(handle);
    endTokens = Native.endTokens(handle);
  }

  /** Loads the bundle in {@code folder} with {@link ModelOptions#DEFAULT}. */
  public static Model load(String folder) {
    return load(folder, ModelOptions.DEFAULT);
  }

  /** Loads the bundle in {@code folder}; its weights stay in the mapped file. */
  public static Model load(String folder, ModelOptions options) {
    return new Model(
        Native.loadModel(
            Native.text(folder),
            options.flags,
            options.threads,
            Native.text(options.onnxruntime),
            Native.text(options.graph)));
  }

  /** The version of the native runtime. */
  public static String runtimeVersion() {
    return Native.version();
  }

  /**
   * Measures the bundle in {@code folder} with random tokens and returns the profile, a JSON object. Memory counts from
   * this call on: call it in a process that has loaded nothing yet.
   */
  public static String profile(String folder, ModelOptions options, int promptTokens, int newTokens, int repeats) {
    byte[] json =
        Native.profile(
            Native.text(folder),
            options.flags,
            options.threads,
            Native.text(options.onnxruntime),
            Native.text(options.graph),
            new int[] {promptTokens, newTokens, repeats});
    return new String(json, java.nio.charset.StandardCharsets.UTF_8);
  }

  /** Opens a session with room for as many tokens as the bundle says. */
  public Session open() {
    return open(0, 0);
  }

  /**
   * Opens a session.
   *
   * @param room most tokens of prompt and answer together; 0: what the bundle says
   * @param chunk tokens of a prompt that run at once; 0: the runtime's choice
   */
  public Session open(long room, long chunk) {
    acquire();
    try {
      return new Session(this, Native.openSession(handle, room, chunk));
    } catch (Throwable fault) {
      release();
      throw fault;
    }
  }

  /** Tokens that there are. */
  public int vocabSize() {
    return (int) numbers[0];
  }

  /** Most tokens that the model was made for; 0: nothing bounds it. */
  public long contextLength() {
    return numbers[1];
  }

  /** Tokens that sessions make room for by default; 0: nothing bounds it. */
  public long room() {
    return numbers[2];
  }

  /** The token that begins a text; -1: none. */
  public int bosToken() {
    return (int) numbers[3];
  }

  /** Whether it has operators of edgeslim's. */
  public boolean isPacked() {
    return numbers[4] != 0;
  }

  /** Threads as asked for; 0: ONNX Runtime's choice. */
  public int threads() {
    return (int) numbers[5];
  }

  /** The tokens that end a text. */
  public int[] endTokens() {
    return endTokens.clone();
  }

  /** The version of ONNX Runtime that it runs on; "" where it runs without. */
  public String onnxRuntimeVersion() {
    return texts[0];
  }

  /** What products run on: a kernel variant, "function bodies", or "" for ONNX Runtime's own. */
  public String isa() {
    return texts[1];
  }

  @Override
  public void close() {
    synchronized (this) {
      if (closed) {
        return;
      }
      closed = true;
    }
    release();
  }

  private synchronized void acquire() {
    if (closed) {
      throw new IllegalStateException("the model is closed");
    }
    ++users;
  }

  /** Ends one use, the model's own or a session's. */
  synchronized void release() {
    if (--users == 0) {
      Native.freeModel(handle);
    }
  }
}
