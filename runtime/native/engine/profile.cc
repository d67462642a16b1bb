#include "engine/profile.h"

#include <algorithm>
#include <cmath>
#include <memory>

#include "engine/files.h"
#include "engine/machine.h"
#include "packed_linear/kernels.h"

namespace edgeslim {
namespace {

// The times of one generation, in seconds.
struct Run {
  double first = 0, prefill = 0;
  std::vector<double> steps;
};

// As numpy.percentile has it: linear between neighbours.
double percentile(std::vector<double> values, double percent) {
  std::sort(values.begin(), values.end());
  const double at = percent / 100 * double(values.size() - 1);
  const std::size_t low = std::size_t(at), high = std::min(low + 1, values.size() - 1);
  return values[low] + (values[high] - values[low]) * (at - double(low));
}

int32_t likeliest(const Session& session) { return largest(session.logits(), std::size_t(session.model().vocab_size)); }

// The random prompt depends on its length and the vocabulary alone.
std::vector<int32_t> random_tokens(int64_t vocabulary, int32_t count) {
  std::vector<int32_t> tokens;
  for (int32_t i = 0; i < count; ++i) tokens.push_back(int32_t(uniform(0, i) * double(vocabulary)));
  return tokens;
}

void tell(const edgeslim_profile_options& o, int32_t phase, int32_t run, double begin, double end) {
  if (o.on_phase) o.on_phase(phase, run, begin, end, o.user);
}

// `number` is the run's: warm-ups are below 0.
Status run_once(Session* session, const std::vector<int32_t>& prompt, const edgeslim_profile_options& o, int32_t number,
                Run* run) {
  const double begin = seconds();
  session->reset();
  const double ready = seconds();
  if (Status s = session->feed(prompt.data(), int64_t(prompt.size())); s.failed()) return s;
  int32_t token = likeliest(*session);
  const double first = seconds();
  run->first = first - begin;
  run->prefill = first - ready;
  tell(o, EDGESLIM_PHASE_PREFILL, number, ready, first);
  const double decoding = seconds();
  for (int32_t i = 1; i < o.new_tokens; ++i) {
    const double before = seconds();
    if (Status s = session->feed(&token, 1); s.failed()) return s;
    token = likeliest(*session);
    run->steps.push_back(seconds() - before);
  }
  tell(o, EDGESLIM_PHASE_DECODE, number, decoding, seconds());
  return {};
}

// A JSON object, member after member.
class Object {
 public:
  void text(const char* name, const std::string& value) { add(name, quoted(value)); }
  void integer(const char* name, int64_t value) { add(name, std::to_string(value)); }
  void text_if_any(const char* name, const std::string& value) { add(name, value.empty() ? "null" : quoted(value)); }
  void bytes_if_any(const char* name, int64_t value) { add(name, value ? std::to_string(value) : "null"); }
  void number(const char* name, double value) {
    char digits[40];
    std::snprintf(digits, sizeof digits, "%.9g", value);
    add(name, std::isfinite(value) ? digits : "null");
  }
  void add(const char* name, const std::string& json) {
    json_ += json_.empty() ? "{" : ", ";
    json_ += quoted(name) + ": " + json;
  }
  std::string done() const { return json_ + "}"; }

