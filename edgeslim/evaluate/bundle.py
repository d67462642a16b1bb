"""Perplexity of a bundle, from its scoring graph on onnxruntime. Needs no torch."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from edgeslim.evaluate.perplexity import (
    Nll,
    PerplexityResult,
    Progress,
    Rule,
    Windows,
    cut_windows,
    encode_text,
    nll_of_logits,
    perplexity,
    windows_at_once,
)
from edgeslim.runtime.manifest import SCORING
from edgeslim.runtime.session import OrtSession
from edgeslim.runtime.text import TextCodec


def bundle_perplexity(
    bundle: Path,
    text: str,
    *,
    seqlen: int,
    rule: Rule = "edgeslim",
    threads: int | None = None,
    on_progress: Progress | None = None,
) -> PerplexityResult:
    """Return the perplexity of `bundle` on `text`, tokenized by the bundle's own tokenizer.

    Raises: EvaluationError, BundleError, RuntimeUnavailable.
    """
    codec = TextCodec(bundle)
    tokens = encode_text(text, lambda t, special: codec.encode(t, special=special), rule)
    cut_windows(tokens, seqlen)  # a text too short is said before the model is loaded
    session = OrtSession(bundle, graph=SCORING, threads=threads)
    batch = windows_at_once(seqlen, session.config.vocab_size or 1 << 16)
    score = session_scorer(session)
    return perplexity(tokens, score, seqlen=seqlen, rule=rule, batch=batch, on_progress=on_progress)


def session_scorer(session: OrtSession) -> Callable[[Windows], Nll]:
    """Return a function from windows [B, T] to negative log-likelihoods [B, T-1]; `session` runs a scoring graph.

    Where the graph reduces its prompts, they are those of the kept positions alone, [B, K].
    """

    def score(windows: Windows) -> Nll:
        session.reset(len(windows))
        logits, positions = session.feed_kept(windows[:, :-1])
        return nll_of_logits(logits, np.take_along_axis(windows, positions + 1, axis=1))

    return score
