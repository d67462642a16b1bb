import CEdgeslim
import Foundation

/// What ended a text.
public enum Ending: Int32 {
    case length, token, room, listener
}

/// One sequence with its state. Calls from several threads wait for one another; `cancel` and `resume` do not wait.
public final class Session: @unchecked Sendable {
    public let model: Model
    private let handle: OpaquePointer
    private let use = NSLock()

    /// Opens a session. `room`: most tokens of prompt and answer together; 0: what the bundle says. `chunk`: tokens of a
    /// prompt that run at once; 0: the runtime's choice.
    public init(model: Model, room: Int64 = 0, chunk: Int64 = 0) throws {
        var options = edgeslim_session_options()
        options.size = UInt32(MemoryLayout<edgeslim_session_options>.size)
        options.room = room
        options.chunk = chunk
        var opened: OpaquePointer?
        try check { edgeslim_session_open(model.handle, &options, &opened, $0) }
        self.model = model
        handle = opened!
    }

    deinit { edgeslim_session_free(handle) }

    /// Tokens in the state.
    public var position: Int64 { use.withLock { edgeslim_session_position(handle) } }

    /// Empties the state.
    public func reset() { use.withLock { edgeslim_session_reset(handle) } }

    /// Appends tokens to the state.
    public func feed(_ tokens: [Int32]) throws {
        try use.withLock { try check { edgeslim_session_feed(handle, tokens, Int64(tokens.count), $0) } }
    }

    /// Feeds `prompt`, then draws and feeds tokens; `listener` hears of each and returns whether to go on. It may cancel,
    /// and must not use the session otherwise.
    public func generate(
        prompt: [Int32], maxNewTokens: Int64, sampling: Sampling = .greedy, listener: (Int32) -> Bool
    ) throws -> Ending {
        try use.withLock {
            try withoutActuallyEscaping(listener) { listener in
                var told = Listener(tell: listener)
                return try withUnsafeMutablePointer(to: &told) { user in
                    var generation = edgeslim_generation()
                    generation.size = UInt32(MemoryLayout<edgeslim_generation>.size)
                    generation.max_new_tokens = maxNewTokens
                    generation.sampling = sampling.c
                    generation.user = UnsafeMutableRawPointer(user)
                    generation.on_token = { token, user in
                        user!.assumingMemoryBound(to: Listener.self).pointee.tell(token) ? 0 : 1
                    }
                    try check {
                        edgeslim_session_generate(handle, prompt, Int64(prompt.count), &generation, $0)
                    }
                    return Ending(rawValue: generation.ended_by) ?? .length
                }
            }
        }
    }

    /// Tokens one by one, drawn on a thread of their own; ends with the text, throws its fault. Dropping it cancels.
    public func tokens(
        after prompt: [Int32], maxNewTokens: Int64, sampling: Sampling = .greedy
    ) -> AsyncThrowingStream<Int32, Error> {
        AsyncThrowingStream { stream in
            stream.onTermination = { [weak self] reason in if case .cancelled = reason { self?.cancel() } }
            DispatchQueue.global(qos: .userInitiated).async {
                do {
                    _ = try self.generate(prompt: prompt, maxNewTokens: maxNewTokens, sampling: sampling) {
                        stream.yield($0)
                        return true
                    }
                    stream.finish()
                } catch {
                    stream.finish(throwing: error)
                }
            }
        }
    }

    /// Lets the call under way, and every later one until `resume`, end with `cancelled`; on any thread.
    public func cancel() { edgeslim_session_cancel(handle) }

    /// Takes `cancel` back.
    public func resume() { edgeslim_session_resume(handle) }

    /// The state; a session of the same bundle goes on from it exactly.
    public func save() throws -> Data {
        try use.withLock {
            var needed = 0
            try check { edgeslim_session_save(handle, nil, 0, &needed, $0) }
            var state = Data(count: needed)
            try state.withUnsafeMutableBytes { bytes in
                try check { edgeslim_session_save(handle, bytes.baseAddress, bytes.count, &needed, $0) }
            }
            return state
        }
    }

    /// Takes back what `save` gave. A state that is refused leaves the session as it was.
    public func restore(_ state: Data) throws {
        try use.withLock {
            try state.withUnsafeBytes { bytes in
                try check { edgeslim_session_restore(handle, bytes.baseAddress, bytes.count, $0) }
            }
        }
    }
}

private struct Listener {
    let tell: (Int32) -> Bool
}
