/* The native runtime of edgeslim: load a bundle, feed tokens, sample, stream, cancel, save and restore, profile.
 *
 * One library holds this interface and the operators that bundles use. What it does not run by itself it gives to ONNX
 * Runtime 1.17 or newer, and text to onnxruntime-extensions 0.15 or newer, which it loads while it runs. Nothing else is
 * linked.
 *
 * Errors. Every function that can fail returns a code, EDGESLIM_OK being 0, and writes the same code and one line of
 * text into `error` where that is not null. No C++ exception leaves a function. After a failure the objects are as they
 * were before the call, so far as the function does not say otherwise.
 *
 * Threads. A model may be shared by any number of sessions on any threads. A session is used by one thread at a time,
 * except for edgeslim_session_cancel and edgeslim_session_resume, which any thread may call at any time. Freeing is for
 * when no other call is under way. Callbacks run on the thread that called; they may cancel, and must not use the
 * session otherwise.
 *
 * Structures of options begin with `size`, which the caller sets to sizeof: so they may grow. All else zero means the
 * defaults: {sizeof options}. Text is UTF-8.
 */
#ifndef EDGESLIM_H
#define EDGESLIM_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define EDGESLIM_CALL __declspec(dllexport)
#else
#define EDGESLIM_CALL __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define EDGESLIM_API_VERSION 1

enum {
  EDGESLIM_OK = 0,
  EDGESLIM_INVALID_ARGUMENT = 1,    /* a value that cannot be meant */
  EDGESLIM_BAD_BUNDLE = 2,          /* a bundle that is incomplete, damaged, hostile or of another version */
  EDGESLIM_RUNTIME_UNAVAILABLE = 3, /* ONNX Runtime, or for text its extensions, is not found, does not load or is too old */
  EDGESLIM_RUNTIME_FAILED = 4,      /* ONNX Runtime, or its extensions, say that a run failed */
  EDGESLIM_CONTEXT_FULL = 5,        /* the tokens do not fit what the session has room for */
  EDGESLIM_CANCELLED = 6,           /* edgeslim_session_cancel */
  EDGESLIM_WRONG_ORDER = 7,         /* a call that needs another one before it */
  EDGESLIM_BAD_STATE = 8,           /* a saved state that is damaged or of another model or session */
  EDGESLIM_OUT_OF_MEMORY = 9,
  EDGESLIM_INTERNAL = 10
};

typedef struct edgeslim_error {
  int32_t code;
  char message[508]; /* one line, ends with 0 */
} edgeslim_error;

typedef struct edgeslim_model edgeslim_model;
typedef struct edgeslim_session edgeslim_session;

/* EDGESLIM_API_VERSION of the library; and its version as text, "0.1.0". */
EDGESLIM_CALL int32_t edgeslim_api_version(void);
EDGESLIM_CALL const char* edgeslim_version(void);

/* ---- models ------------------------------------------------------------------------------------------------------ */

enum {
  EDGESLIM_FUNCTION_BODIES = 1, /* run operators of ours by their bodies in standard operators */
  EDGESLIM_FOREIGN_LIBRARIES = 2, /* load a bundle's other operator libraries: runs code that the bundle names */
  EDGESLIM_WITH_ONNXRUNTIME = 4,  /* run every graph in ONNX Runtime */
  EDGESLIM_WITHOUT_ONNXRUNTIME = 8 /* refuse a graph that needs it */
};

/* A graph of this library's operators, as packed bundles are, runs without ONNX Runtime, on threads of its own; others
   are given to ONNX Runtime, which is loaded when the first of them is. */

typedef struct edgeslim_model_options {
  uint32_t size;
  uint32_t flags;
  int32_t threads;             /* 0: what the bundle says, else as many as there are processors */
  const char* onnxruntime;     /* path of ONNX Runtime's library, or of the folder it lies in. Null: the environment
                                  variable EDGESLIM_ONNXRUNTIME, else one in this process, else the system's */
  const char* graph;           /* file name of the graph inside the bundle. Null: what the bundle says, model.onnx */
} edgeslim_model_options;

