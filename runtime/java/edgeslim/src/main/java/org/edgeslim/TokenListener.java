package org.edgeslim;

/** Hears of every token as it is drawn, on the thread that called {@link Session#generate}. */
@FunctionalInterface
public interface TokenListener {
  /**
   * Returns whether to go on. May call {@link Session#cancel}, and no other method that changes the session. What it
   * throws ends the text and arrives at the caller of {@code generate}.
   */
  boolean onToken(int token);
}
