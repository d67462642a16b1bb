#include <algorithm>

#include "engine/session.h"

namespace edgeslim {
namespace {

std::vector<int32_t> end_tokens(const Session& session, const edgeslim_generation& g) {
  if (g.end_token_count < 0) return {};
  if (g.end_token_count == 0) return session.model().bundle.end_tokens;
  return std::vector<int32_t>(g.end_tokens, g.end_tokens + g.end_token_count);
}

}  // namespace

Status generate(Session* session, const int32_t* prompt, int64_t count, edgeslim_generation* g) {
  g->produced = 0;
  g->ended_by = EDGESLIM_END_LENGTH;
  if (g->max_new_tokens < 0)
    return failure(EDGESLIM_INVALID_ARGUMENT, "max_new_tokens must be at least 0, got %lld", (long long)g->max_new_tokens);
  if (g->end_token_count > 0 && !g->end_tokens) return failure(EDGESLIM_INVALID_ARGUMENT, "end_tokens must not be null");
  if (Status s = check_sampling(g->sampling); s.failed()) return s;
  if (count || !session->logits())
    if (Status s = session->feed(prompt, count); s.failed()) return s;
  const std::vector<int32_t> ends = end_tokens(*session, *g);
  while (g->produced < g->max_new_tokens) {
    int32_t token = 0;
    if (Status s = session->sample(g->sampling, &token); s.failed()) return s;
    if (std::find(ends.begin(), ends.end(), token) != ends.end()) return g->ended_by = EDGESLIM_END_TOKEN, Status{};
    ++g->produced;
    if (g->on_token && g->on_token(token, g->user)) return g->ended_by = EDGESLIM_END_CALLBACK, Status{};
    if (g->produced == g->max_new_tokens) break;
    if (session->is_full()) return g->ended_by = EDGESLIM_END_ROOM, Status{};
    if (Status s = session->feed(&token, 1); s.failed()) return s;
  }
  return {};
}

}  // namespace edgeslim
