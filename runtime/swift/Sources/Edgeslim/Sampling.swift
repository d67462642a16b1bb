import CEdgeslim

/// How the next token is drawn, by transformers' rules of the same names. Zeros are greedy decoding.
public struct Sampling {
    /// Logits of tokens seen are divided by it where positive, else multiplied; 0 or 1: off.
    public var repetitionPenalty: Float = 0
    /// Logits are divided by it; 0: the largest is taken.
    public var temperature: Float = 0
    /// Only the k largest, and those equal to the k-th; 0: off.
    public var topK: Int32 = 0
    /// Only the fewest, largest first, that together hold this probability; 0 or 1: off.
    public var topP: Float = 0
    /// Only those at least this fraction as likely as the likeliest; 0: off.
    public var minP: Float = 0
    /// The draw depends on it, the position and the logits alone.
    public var seed: UInt64 = 0

    public static let greedy = Sampling()

    public init() {}

    var c: edgeslim_sampling {
        edgeslim_sampling(
            size: UInt32(MemoryLayout<edgeslim_sampling>.size), repetition_penalty: repetitionPenalty,
            temperature: temperature, top_k: topK, top_p: topP, min_p: minP, seed: seed)
    }
}
