package org.edgeslim;

/**
 * How the next token is drawn, by transformers' rules of the same names. {@link #GREEDY} takes the likeliest; every
 * {@code with…} method returns a copy. The draw depends on the seed, the position and the logits alone.
 */
public final class Sampling {
  /** Takes the token with the largest logit, the first of equal ones. */
  public static final Sampling GREEDY = new Sampling(0, 0, 0, 0, 0, 0);

  private final float repetitionPenalty;
  private final float temperature;
  private final int topK;
  private final float topP;
  private final float minP;
  private final long seed;

  private Sampling(float repetitionPenalty, float temperature, int topK, float topP, float minP, long seed) {
    this.repetitionPenalty = repetitionPenalty;
    this.temperature = temperature;
    this.topK = topK;
    this.topP = topP;
    this.minP = minP;
    this.seed = seed;
  }

  /** Logits of tokens seen are divided by it where positive, else multiplied; 0 or 1: off. */
  public Sampling withRepetitionPenalty(float value) {
    return new Sampling(value, temperature, topK, topP, minP, seed);
  }

  /** Logits are divided by it; 0: greedy. */
  public Sampling withTemperature(float value) {
    return new Sampling(repetitionPenalty, value, topK, topP, minP, seed);
  }

  /** Only the k largest, and those equal to the k-th; 0: off. */
  public Sampling withTopK(int value) {
    return new Sampling(repetitionPenalty, temperature, value, topP, minP, seed);
  }

  /** Only the fewest, largest first, that together hold this probability; 0 or 1: off. */
  public Sampling withTopP(float value) {
    return new Sampling(repetitionPenalty, temperature, topK, value, minP, seed);
  }

  /** Only those at least this fraction as likely as the likeliest; 0: off. */
  public Sampling withMinP(float value) {
    return new Sampling(repetitionPenalty, temperature, topK, topP, value, seed);
  }

  /** All 64 bits count. */
  public Sampling withSeed(long value) {
    return new Sampling(repetitionPenalty, temperature, topK, topP, minP, value);
  }

  /** repetition_penalty, temperature, top_p, min_p: as the native side takes them. */
  float[] numbers() {
    return new float[] {repetitionPenalty, temperature, topP, minP};
  }

  int topK() {
    return topK;
  }

  long seed() {
    return seed;
  }
}
