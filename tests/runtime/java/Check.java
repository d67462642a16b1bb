import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.stream.Collectors;
import org.edgeslim.EdgeslimException;
import org.edgeslim.Ending;
import org.edgeslim.Model;
import org.edgeslim.ModelOptions;
import org.edgeslim.Sampling;
import org.edgeslim.Session;
import org.edgeslim.Tokenizer;

/** {@code Check CASE BUNDLE LIBRARY}, ONNX Runtime's or for text its extensions': tries the Java binding and prints what test_java.py compares, a line each. */
final class Check {
  private static final int[] PROMPT = {5, 60, 7, 200, 11, 9};
  private static final int[] NONE = {};

  private final String bundle;
  private final ModelOptions options;

  private Check(String bundle, String onnxruntime) {
    this.bundle = bundle;
    options = ModelOptions.DEFAULT.withThreads(1).withOnnxRuntime(onnxruntime);
  }

  public static void main(String[] arguments) throws Exception {
    Check check = new Check(arguments[1], arguments[2]);
    switch (arguments[0]) {
      case "load" -> check.load();
      case "stream" -> check.stream();
      case "cancel" -> check.cancel();
      case "errors" -> check.errors();
      case "closing" -> check.closing();
      case "saved" -> check.saved();
      case "memory" -> check.memory();
      case "text" -> check.text(arguments[2]);
      case "text memory" -> check.textMemory(arguments[2]);
      case "profile" -> say("profile", Model.profile(check.bundle, check.options, 4, 3, 2));
      default -> throw new IllegalArgumentException(arguments[0]);
    }
  }

  private void load() {
    try (Model model = Model.load(bundle, options); Session session = model.open(64, 0)) {
      say("vocab", model.vocabSize());
      say("context", model.contextLength());
      say("ends", Arrays.toString(model.endTokens()));
      say("packed", model.isPacked());
      say("isa", model.isa());
      say("onnxruntime", model.onnxRuntimeVersion());
      say("runtime", Model.runtimeVersion());
      say("threads", model.threads());
      session.feed(PROMPT);
      say("position", session.position());
      say("room", session.room());
      float[] logits = session.logits();
      int best = 0;
      for (int i = 0; i < logits.length; ++i) {
        best = logits[i] > logits[best] ? i : best;
      }
      say("likeliest", best);
      say("drawn", session.sample(Sampling.GREEDY));
    }
  }

  private void stream() {
    try (Model model = Model.load(bundle, options); Session session = model.open()) {
      List<Integer> tokens = new ArrayList<>();
      List<Long> positions = new ArrayList<>();
      Ending end = session.generate(PROMPT, 24, Sampling.GREEDY, NONE, token -> {
        positions.add(session.position());
        return tokens.add(token);
      });
      say("greedy", join(tokens));
      say("positions", positions.stream().map(String::valueOf).collect(Collectors.joining(" ")));
      say("end", end);
      Sampling sampling = Sampling.GREEDY.withTemperature(1.3f).withTopK(40).withTopP(0.9f).withMinP(0.02f)
          .withRepetitionPenalty(1.2f).withSeed(5);
      session.reset();
      tokens.clear();
      session.generate(PROMPT, 24, sampling, NONE, tokens::add);
      say("drawn", join(tokens));
      session.reset();
      tokens.clear();
      say("stopped", session.generate(PROMPT, 24, Sampling.GREEDY, NONE, token -> tokens.add(token) && tokens.size() < 3));
      say("heard", tokens.size());
      session.reset();
      say("at token", session.generate(PROMPT, 24, Sampling.GREEDY, new int[] {tokens.get(2)}, null));
      session.reset();
      try {
        session.generate(PROMPT, 24, Sampling.GREEDY, NONE, token -> {
          throw new ArithmeticException("of the listener " + token);
        });
      } catch (ArithmeticException fault) {
        say("thrown", fault.getMessage());
      }
    }
    try (Model model = Model.load(bundle, options); Session session = model.open(20, 0)) {
      List<Integer> tokens = new ArrayList<>();
      say("full", session.generate(PROMPT, 40, Sampling.GREEDY, NONE, tokens::add));
      say("fitted", tokens.size());
    }
  }