 private:
  std::string json_;
};

void add_speeds(const std::vector<Run>& runs, int32_t prompt_tokens, Object* out) {
  std::vector<double> first, prefill, decode, steps;
  for (const Run& run : runs) {
    double sum = 0;
    for (const double step : run.steps) {
      steps.push_back(step * 1e3);
      sum += step;
    }
    first.push_back(run.first * 1e3);
    prefill.push_back(prompt_tokens / run.prefill);
    decode.push_back(double(run.steps.size()) / sum);
  }
  out->number("ttft_ms_p50", percentile(first, 50));
  out->number("ttft_ms_p90", percentile(first, 90));
  out->number("prefill_tok_s_p50", percentile(prefill, 50));
  out->number("decode_tok_s_p50", percentile(decode, 50));
  out->number("decode_ms_p50", percentile(steps, 50));
  out->number("decode_ms_p90", percentile(steps, 90));
}

Status check_options(const edgeslim_profile_options& o) {
  const struct {
    const char* name;
    int32_t value, least;
  } counts[] = {{"prompt_tokens", o.prompt_tokens, 1}, {"new_tokens", o.new_tokens, 2}, {"repeats", o.repeats, 1}};
  for (const auto& c : counts)
    if (c.value < c.least || c.value > (1 << 24))
      return failure(EDGESLIM_INVALID_ARGUMENT, "%s must be in [%d, 2^24], got %d", c.name, int(c.least), int(c.value));
  return {};
}

std::string engine_of(const Model& model) {
  const std::string ours = std::string("edgeslim ") + edgeslim_version();
  return model.library->is_built_in() ? ours : ours + ", onnxruntime " + model.library->version;
}

edgeslim_profile_options with_defaults(edgeslim_profile_options o) {
  if (!o.prompt_tokens) o.prompt_tokens = 128;
  if (!o.new_tokens) o.new_tokens = 64;
  if (!o.repeats) o.repeats = 5;
  o.warmup = o.warmup == 0 ? 1 : std::max(0, o.warmup);
  return o;
}

Status measure(Session* session, const edgeslim_profile_options& o, Run* cold, std::vector<Run>* runs) {
  const std::vector<int32_t> prompt = random_tokens(session->model().vocab_size, o.prompt_tokens);
  for (int32_t i = 0; i < o.warmup + o.repeats; ++i) {
    Run run;
    if (Status s = run_once(session, prompt, o, i - o.warmup, &run); s.failed()) return s;
    if (i == 0) *cold = run;
    if (i >= o.warmup) runs->push_back(std::move(run));
    if (o.on_run) o.on_run(i + 1, o.warmup + o.repeats, o.user);
  }
  return {};
}

}  // namespace

const char* products_of(const Model& model) {
  if (!model.bundle.packed) return "";
  return model.operators ? chosen().isa : "function bodies";
}

Status profile(const char* folder, const edgeslim_model_options& asked, const edgeslim_profile_options& options,
               std::string* json) {
  const edgeslim_profile_options o = with_defaults(options);
  if (Status s = check_options(o); s.failed()) return s;
  edgeslim_model_options model_options = asked;
  if (!model_options.threads) model_options.threads = physical_cores();
  const int64_t base = resident_bytes();
  reset_peak();
  const double begin = seconds();
  const auto model = std::make_unique<Model>();
  if (Status s = Model::load(folder, model_options, model.get()); s.failed()) return s;
  const auto session = std::make_unique<Session>();
  edgeslim_session_options room = {};
  room.room = model->grows() ? int64_t(o.prompt_tokens) + o.new_tokens : 0;
  if (Status s = session->open(*model, room); s.failed()) return s;
  const double load = seconds() - begin;
  tell(o, EDGESLIM_PHASE_LOAD, 0, begin, begin + load);
  Run cold;
  std::vector<Run> runs;
  if (Status s = measure(session.get(), o, &cold, &runs); s.failed()) return s;
  Object out;
  out.text("device", machine_name());
  out.text("engine", engine_of(*model));
  const std::string isa = products_of(*model);
  out.text("isa", isa.empty() ? machine_isa() : isa);
  out.integer("threads", model->threads);
  out.integer("prompt_tokens", o.prompt_tokens);
  out.integer("new_tokens", o.new_tokens);
  out.number("load_s", load);
  add_speeds(runs, o.prompt_tokens, &out);
  out.integer("base_rss_bytes", base);
  out.integer("peak_rss_bytes", peak_resident_bytes());
  out.bytes_if_any("pss_bytes", proportional_bytes());
  out.integer("bundle_bytes", folder_bytes(folder));
  const int64_t data = file_bytes(model->bundle.folder + "/model.onnx.data");
  const int64_t graph = file_bytes(model->bundle.folder + "/" + model->bundle.graph);
  out.integer("weight_bytes", model->bundle.weight_bytes ? model->bundle.weight_bytes : data >= 0 ? data : graph);
  out.add("energy_j_per_token", "null");
  out.number("temperature_c", cpu_temperature());
  out.text_if_any("governor", cpu_governor());
  for (const char* name : {"power_mode", "throttling", "clock_mhz", "energy_source", "watts"}) out.add(name, "null");
  out.number("cold_ttft_ms", cold.first * 1e3);
  out.number("cold_decode_ms", percentile(cold.steps, 50) * 1e3);
  for (const char* name : {"others_cores", "stolen_cores"}) out.add(name, "null");
  out.integer("repeats", o.repeats);
  out.integer("warmup", o.warmup);
  out.add("measured", "true");
  out.add("warnings", "[]");
  *json = out.done();
  return {};
}

}  // namespace edgeslim