typedef struct edgeslim_model_info {
  uint32_t size;
  int32_t vocab_size;
  int64_t context_length;  /* tokens; 0: nothing bounds it */
  int64_t room;            /* tokens that sessions make room for by default; 0: nothing bounds it */
  int32_t bos_token;       /* -1: none */
  int32_t end_token_count; /* see edgeslim_model_end_tokens */
  int32_t packed;          /* 1: has operators of ours */
  int32_t threads;         /* as asked for; 0: as many as there are processors */
  char onnxruntime[32];    /* its version; "" where it is not used */
  char isa[32];            /* what products run on: a kernel variant, "function bodies", or "" for ONNX Runtime's own */
} edgeslim_model_info;

/* Loads the bundle in `folder`. Weights stay in the mapped file. `options` null: the defaults. */
EDGESLIM_CALL int32_t edgeslim_model_load(const char* folder, const edgeslim_model_options* options,
                                          edgeslim_model** model, edgeslim_error* error);
/* Its sessions must have been freed. Null is let pass. */
EDGESLIM_CALL void edgeslim_model_free(edgeslim_model* model);
/* Fills what `info->size` covers. */
EDGESLIM_CALL int32_t edgeslim_model_get_info(const edgeslim_model* model, edgeslim_model_info* info,
                                              edgeslim_error* error);
/* Writes at most `capacity` of the tokens that end a text and returns how many there are. */
EDGESLIM_CALL int32_t edgeslim_model_end_tokens(const edgeslim_model* model, int32_t* tokens, int32_t capacity);

/* ---- sessions ---------------------------------------------------------------------------------------------------- */

typedef struct edgeslim_session_options {
  uint32_t size;
  uint32_t reserved;
  int64_t room;  /* most tokens of prompt and answer together; 0: edgeslim_model_info.room */
  int64_t chunk; /* tokens fed at once, at most; 0: 512, 256 without caches that grow, all where prompts are reduced */
} edgeslim_session_options;

/* One sequence with its state. Memory for the state is taken here, once. */
EDGESLIM_CALL int32_t edgeslim_session_open(edgeslim_model* model, const edgeslim_session_options* options,
                                            edgeslim_session** session, edgeslim_error* error);
EDGESLIM_CALL void edgeslim_session_free(edgeslim_session* session);
/* Empties the state. */
EDGESLIM_CALL void edgeslim_session_reset(edgeslim_session* session);
/* Tokens in the state; and the most it holds, 0 for no bound. */
EDGESLIM_CALL int64_t edgeslim_session_position(const edgeslim_session* session);
EDGESLIM_CALL int64_t edgeslim_session_room(const edgeslim_session* session);

/* Appends `tokens` [count] to the state, in chunks. One token is a step. Where it fails or is cancelled the state holds
 * the chunks before the one that failed: edgeslim_session_position says how many tokens those are; there are no logits
 * then until tokens are fed again. */
EDGESLIM_CALL int32_t edgeslim_session_feed(edgeslim_session* session, const int32_t* tokens, int64_t count,
                                            edgeslim_error* error);
/* The logits [vocab_size] after the last token fed, null before the first. They stay until the next call that changes
 * the session. */
EDGESLIM_CALL const float* edgeslim_session_logits(const edgeslim_session* session);

/* ---- sampling ---------------------------------------------------------------------------------------------------- */

/* How the next token is drawn, in this order. Zeros throughout are greedy decoding. */
typedef struct edgeslim_sampling {
  uint32_t size;
  float repetition_penalty; /* logits of tokens seen: divided by it where positive, else multiplied; 0 or 1: off */
  float temperature;        /* logits are divided by it; 0: the largest logit is taken, the first of equal ones */
  int32_t top_k;            /* only the k largest, and those equal to the k-th; 0: off */
  float top_p;              /* only the fewest, largest first, that together hold this probability; 0 or 1: off */
  float min_p;              /* only those at least this fraction as likely as the likeliest; 0: off */
  uint64_t seed;            /* the draw depends on it, the position and the logits alone */
} edgeslim_sampling;

