"""Measure one GGUF file in llama.cpp: a fresh process, one JSON line with the keys that `Profile` has.

Runs in the environment that has llama-cpp-python: ``python llama_worker.py FILE '{"prompt_tokens": 128, …}'``.
"""

import json
import re
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import llama_cpp
import numpy as np

SEED = 0
BATCH = 512


def main() -> None:
    """Measure the file of the first argument as the job of the second says."""
    print(json.dumps(measure(sys.argv[1], **json.loads(sys.argv[2]))))


def measure(file: str, prompt_tokens: int, new_tokens: int, threads: int, repeats: int, warmup: int) -> dict[str, Any]:
    """Return load time, medians of the speeds over `repeats`, and the memory of this process."""
    base = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back
    started = time.perf_counter()
    model = Decoder(file, prompt_tokens + new_tokens, threads)
    load_s = time.perf_counter() - started
    prompt = np.random.default_rng(SEED).integers(0, model.vocabulary, prompt_tokens).tolist()
    runs = [model.run_once(prompt, new_tokens) for _ in range(warmup + repeats)][warmup:]
    return {
        "engine": f"llama-cpp-python {llama_cpp.__version__}",
        "load_s": load_s,
        "prefill_tok_s_p50": median(prompt_tokens / prefill for prefill, _ in runs),
        "decode_tok_s_p50": median((new_tokens - 1) / decode for _, decode in runs),
        "base_rss_bytes": base,
        "peak_rss_bytes": memory("VmHWM"),
    }


class Decoder:
    """A model and its context on llama.cpp's C interface; logits of the last token only."""

    def __init__(self, file: str, length: int, threads: int) -> None:
        """Load `file` with llama.cpp's defaults, room for `length` tokens, and `threads` threads."""
        llama_cpp.llama_backend_init()
        _silence()
        self._model = llama_cpp.llama_model_load_from_file(file.encode(), llama_cpp.llama_model_default_params())
        options = llama_cpp.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = length, max(BATCH, length), BATCH
        options.n_threads = options.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, options) if self._model else None
        if not self._context:
            raise RuntimeError(f"{file}: llama.cpp does not load it")
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))

    def run_once(self, prompt: list[int], new_tokens: int) -> tuple[float, float]:
        """Return the seconds of `prompt`, and of greedily decoding the `new_tokens` - 1 tokens after the first."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        begin = time.perf_counter()
        token = self._feed(prompt)
        first = time.perf_counter()
        for _ in range(new_tokens - 1):
            token = self._feed([token])
        return first - begin, time.perf_counter() - first

    def _feed(self, tokens: list[int]) -> int:
        """Append `tokens` to the state and return the most likely next one."""
        array = (llama_cpp.llama_token * len(tokens))(*tokens)
        if llama_cpp.llama_decode(self._context, llama_cpp.llama_batch_get_one(array, len(tokens))):
            raise RuntimeError("llama_decode failed")
        logits = llama_cpp.llama_get_logits_ith(self._context, -1)
        return int(np.ctypeslib.as_array(logits, (self.vocabulary,)).argmax())


def memory(key: str) -> int:
    """Return bytes of a line of /proc/self/status."""
    found = re.search(rf"^{key}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


@llama_cpp.llama_log_callback
def _ignore(level: int, text: bytes, data: object) -> None:
    """Take llama.cpp's messages."""


def _silence() -> None:
    llama_cpp.llama_log_set(_ignore, None)


if __name__ == "__main__":
    main()
