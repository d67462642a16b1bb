package org.edgeslim;

import java.util.concurrent.locks.ReentrantLock;
import java.util.function.LongFunction;

/**
 * One sequence with its state. Calls from several threads wait for one another; {@link #cancel} and {@link #resume} do
 * not wait. Closing waits for the call under way, so cancel first where it is to end soon.
 */
public final class Session implements AutoCloseable {
  private final Model model;
  private final ReentrantLock use = new ReentrantLock();
  private final Object flag = new Object();
  private long handle; // 0: closed. Changed with both locks, read with either

  Session(Model model, long handle) {
    this.model = model;
    this.handle = handle;
  }

  /** The model it belongs to. */
  public Model model() {
    return model;
  }

  /** Tokens in the state; also for a listener, which hears of a token before it is fed. */
  public long position() {
    return read(Native::position);
  }

  /** Most tokens that the state holds; 0: no bound. */
  public long room() {
    return read(Native::room);
  }

  /** Empties the state. */
  public void reset() {
    change(
        session -> {
          Native.reset(session);
          return null;
        });
  }

  /**
   * Appends tokens to the state. Where it fails or is cancelled the state holds the first {@link #position} of them,
   * and there are no logits until tokens are fed again.
   */
  public void feed(int... tokens) {
    change(
        session -> {
          Native.feed(session, tokens);
          return null;
        });
  }

  /** Returns the logits after the last token fed, one for each of the vocabulary. */
  public float[] logits() {
    float[] logits = new float[model.vocabSize()];
    if (!read(session -> Native.logits(session, logits))) {
      throw new IllegalStateException("there are no logits: feed tokens first");
    }
    return logits;
  }

  /** Returns a token drawn after the last one fed; the state stays as it is. */
  public int sample(Sampling sampling) {
    return change(session -> Native.sample(session, sampling.numbers(), sampling.topK(), sampling.seed()));
  }

  /** The same as the long form with the bundle's end tokens. */
  public Ending generate(int[] prompt, long maxNewTokens, Sampling sampling, TokenListener listener) {
    return generate(prompt, maxNewTokens, sampling, null, listener);
  }

  /**
   * Feeds {@code prompt} after what the state holds, then draws and feeds tokens. The last token given is not fed: to
   * go on after it, let it begin the next prompt.
   *
   * @param endTokens null: the bundle's; empty: none
   * @return what ended the text
   */
  public Ending generate(
      int[] prompt, long maxNewTokens, Sampling sampling, int[] endTokens, TokenListener listener) {
    return change(
        session ->
            Ending.values()[
                Native.generate(
                    session,
                    prompt,
                    maxNewTokens,
                    endTokens,
                    sampling.numbers(),
                    sampling.topK(),
                    sampling.seed(),
                    listener)]);
  }

  /** Lets the call under way, and every later one until {@link #resume}, end with {@code CANCELLED}; on any thread. */
  public void cancel() {
    synchronized (flag) {
      if (handle != 0) {
        Native.cancel(handle);
      }
    }
  }

  /** Takes {@link #cancel} back. */
  public void resume() {
    synchronized (flag) {
      if (handle != 0) {
        Native.resume(handle);
      }
    }
  }

  /** Returns the state; a session of the same bundle, here or in another process, goes on from it exactly. */
  public byte[] save() {
    return change(Native::save);
  }

  /** Takes back what {@link #save} gave. A state that is refused leaves the session as it was. */
  public void restore(byte[] state) {
    change(
        session -> {
          Native.restore(session, state);
          return null;
        });
  }

  @Override
  public void close() {
    use.lock();
    try {
      refuseFromListener();
      synchronized (flag) {
        if (handle == 0) {
          return;
        }
        Native.freeSession(handle);
        handle = 0;
      }
      model.release();
    } finally {
      use.unlock();
    }
  }

  private <T> T read(LongFunction<T> call) {
    use.lock();
    try {
      if (handle == 0) {
        throw new IllegalStateException("the session is closed");
      }
      return call.apply(handle);
    } finally {
      use.unlock();
    }
  }

  private <T> T change(LongFunction<T> call) {
    return read(
        session -> {
          refuseFromListener();
          return call.apply(session);
        });
  }

  private void refuseFromListener() {
    if (use.getHoldCount() > 1) {
      throw new IllegalStateException("a listener must not use the session; it may cancel it");
    }
  }
}