  private void cancel() throws InterruptedException {
    try (Model model = Model.load(bundle, options); Session session = model.open()) {
      List<Integer> tokens = new ArrayList<>();
      try {
        session.generate(PROMPT, 40, Sampling.GREEDY, NONE, token -> {
          tokens.add(token);
          if (tokens.size() == 5) {
            inAnotherThread(session::cancel);
          }
          return true;
        });
      } catch (EdgeslimException fault) {
        say("code", fault.code());
      }
      say("later", code(() -> session.feed(1)));
      session.resume();
      say("position", session.position());
      List<Integer> rest = new ArrayList<>();
      session.generate(new int[] {tokens.get(4)}, 35, Sampling.GREEDY, NONE, rest::add);
      tokens.addAll(rest);
      say("text", join(tokens));
    }
  }

  private void errors() throws Exception {
    say("no folder", code(() -> Model.load("/nowhere", options).close()));
    say("no runtime", code(() -> Model.load(bundle, options.withOnnxRuntime("/nowhere/libonnxruntime.so")).close()));
    say("outside", code(() -> Model.load(bundle, options.withGraph("../model.onnx")).close()));
    say("threads", code(() -> Model.load(bundle, options.withThreads(-1)).close()));
    try {
      Model.load("/не/туда/\uD83D\uDE00", options).close();
    } catch (EdgeslimException fault) {
      say("message", fault.getMessage());
    }
    try (Model model = Model.load(bundle, options); Session session = model.open(16, 0)) {
      say("nothing to sample", code(() -> session.sample(Sampling.GREEDY)));
      say("no logits", code(session::logits));
      say("token", code(() -> session.feed(1 << 30)));
      say("no tokens", code(() -> session.feed(NONE)));
      say("null tokens", code(() -> session.feed((int[]) null)));
      say("too many", code(() -> session.feed(new int[17])));
      say("room", code(() -> model.open(-1, 0).close()));
      say("temperature", code(() -> session.generate(PROMPT, 1, Sampling.GREEDY.withTemperature(-1), null)));
      say("state", code(() -> session.restore(new byte[100])));
      say("null state", code(() -> session.restore(null)));
      say("from the listener", code(() -> session.generate(PROMPT, 3, Sampling.GREEDY, token -> {
        session.feed(token);
        return true;
      })));
      say("closed by the listener", code(() -> session.generate(NONE, 3, Sampling.GREEDY, token -> {
        session.close();
        return true;
      })));
      session.reset();
      session.feed(PROMPT);
      say("whole after all", session.position());
    }
  }

  private void closing() throws InterruptedException {
    Model model = Model.load(bundle, options);
    Session session = model.open();
    Session other = model.open();
    model.close();
    model.close();
    say("open of a closed model", code(() -> model.open().close()));
    session.feed(PROMPT);
    say("model closed first", session.position());
    session.close();
    session.close();
    session.cancel();
    session.resume();
    say("closed", code(() -> session.feed(1)));
    List<Integer> tokens = new ArrayList<>();
    Thread closer = new Thread(other::close);
    other.generate(PROMPT, 8, Sampling.GREEDY, NONE, token -> {
      if (tokens.isEmpty()) {
        closer.start();
      }
      return tokens.add(token);
    });
    closer.join();
    say("closing waits", tokens.size());
    say("and closes", code(other::position));
  }

  private void saved() {
    try (Model model = Model.load(bundle, options); Session one = model.open(); Session two = model.open(100, 0)) {
      one.feed(PROMPT);
      byte[] state = one.save();
      List<Integer> first = new ArrayList<>();
      List<Integer> second = new ArrayList<>();
      one.generate(new int[] {3}, 20, Sampling.GREEDY, NONE, first::add);
      two.restore(state);
      two.generate(new int[] {3}, 20, Sampling.GREEDY, NONE, second::add);
      say("first", join(first));
      say("second", join(second));
    }
  }

