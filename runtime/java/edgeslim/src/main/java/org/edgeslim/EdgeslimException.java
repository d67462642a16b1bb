package org.edgeslim;

/** A fault that the runtime reports: a code and one line of text. */
public final class EdgeslimException extends RuntimeException {
  private static final long serialVersionUID = 1;

  /** What kind of fault it is; the codes of {@code edgeslim.h}, in their order. */
  public enum Code {
    /** A value that cannot be meant. */
    INVALID_ARGUMENT,
    /** A bundle that is incomplete, damaged, hostile or of another version. */
    BAD_BUNDLE,
    /** ONNX Runtime is not found, does not load or is too old. */
    RUNTIME_UNAVAILABLE,
    /** ONNX Runtime says that a run failed. */
    RUNTIME_FAILED,
    /** The tokens do not fit what the session has room for. */
    CONTEXT_FULL,
    /** {@link Session#cancel}. */
    CANCELLED,
    /** A call that needs another one before it. */
    WRONG_ORDER,
    /** A saved state that is damaged or of another model or session. */
    BAD_STATE,
    /** Memory that the system does not give. */
    OUT_OF_MEMORY,
    /** A fault of the library's own. */
    INTERNAL;

    private static Code of(int number) {
      Code[] all = values();
      return number >= 1 && number <= all.length ? all[number - 1] : INTERNAL;
    }
  }

  private final Code code;

  /** Called by the native side. */
  EdgeslimException(int code, byte[] message) {
    super(new String(message, java.nio.charset.StandardCharsets.UTF_8));
    this.code = Code.of(code);
  }

  /** What kind of fault it is. */
  public Code code() {
    return code;
  }
}
