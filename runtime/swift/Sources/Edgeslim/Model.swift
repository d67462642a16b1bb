import CEdgeslim

/// How a bundle is loaded; the defaults are what it says itself.
public struct ModelOptions {
    /// Threads that a run may use; 0: what the bundle says, else ONNX Runtime's choice.
    public var threads: Int32 = 0
    /// Path of ONNX Runtime's library; nil: the one in this process.
    public var onnxruntime: String?
    /// Runs edgeslim's operators by their bodies in standard operators.
    public var functionBodies = false

    public init() {}
}

/// A loaded bundle. Any number of sessions on any threads may share it; it lives as long as they do.
public final class Model {
    let handle: OpaquePointer
    /// Tokens that there are.
    public let vocabSize: Int
    /// What products run on: a kernel variant, "function bodies", or "" for ONNX Runtime's own.
    public let isa: String

    /// Loads the bundle in `folder`; its weights stay in the mapped file.
    public init(folder: String, options: ModelOptions = ModelOptions()) throws {
        var asked = edgeslim_model_options()
        asked.size = UInt32(MemoryLayout<edgeslim_model_options>.size)
        asked.threads = options.threads
        asked.flags = options.functionBodies ? 1 : 0  // EDGESLIM_FUNCTION_BODIES
        var loaded: OpaquePointer?
        func load(_ runtime: UnsafePointer<CChar>?) throws {
            asked.onnxruntime = runtime
            try check { edgeslim_model_load(folder, &asked, &loaded, $0) }
        }
        if let runtime = options.onnxruntime {
            try runtime.withCString(load)
        } else {
            try load(nil)
        }
        handle = loaded!
        var info = edgeslim_model_info()
        info.size = UInt32(MemoryLayout<edgeslim_model_info>.size)
        do {
            try check { edgeslim_model_get_info(loaded, &info, $0) }
        } catch {
            edgeslim_model_free(loaded)
            throw error
        }
        vocabSize = Int(info.vocab_size)
        isa = withUnsafeBytes(of: info.isa) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
    }

    deinit { edgeslim_model_free(handle) }

    /// The tokens that end a text.
    public var endTokens: [Int32] {
        var tokens = [Int32](repeating: 0, count: Int(edgeslim_model_end_tokens(handle, nil, 0)))
        _ = edgeslim_model_end_tokens(handle, &tokens, Int32(tokens.count))
        return tokens
    }
}