  private void text(String extensions) {
    String sample = "na\u00efve \u2014 \u6f22\u5b57 \uD83D\uDE42";
    say("none", code(() -> Tokenizer.open(bundle, "/nowhere/libortextensions.so").close()));
    say("no bundle", code(() -> Tokenizer.open("/nowhere", extensions).close()));
    Tokenizer tokenizer = Tokenizer.open(bundle, extensions);
    int[] tokens = tokenizer.encode(sample);
    say("tokens", join(Arrays.stream(tokens).boxed().collect(Collectors.toList())));
    say("bare", tokenizer.encode(sample, false).length);
    say("decoded", tokenizer.decode(tokens).equals(sample));
    say("negative", code(() -> tokenizer.decode(-1)));
    say("zero", code(() -> tokenizer.encode("a\0b")));
    say("null text", code(() -> tokenizer.encode(null)));
    Tokenizer.Decoder decoder = tokenizer.decoder();
    tokenizer.close();
    tokenizer.close();
    StringBuilder pieces = new StringBuilder();
    for (int token : tokens) {
      pieces.append(decoder.push(token));
    }
    say("streamed", pieces.toString().equals(sample));
    decoder.close();
    decoder.close();
    say("closed decoder", code(() -> decoder.push(1)));
    say("closed", code(() -> tokenizer.encode(sample)));
  }

  /** Forty thousand decoders, then a hundred tokenizers: by how many kB the process grows. */
  private void textMemory(String extensions) throws Exception {
    long before = 0;
    try (Tokenizer tokenizer = Tokenizer.open(bundle, extensions)) {
      int[] tokens = tokenizer.encode("\uD83D\uDE42 on");
      for (int i = 0; i < 41000; ++i) {
        before = i == 1000 ? residentKilobytes() : before;
        try (Tokenizer.Decoder decoder = tokenizer.decoder()) {
          for (int token : tokens) {
            decoder.push(token);
          }
        }
      }
    }
    say("decoders grew by kB", residentKilobytes() - before);
    for (int i = 0; i < 150; ++i) {
      before = i == 50 ? residentKilobytes() : before;
      Tokenizer.open(bundle, extensions).close();
    }
    say("tokenizers grew by kB", residentKilobytes() - before);
  }

  /** A thousand sessions of one model, then a hundred models: by how many kB the process grows. */
  private void memory() throws Exception {
    try (Model model = Model.load(bundle, options)) {
      for (int i = 0; i < 200; ++i) {
        use(model);
      }
      long before = residentKilobytes();
      for (int i = 0; i < 1000; ++i) {
        use(model);
      }
      say("sessions grew by kB", residentKilobytes() - before);
    }
    long before = 0;
    for (int i = 0; i < 150; ++i) {
      if (i == 50) {
        before = residentKilobytes();
      }
      try (Model model = Model.load(bundle, options)) {
        use(model);
      }
    }
    say("models grew by kB", residentKilobytes() - before);
  }

  private static void use(Model model) {
    try (Session session = model.open()) {
      session.generate(PROMPT, 2, Sampling.GREEDY, NONE, token -> true);
      session.restore(session.save());
      try {
        session.feed(-1);
      } catch (EdgeslimException expected) {
        session.cancel();
      }
    }
  }

  private static long residentKilobytes() throws Exception {
    System.gc();
    String statm = Files.readString(Path.of("/proc/self/statm"));
    return Long.parseLong(statm.split(" ")[1]) * 4;
  }

  private interface Call {
    void run() throws Exception;
  }

  private static String code(Call call) {
    try {
      call.run();
    } catch (EdgeslimException fault) {
      return fault.code() + (fault.getMessage().isBlank() ? ", which says nothing" : "");
    } catch (Exception fault) {
      return fault.getClass().getSimpleName();
    }
    return "nothing";
  }

  private static void inAnotherThread(Runnable action) {
    Thread thread = new Thread(action);
    thread.start();
    try {
      thread.join();
    } catch (InterruptedException fault) {
      throw new IllegalStateException(fault);
    }
  }

  private static String join(List<Integer> tokens) {
    return tokens.stream().map(String::valueOf).collect(Collectors.joining(" "));
  }

  private static void say(String name, Object value) {
    System.out.println(name + ": " + value);
  }
}
