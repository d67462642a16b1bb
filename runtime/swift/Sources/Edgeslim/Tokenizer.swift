import CEdgeslim
import Foundation

/// A bundle's tokenizer, by onnxruntime-extensions: an app that links it hands text; any app may hand tokens. Calls of it
/// and its decoders from several threads wait for one another.
public final class Tokenizer: @unchecked Sendable {
    fileprivate let handle: OpaquePointer
    fileprivate let use = NSLock()

    /// Opens the tokenizer of the bundle in `folder`. `extensions`: path of libortextensions; nil: the one in this process.
    public init(folder: String, extensions: String? = nil) throws {
        var opened: OpaquePointer?
        func open(_ library: UnsafePointer<CChar>?) throws {
            try check { edgeslim_tokenizer_open(folder, library, &opened, $0) }
        }
        if let extensions {
            try extensions.withCString(open)
        } else {
            try open(nil)
        }
        handle = opened!
    }

    deinit { edgeslim_tokenizer_free(handle) }

    /// The tokens of `text`; `special`: with those that the bundle puts around a text.
    public func encode(_ text: String, special: Bool = true) throws -> [Int32] {
        try use.withLock {
            var needed: Int64 = 0
            try check { edgeslim_tokenizer_encode(handle, text, special ? 1 : 0, nil, 0, &needed, $0) }
            var tokens = [Int32](repeating: 0, count: Int(needed))
            try check { edgeslim_tokenizer_encode(handle, text, special ? 1 : 0, &tokens, needed, &needed, $0) }
            return tokens
        }
    }

    /// The text of `tokens`, without special tokens and characters that are not complete.
    public func decode(_ tokens: [Int32]) throws -> String {
        let decoder = try TextDecoder(self)
        return try tokens.map(decoder.push).joined()
    }
}

/// Tokens in, text out, one token at a time.
public final class TextDecoder {
    private let tokenizer: Tokenizer
    private let handle: OpaquePointer

    public init(_ tokenizer: Tokenizer) throws {
        var opened: OpaquePointer?
        try tokenizer.use.withLock { try check { edgeslim_decoder_open(tokenizer.handle, &opened, $0) } }
        self.tokenizer = tokenizer
        handle = opened!
    }

    deinit { edgeslim_decoder_free(handle) }

    /// The text that `token` completes, often none: always whole characters.
    public func push(_ token: Int32) throws -> String {
        try tokenizer.use.withLock {
            var text: UnsafePointer<CChar>?
            try check { edgeslim_decoder_push(handle, token, &text, $0) }
            return text.map { String(cString: $0) } ?? ""
        }
    }
}
