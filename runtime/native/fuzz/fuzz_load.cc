// Damaged bundles through a full load: `fuzz_load ORT SEED COUNT BUNDLE... [--first N]`. Each execution changes a file of a
// bundle (text, protobuf fields, bytes, a link, nothing there at all), and a child process loads it, feeds and generates.
// What must come out is a session or an error with a text. Crashes are told apart by the innermost frame that is not the C
// or C++ library's: in ONNX Runtime they are listed, in this library they are findings and so are hangs. Execution i depends
// on SEED and i alone.
#include <execinfo.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "engine/files.h"
#include "fuzz/mutate.h"
#include "include/edgeslim.h"

#if defined(__SANITIZE_ADDRESS__)
extern "C" const char* __asan_default_options() {
  return "exitcode=99:handle_abort=1:detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=4096:symbolize=1";
}
extern "C" const char* __ubsan_default_options() { return "print_stacktrace=1"; }
#endif

namespace {

using namespace edgeslim;
using fuzz::Random;

constexpr unsigned kSeconds = 30;
constexpr rlim_t kMemory = rlim_t{8} << 30;
constexpr int kLoaded = 0, kRefused = 1, kSilent = 3, kSanitizer = 99;

[[noreturn]] void stop(const char* what) {
  std::perror(what);
  std::exit(2);
}

void put_file(const std::string& path, const std::string& data) {
  const int file = open(path.c_str(), O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
  if (file < 0) stop(path.c_str());
  for (std::size_t done = 0; done < data.size();) {
    const ssize_t wrote = write(file, data.data() + done, data.size() - done);
    if (wrote < 0) stop(path.c_str());
    done += std::size_t(wrote);
  }
  close(file);
}

std::string get_file(const std::string& path) {
  std::string text;
  if (read_file(path, std::size_t{1} << 31, &text).failed()) stop(path.c_str());
  return text;
}

struct Bundle {
  std::string name;
  std::map<std::string, std::string> files;  // of its top folder, without kernel libraries and tokenizers
};

Bundle read(const std::string& folder) {
  Bundle bundle{folder, {}};
  for (const std::string& name : names_in(folder))
    if (name.rfind("model", 0) == 0 || name == "edgeslim.json" || name == "genai_config.json" || name == "config.json" ||
        name == "generation_config.json")
      bundle.files[name] = get_file(folder + "/" + name);
  return bundle;
}

// ---- in the child

// Runs on the stack of a crash: the frames go to the file that standard error is.
void print_frames(int signal) {
  void* frames[64];
  const int count = backtrace(frames, 64);
  dprintf(2, "signal %d\n", signal);
  backtrace_symbols_fd(frames, count, 2);
  _exit(kSanitizer);
}

int refused(const edgeslim_error& error) {
  dprintf(2, "error %d: %s\n", int(error.code), error.message);
  return error.message[0] && error.code != EDGESLIM_INTERNAL ? kRefused : kSilent;
}

int load_and_write(const char* runtime, const std::string& folder, uint32_t flags) {
  edgeslim_model_options options = {};
  options.size = sizeof options;
  options.threads = 1;
  options.onnxruntime = runtime;
  options.flags = flags;
  edgeslim_model* model = nullptr;
  edgeslim_session* session = nullptr;
  edgeslim_error error;
  if (edgeslim_model_load(folder.c_str(), &options, &model, &error)) return refused(error);
  const edgeslim_session_options wanted = {sizeof wanted, 0, 24, 4};
  if (edgeslim_session_open(model, &wanted, &session, &error)) return refused(error);
  const int32_t prompt[] = {1, 0, 3, 2, 1, 5};
  edgeslim_generation generation = {};
  generation.size = sizeof generation;
  generation.max_new_tokens = 4;
  const int32_t code = edgeslim_session_generate(session, prompt, 6, &generation, &error);
  size_t needed = 0;
  if (!code && edgeslim_session_save(session, nullptr, 0, &needed, &error)) return refused(error);
  edgeslim_session_free(session);
  edgeslim_model_free(model);
  return code ? refused(error) : kLoaded;
}

[[noreturn]] void child(const char* runtime, const std::string& folder, const std::string& log, uint32_t flags) {
  if (!freopen(log.c_str(), "w", stderr) || !freopen("/dev/null", "w", stdout)) _exit(2);
  alarm(kSeconds);
#if !defined(__SANITIZE_ADDRESS__)
  const rlimit memory = {kMemory, kMemory};
  setrlimit(RLIMIT_AS, &memory);
  static char stack[1 << 16];  // a recursion that does not end leaves no other
  const stack_t other = {stack, 0, sizeof stack};
  sigaltstack(&other, nullptr);
  struct sigaction action = {};
  action.sa_handler = print_frames;
  action.sa_flags = SA_ONSTACK;
  for (const int signal : {SIGSEGV, SIGBUS, SIGABRT, SIGILL, SIGFPE}) sigaction(signal, &action, nullptr);
#endif
  _exit(load_and_write(runtime, folder, flags));
}

// ---- in the parent

// The innermost frame of a report that is neither a sanitizer's nor the C or C++ library's, as "library+offset" or a
// function's name; empty where there is none.
std::string guilty_frame(const std::string& report) {
  const std::size_t line_before = ("\n" + report).find("\nsignal ");  // behind what was said before the crash
  bool handler = line_before != std::string::npos;                      // whose own frame comes first
  std::size_t at = handler ? line_before : 0;
  while (at < report.size()) {
    const std::size_t end = std::min(report.find('\n', at), report.size());
    const std::string line = report.substr(at, end - at);
    at = end + 1;
    const bool frame = line.find(" #") != std::string::npos || (line.find("[0x") != std::string::npos && line.find('(') != std::string::npos);
    if (!frame) continue;
    if (handler) {
      handler = false;
      continue;
    }
    bool skip = false;
    for (const char* known : {"libasan", "libubsan", "libc.so", "libstdc++", "libgcc", "libm.so", "libpthread", "linux-vdso", "ld-linux",
                              "__interceptor", "operator new", "operator delete", "sanitizer_common", "/asan/", "../../../../src/libsanitizer"})
      skip = skip || line.find(known) != std::string::npos;
    if (skip) continue;
    const std::size_t slash = line.rfind('/'), close = line.find_first_of(")[ ", slash == std::string::npos ? 0 : slash);
    return line.find("onnxruntime") != std::string::npos ? line.substr(slash + 1, close - slash - 1) : line;
  }
  return {};
}

std::string first_fault(const std::string& report) {
  for (const char* known : {"requested allocation size", "out of memory", "allocation-size-too-big", "stack-overflow", "heap-buffer-overflow",
                            "heap-use-after-free", "runtime error", "signal 6", "signal 8", "signal 11", "signal 7", "SEGV", "ABRT", "FPE", "BUS"})
    if (report.find(known) != std::string::npos) return known;
  return "unknown";
}

struct Group {
  int64_t count = 0, first = 0;
  std::string how;
};

class Campaign {
 public:
  Campaign(const char* runtime, uint64_t seed, std::vector<Bundle> bundles)
      : runtime_(runtime), seed_(seed), bundles_(std::move(bundles)) {
    char name[] = "/dev/shm/edgeslim-fuzz-XXXXXX", other[] = "/tmp/edgeslim-fuzz-XXXXXX";
    const char* made = mkdtemp(name) ? name : mkdtemp(other);
    if (!made) stop("mkdtemp");
    root_ = made;
    mkdir((root_ + "/case").c_str(), 0700);
    for (std::size_t b = 0; b < bundles_.size(); ++b) {
      mkdir((root_ + "/" + std::to_string(b)).c_str(), 0700);
      for (const auto& [file, data] : bundles_[b].files) put_file(root_ + "/" + std::to_string(b) + "/" + file, data);
    }
    // ONNX Runtime is loaded once, here, and no thread runs when children are made.
    for (std::size_t b = 0; b < bundles_.size(); ++b)
      if (load_and_write(runtime_, root_ + "/" + std::to_string(b), EDGESLIM_WITH_ONNXRUNTIME) != kLoaded) {
        std::fprintf(stderr, "%s does not load undamaged\n", bundles_[b].name.c_str());
        std::exit(2);
      }
  }
  Campaign(const Campaign&) = delete;
  Campaign& operator=(const Campaign&) = delete;
  ~Campaign() {
    clear();
    for (std::size_t b = 0; b < bundles_.size(); ++b) {
      for (const auto& file : bundles_[b].files) unlink((root_ + "/" + std::to_string(b) + "/" + file.first).c_str());
      rmdir((root_ + "/" + std::to_string(b)).c_str());
    }
    unlink((root_ + "/log").c_str());
    rmdir((root_ + "/case").c_str());
    rmdir(root_.c_str());
  }

  void execute(int64_t i) {
    Random random(seed_ * 0x100000001b3u + uint64_t(i) + 1);
    const std::size_t b = std::size_t(random.below(int64_t(bundles_.size())));
    // Half of them go to ONNX Runtime alone, the others to what is built in and then, where that refuses, there too.
    const uint32_t flags = random.below(2) ? uint32_t(EDGESLIM_WITH_ONNXRUNTIME) : 0;
    const std::string how = make_case(b, random);
    std::fflush(nullptr);
    const pid_t pid = fork();
    if (pid < 0) stop("fork");
    if (pid == 0) child(runtime_, root_ + "/case", root_ + "/log", flags);
    int state = 0;
    while (waitpid(pid, &state, 0) < 0) {
    }
    judge(i, bundles_[b].name + ", " + how, state);
  }

  int report(int64_t count, double seconds) const {
    std::printf("seed %llu: %lld damaged bundles in %.0f s: %lld refused, %lld loaded and wrote, %lld crashed in onnxruntime, %lld findings\n",
                (unsigned long long)seed_, (long long)count, seconds, (long long)refused_, (long long)loaded_, (long long)foreign_,
                (long long)findings_);
    for (const auto& [key, group] : groups_)
      std::printf("  onnxruntime: %lld x %s, first in %lld (%s)\n", (long long)group.count, key.c_str(), (long long)group.first, group.how.c_str());
    return findings_ != 0;
  }

 private:
  void clear() const {
    for (const std::string& name : names_in(root_ + "/case"))
      if (unlink((root_ + "/case/" + name).c_str()) != 0) rmdir((root_ + "/case/" + name).c_str());
  }

  // Fills the folder `case` and returns what was done.
  std::string make_case(std::size_t b, Random& random) {
    clear();
    const auto& files = bundles_[b].files;
    std::vector<std::string> names;
    for (const auto& file : files) names.insert(names.end(), file.first == "model.onnx" ? 5 : 1, file.first);
    const std::string victim = names[std::size_t(random.below(int64_t(names.size())))];
    const bool unchecked = random.below(2);  // without the manifest nothing is known of sizes
    for (const auto& file : files) {
      const std::string from = root_ + "/" + std::to_string(b) + "/" + file.first, to = root_ + "/case/" + file.first;
      if (file.first == victim || (unchecked && file.first == "edgeslim.json")) continue;
      if (link(from.c_str(), to.c_str()) != 0) stop("link");
    }
    return damage(files.at(victim), victim, random) + " " + victim + (unchecked ? ", no manifest" : "");
  }

  std::string damage(const std::string& data, const std::string& name, Random& random) const {
    const std::string to = root_ + "/case/" + name;
    const bool text = name.size() > 5 && name.compare(name.size() - 5, 5, ".json") == 0;
    switch (random.below(32)) {
      case 0: return "no";
      case 1: return mkdir(to.c_str(), 0700), "a folder instead of";
      case 2: return symlink(random.below(2) ? "/etc/passwd" : "../0/model.onnx", to.c_str()) == 0 ? "a link instead of" : "no";
      case 3: return put_file(to, data.substr(0, std::size_t(random.below(int64_t(data.size()) + 1)))), "a beginning of";
      case 4: return put_file(to, std::string(std::size_t(random.below(300)), char(random.bits()))), "nonsense for";
    }
    if (text) return put_file(to, changed(data, random)), "text in";
    if (name == "model.onnx" && random.below(4)) return put_file(to, fuzz::mutated_protobuf(data, random)), "fields of";
    return put_file(to, fuzz::mutated_bytes(data, random)), "bytes of";
  }

  static std::string changed(const std::string& text, Random& random) {
    std::string other = text;
    while (other == text) other = fuzz::mutated_text(text, random);
    return other;
  }

  void judge(int64_t i, const std::string& how, int state) {
    const int code = WIFEXITED(state) ? WEXITSTATUS(state) : -1;
    if (code == kLoaded) return void(++loaded_);
    if (code == kRefused) return void(++refused_);
    const std::string report = get_file(root_ + "/log"), frame = guilty_frame(report);
    if (frame.find("onnxruntime") != std::string::npos && code == kSanitizer) {
      ++foreign_;
      Group& group = groups_[first_fault(report) + " at " + frame];
      if (!group.count++) group.first = i, group.how = how;
      return;
    }
    ++findings_;
    const char* const what = code == kSilent ? "an error that says nothing, or an internal one" : code >= 0 ? "a crash" : "a signal";
    std::printf("finding: %s (%d) in execution %lld: %s; the report:\n%.3000s\n", what, code >= 0 ? code : WTERMSIG(state), (long long)i,
                how.c_str(), report.c_str());
    std::fflush(stdout);
  }

  const char* runtime_;
  uint64_t seed_;
  std::vector<Bundle> bundles_;
  std::string root_;
  int64_t refused_ = 0, loaded_ = 0, foreign_ = 0, findings_ = 0;
  std::map<std::string, Group> groups_;
};

}  // namespace

int main(int argc, char** argv) {
  int64_t first = 0;
  std::vector<Bundle> bundles;
  for (int i = 4; i < argc; ++i) {
    if (!std::strcmp(argv[i], "--first") && i + 1 < argc)
      first = std::atoll(argv[++i]);
    else
      bundles.push_back(read(argv[i]));
  }
  if (bundles.empty()) return std::fprintf(stderr, "usage: fuzz_load ORT SEED COUNT BUNDLE... [--first N]\n"), 2;
  const int64_t count = std::atoll(argv[3]);
  const auto begin = std::chrono::steady_clock::now();
  const auto passed = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count(); };
  Campaign campaign(argv[1], uint64_t(std::atoll(argv[2])), std::move(bundles));
  for (int64_t i = 0; i < count; ++i) {
    campaign.execute(first + i);
    if ((i + 1) % 100 == 0) std::fprintf(stderr, "\r%lld of %lld in %.0f s", (long long)(i + 1), (long long)count, passed());
  }
  std::fprintf(stderr, "\n");
  return campaign.report(count, passed());
}
