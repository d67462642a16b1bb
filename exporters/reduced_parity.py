"""Does a bundle that reduces its prompts keep the tokens that PyTorch keeps, and compute the same of them?

As `edgeslim.exporters.parity` asks, against `edgeslim.tokens`: a prompt whole (reduced), its first part and then the
rest (the first part reduced, the rest not), and token by token (nothing reduced). Where two tokens are nearly equally
important or similar, rounding decides which goes, and logits then differ: another prompt is taken, and only where every
one of `PROMPTS` keeps other tokens than PyTorch is the bundle refused.

Activations rounded to 8 bits may choose other tokens: as shipped, only what is fed token by token is judged, and the
share of equally kept tokens is said.

Letters: T tokens, K tokens left, V vocabulary.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeslim.errors import ParityError
from edgeslim.exporters.parity import SHIPPED_TOLERANCE, TOLERANCE, exact_graphs, judge, last_error, sample_tokens
from edgeslim.exporters.plan import Rounding
from edgeslim.exporters.reduced_reference import ReducedLogits, reduced_logits
from edgeslim.exporters.reference import Logits, Tokens, reference_logits
from edgeslim.runtime.manifest import GRAPH, SCORING
from edgeslim.runtime.session import OrtSession
from edgeslim.tokens.plan import ReductionPlan

TOKENS = 96
BEYOND = 64
"""Tokens at least beyond the shortest prompt that is reduced: prompts are `TOKENS` long, or that many."""
STEPS = 24
"""Tokens that are also fed one by one."""
PROMPTS = 3


@dataclass(frozen=True, kw_only=True)
class _Expected:
    """What PyTorch makes of `tokens` [1, T]: of all, of the `first` ones and then the rest, of a few unreduced."""

    tokens: Tokens
    first: int
    whole: ReducedLogits
    parts: ReducedLogits
    steps: Logits


@dataclass(frozen=True, kw_only=True)
class _Found:
    """The largest difference by way of feeding, and the share of tokens that both keep."""

    errors: dict[str, float]
    kept_agreement: float


def check_reduced_parity(
    bundle: Path, checkpoint: Path, plan: ReductionPlan, *, rounding: Rounding | None = None
) -> dict[str, Any]:
    """Return the largest differences between `bundle` and the `checkpoint` in PyTorch, both reduced by `plan`.

    Raises: ParityError when one is beyond its tolerance, or other tokens are kept.
    """
    for seed in range(PROMPTS):
        tokens = sample_tokens(bundle, count=max(TOKENS, plan.min_tokens + BEYOND), seed=seed)
        expected = _expected(checkpoint, tokens, plan, rounding)
        if rounding is None:
            found = _compare(bundle, expected)
        else:
            with exact_graphs(bundle) as prefix:
                found = _compare(bundle, expected, prefix)
        if found.kept_agreement == 1:
            return _figures(bundle, expected, found, seed, rounding)
    raise ParityError(
        f"{bundle}: of a reduced prompt other tokens are kept than PyTorch keeps, in each of {PROMPTS} prompts; "
        f"the last one agrees in {found.kept_agreement:.1%}"
    )


def _figures(bundle: Path, expected: _Expected, found: _Found, seed: int, rounding: Rounding | None) -> dict[str, Any]:
    scale = max(1.0, float(np.abs(expected.whole.logits).max()), float(np.abs(expected.steps).max()))
    figures: dict[str, Any] = {
        "tokens": expected.tokens.shape[1],
        "kept_tokens": len(expected.whole.positions),
        "prompts_tried": seed + 1,
        "logit_scale": scale,
        "tolerance": TOLERANCE,
        "max_abs_error": judge(bundle, found.errors, TOLERANCE * scale),
    }
    if rounding is None:
        return figures
    shipped = _compare(bundle, expected)
    judge(bundle, {"step": shipped.errors["step"]}, SHIPPED_TOLERANCE * scale)
    return {
        **figures,
        "shipped_tolerance": SHIPPED_TOLERANCE,
        "shipped_max_abs_error": shipped.errors,
        "shipped_kept_agreement": shipped.kept_agreement,
    }


def _expected(checkpoint: Path, tokens: Tokens, plan: ReductionPlan, rounding: Rounding | None) -> _Expected:
    count = tokens.shape[1]
    first = min(max(count // 2, plan.min_tokens), count - 1)
    return _Expected(
        tokens=tokens,
        first=first,
        whole=reduced_logits(checkpoint, tokens, tokens[:, :0], plan, rounding=rounding),
        parts=reduced_logits(checkpoint, tokens[:, :first], tokens[:, first:], plan, rounding=rounding),
        steps=reference_logits(checkpoint, tokens[:, :STEPS], rounding=rounding),
    )


def _compare(bundle: Path, expected: _Expected, prefix: str = "") -> _Found:
    """Feed the bundle's graphs, or those beginning with `prefix`, and compare."""
    tokens, first, whole, parts = expected.tokens, expected.first, expected.whole, expected.parts
    session = OrtSession(bundle, graph=prefix + GRAPH)
    errors = {"whole": _difference(_last(session, tokens), whole.logits[-1])}
    begun = _difference(_last(session, tokens[:, :first]), parts.logits[-1])
    errors["split"] = max(begun, _difference(session.feed(tokens[:, first:])[0], parts.further[-1]))
    errors["step"] = last_error(session, tokens[:, :STEPS], expected.steps, [1] * min(STEPS, tokens.shape[1]))
    del session  # one graph in memory at a time
    scoring = OrtSession(bundle, graph=prefix + SCORING)
    logits, kept = scoring.feed_kept(tokens)
    _, ours, theirs = np.intersect1d(kept[0], whole.positions, return_indices=True)
    errors["all_positions"] = _difference(logits[0][ours], whole.logits[theirs])
    scoring.reset()
    _, kept_first = scoring.feed_kept(tokens[:, :first])
    agreement = min(_agreement(kept[0], whole.positions), _agreement(kept_first[0], parts.positions))
    return _Found(errors=errors, kept_agreement=agreement)


def _last(session: OrtSession, tokens: Tokens) -> Logits:
    session.reset()
    return np.asarray(session.feed(tokens)[0])


def _difference(found: Logits, expected: Logits) -> float:
    return float(np.abs(found - expected).max()) if found.shape == expected.shape else float("inf")


def _agreement(found: Tokens, expected: Tokens) -> float:
    return len(np.intersect1d(found, expected)) / max(len(found), len(expected))