/* Draws a token after the last one fed. The state is not changed: feed the token to go on. */
EDGESLIM_CALL int32_t edgeslim_session_sample(edgeslim_session* session, const edgeslim_sampling* sampling,
                                              int32_t* token, edgeslim_error* error);
/* The same for any logits [vocab_size]; `seen` [seen_count] are the tokens that the repetition penalty is for. */
EDGESLIM_CALL int32_t edgeslim_sample(const float* logits, int32_t vocab_size, const int32_t* seen, int64_t seen_count,
                                      const edgeslim_sampling* sampling, int64_t position, int32_t* token,
                                      edgeslim_error* error);
/* The draw of `seed` at `position`, in [0, 1): the token drawn is the first, in order of ids, at which the sum of
 * probabilities exceeds it. */
EDGESLIM_CALL double edgeslim_uniform(uint64_t seed, int64_t position);

/* ---- generation -------------------------------------------------------------------------------------------------- */

/* Called for every token as it is drawn. Returns 0 to go on, anything else to end. */
typedef int32_t (*edgeslim_on_token)(int32_t token, void* user);

enum {
  EDGESLIM_END_LENGTH = 0,  /* max_new_tokens have come */
  EDGESLIM_END_TOKEN = 1,   /* an end token was drawn; it is not given */
  EDGESLIM_END_ROOM = 2,    /* the state is full */
  EDGESLIM_END_CALLBACK = 3 /* the callback said so */
};

typedef struct edgeslim_generation {
  uint32_t size;
  int32_t end_token_count;       /* -1: none; 0: the bundle's; else those in `end_tokens` */
  const int32_t* end_tokens;
  int64_t max_new_tokens;
  edgeslim_sampling sampling;    /* its `size` may be 0 here */
  edgeslim_on_token on_token;    /* may be null */
  void* user;
  int64_t produced;              /* out: tokens given, also where it fails or is cancelled */
  int32_t ended_by;              /* out */
  int32_t reserved;
} edgeslim_generation;

/* Feeds `prompt` [count] after what the state holds (count may be 0 where it holds something), then draws and feeds
 * tokens. The last token given is not fed: to go on after it, let it begin the next prompt. */
EDGESLIM_CALL int32_t edgeslim_session_generate(edgeslim_session* session, const int32_t* prompt, int64_t count,
                                                edgeslim_generation* generation, edgeslim_error* error);

/* From any thread: the call under way ends soon with EDGESLIM_CANCELLED (within one operator of the graph), and so does
 * every later one at once, until edgeslim_session_resume. The state stays whole, see edgeslim_session_feed. */
EDGESLIM_CALL void edgeslim_session_cancel(edgeslim_session* session);
EDGESLIM_CALL void edgeslim_session_resume(edgeslim_session* session);

/* ---- text ---------------------------------------------------------------------------------------------------------- */

/* A bundle's tokenizer, by onnxruntime-extensions where it is present. Apps that have another one hand tokens alone. */
typedef struct edgeslim_tokenizer edgeslim_tokenizer;
typedef struct edgeslim_decoder edgeslim_decoder;

/* Opens tokenizer.json (BPE or Unigram) of the bundle in `folder`. `library`: path of libortextensions, or of the folder
 * it lies in. Null: the environment variable EDGESLIM_ORTEXTENSIONS, else one in this process, else the system's. The
 * extensions read the file after a few checks of ours. A tokenizer and its decoders are used by one thread at a time. */
EDGESLIM_CALL int32_t edgeslim_tokenizer_open(const char* folder, const char* library, edgeslim_tokenizer** tokenizer,
                                              edgeslim_error* error);
