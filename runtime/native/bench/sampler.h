// Reads sensor files from a thread of its own while a bundle is measured. What the texts mean is for the host to say.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "engine/json.h"
#include "engine/machine.h"

namespace edgeslim {

struct Phase {
  int32_t phase, run;
  double begin, end;
};

class SensorSampler {
 public:
  explicit SensorSampler(std::vector<std::string> paths) : paths_(std::move(paths)) {
    if (!paths_.empty()) thread_ = std::thread([this] { watch(); });
  }
  ~SensorSampler() { stop(); }
  SensorSampler(const SensorSampler&) = delete;
  SensorSampler& operator=(const SensorSampler&) = delete;

  void add(const Phase& phase) { phases_.push_back(phase); }

  void stop() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stopped_ = true;
    }
    wake_.notify_all();
    if (thread_.joinable()) thread_.join();
  }

  // The members "phases" and "samples", after stop().
  std::string json() const {
    static constexpr const char* kNames[] = {"load", "prefill", "decode"};
    std::string text = "\"phases\": [";
    char line[160];
    for (const Phase& p : phases_) {
      std::snprintf(line, sizeof line, "%s{\"phase\": \"%s\", \"run\": %d, \"begin\": %.6f, \"end\": %.6f}",
                    &p == &phases_.front() ? "" : ", ", kNames[p.phase], int(p.run), p.begin, p.end);
      text += line;
    }
    text += "], \"samples\": [";
    for (const Sample& s : samples_) {
      std::snprintf(line, sizeof line, "%s{\"seconds\": %.6f, \"path\": ", &s == &samples_.front() ? "" : ", ", s.seconds);
      text += line + quoted(paths_[s.path]) + ", \"text\": " + quoted(s.text) + "}";
    }
    return text + "]";
  }

 private:
  static constexpr std::chrono::milliseconds kPeriod{100};
  static constexpr std::size_t kMostText = 4096, kMostSamples = 1 << 20;

  struct Sample {
    double seconds;
    std::size_t path;
    std::string text;
  };

  void watch() {
    auto next = std::chrono::steady_clock::now();
    for (bool last = false; !last;) {
      read_all();
      next += kPeriod;
      std::unique_lock<std::mutex> lock(mutex_);
      last = wake_.wait_until(lock, next, [this] { return stopped_; });
    }
    read_all();
  }

  // A file that cannot be read gives no sample.
  void read_all() {
    for (std::size_t i = 0; i < paths_.size() && samples_.size() < kMostSamples; ++i) {
      std::FILE* const file = std::fopen(paths_[i].c_str(), "rb");
      if (!file) continue;
      char text[kMostText];
      const double at = seconds();
      const std::size_t got = std::fread(text, 1, sizeof text, file);
      if (got) samples_.push_back({at, i, std::string(text, got)});
      std::fclose(file);
    }
  }

  const std::vector<std::string> paths_;
  std::vector<Phase> phases_;
  std::vector<Sample> samples_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stopped_ = false;
  std::thread thread_;
};

}  // namespace edgeslim
