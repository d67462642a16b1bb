package org.edgeslim;

/** How a bundle is loaded. {@link #DEFAULT} is what it says itself; every {@code with…} method returns a copy. */
public final class ModelOptions {
  /** The bundle's own choices; ONNX Runtime is looked for as {@code edgeslim.h} says. */
  public static final ModelOptions DEFAULT = new ModelOptions(0, 0, null, null);

  private static final int FUNCTION_BODIES = 1;
  private static final int FOREIGN_LIBRARIES = 2;
  private static final int WITH_ONNXRUNTIME = 4;
  private static final int WITHOUT_ONNXRUNTIME = 8;

  final int flags;
  final int threads;
  final String onnxruntime;
  final String graph;

  private ModelOptions(int flags, int threads, String onnxruntime, String graph) {
    this.flags = flags;
    this.threads = threads;
    this.onnxruntime = onnxruntime;
    this.graph = graph;
  }

  /** Threads that a run may use; 0: what the bundle says, else ONNX Runtime's choice. */
  public ModelOptions withThreads(int value) {
    return new ModelOptions(flags, value, onnxruntime, graph);
  }

  /**
   * Path of ONNX Runtime's library or of its folder. Null: the environment's EDGESLIM_ONNXRUNTIME, else one in this
   * process, else the system's, which on Android is that of the app.
   */
  public ModelOptions withOnnxRuntime(String path) {
    return new ModelOptions(flags, threads, path, graph);
  }

  /** File name of the graph inside the bundle; null: what the bundle says. */
  public ModelOptions withGraph(String name) {
    return new ModelOptions(flags, threads, onnxruntime, name);
  }

  /** Runs edgeslim's operators by their bodies in standard operators. */
  public ModelOptions withFunctionBodies() {
    return new ModelOptions(flags | FUNCTION_BODIES, threads, onnxruntime, graph);
  }

  /** Loads operator libraries that the bundle names: runs their code. */
  public ModelOptions withForeignLibraries() {
    return new ModelOptions(flags | FOREIGN_LIBRARIES, threads, onnxruntime, graph);
  }

  /** Runs on ONNX Runtime also what could run without it. */
  public ModelOptions withOnnxRuntimeAlways() {
    return new ModelOptions((flags | WITH_ONNXRUNTIME) & ~WITHOUT_ONNXRUNTIME, threads, onnxruntime, graph);
  }

  /** Never loads ONNX Runtime; a bundle that needs it is then refused. */
  public ModelOptions withoutOnnxRuntime() {
    return new ModelOptions((flags | WITHOUT_ONNXRUNTIME) & ~WITH_ONNXRUNTIME, threads, onnxruntime, graph);
  }
}