/* Its decoders must have been freed. Null is let pass. */
EDGESLIM_CALL void edgeslim_tokenizer_free(edgeslim_tokenizer* tokenizer);
/* Writes the tokens of `text` into `tokens` [capacity] and how many there are into `needed`; `tokens` null asks for that
 * alone. `special` not 0: with those that the bundle puts around a text, such as one that begins it. */
EDGESLIM_CALL int32_t edgeslim_tokenizer_encode(const edgeslim_tokenizer* tokenizer, const char* text, int32_t special,
                                                int32_t* tokens, int64_t capacity, int64_t* needed, edgeslim_error* error);
/* Writes the text of `tokens` [count] into `text` [capacity] with a 0 behind it, and its length into `needed`; `text`
 * null asks for that alone. Special tokens and characters that are not complete have no text. */
EDGESLIM_CALL int32_t edgeslim_tokenizer_decode(const edgeslim_tokenizer* tokenizer, const int32_t* tokens, int64_t count,
                                                char* text, size_t capacity, size_t* needed, edgeslim_error* error);
/* Decodes tokens as they come. Its tokenizer must live longer. */
EDGESLIM_CALL int32_t edgeslim_decoder_open(const edgeslim_tokenizer* tokenizer, edgeslim_decoder** decoder,
                                            edgeslim_error* error);
EDGESLIM_CALL void edgeslim_decoder_free(edgeslim_decoder* decoder);
/* Sets `text` to what `token` completes: whole characters, "" where none is. It stays until the decoder's next call. The
 * texts of all tokens, one behind the other, are what edgeslim_tokenizer_decode gives for them. */
EDGESLIM_CALL int32_t edgeslim_decoder_push(edgeslim_decoder* decoder, int32_t token, const char** text,
                                            edgeslim_error* error);

/* ---- saved states ------------------------------------------------------------------------------------------------ */

/* Writes the state into `data` [capacity] and its size into `needed`; `data` null asks for the size alone. A session of
 * the same bundle with enough room, in this process or another one of the same byte order, goes on from it exactly. */
EDGESLIM_CALL int32_t edgeslim_session_save(const edgeslim_session* session, void* data, size_t capacity, size_t* needed,
                                            edgeslim_error* error);
/* Reads it back. A state that is refused leaves the session as it was. */
EDGESLIM_CALL int32_t edgeslim_session_restore(edgeslim_session* session, const void* data, size_t size,
                                               edgeslim_error* error);

/* ---- profiles ---------------------------------------------------------------------------------------------------- */

enum { EDGESLIM_PHASE_LOAD = 0, EDGESLIM_PHASE_PREFILL = 1, EDGESLIM_PHASE_DECODE = 2 };

typedef struct edgeslim_profile_options {
  uint32_t size;
  int32_t prompt_tokens; /* 0: 128 */
  int32_t new_tokens;    /* 0: 64; at least 2 */
  int32_t repeats;       /* 0: 5 */
  int32_t warmup;        /* 0: 1; -1: none */
  int32_t reserved;
  void (*on_run)(int32_t done, int32_t total, void* user); /* may be null */
  void* user;
  /* After each phase, in seconds of the monotonic clock; may be null. Counted runs are 0, 1, …; warm-ups are below 0. */
  void (*on_phase)(int32_t phase, int32_t run, double begin, double end, void* user);
} edgeslim_profile_options;

/* Measures the bundle in `folder` with random tokens and writes the profile, a JSON object, into `json` [capacity] with
 * a 0 behind it, and its length into `needed`. Memory counts from this call on: take a fresh process for it. */
EDGESLIM_CALL int32_t edgeslim_profile(const char* folder, const edgeslim_model_options* model_options,
                                       const edgeslim_profile_options* options, char* json, size_t capacity,
                                       size_t* needed, edgeslim_error* error);

#ifdef __cplusplus
}
#endif

#endif
