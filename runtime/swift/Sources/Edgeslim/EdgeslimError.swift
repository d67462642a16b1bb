import CEdgeslim

/// A fault that the runtime reports: a code and one line of text.
public struct EdgeslimError: Error, CustomStringConvertible {
    /// What kind of fault it is; the codes of edgeslim.h.
    public enum Code: Int32 {
        case invalidArgument = 1, badBundle, runtimeUnavailable, runtimeFailed, contextFull
        case cancelled, wrongOrder, badState, outOfMemory, `internal`
    }

    public let code: Code
    public let description: String
}

/// Calls a function of edgeslim.h whose last parameter is an error.
func check(_ call: (UnsafeMutablePointer<edgeslim_error>) -> Int32) throws {
    var error = edgeslim_error()
    let code = call(&error)
    guard code == 0 else {
        let message = withUnsafeBytes(of: error.message) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
        throw EdgeslimError(code: EdgeslimError.Code(rawValue: code) ?? .internal, description: message)
    }
}
