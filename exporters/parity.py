"""Does the bundle compute what transformers computes? Asked of every export, answered in the manifest.

The reference is transformers' own forward pass in float32 over a random prompt. The bundle gets the same tokens in
three ways: whole, in two pieces, one by one; every state it carries is thereby exercised. Compared are the logits of
the last position (the generation graph) and of all positions (the scoring graph).

Packed weights are compared with transformers running on the same rounded weights, twice: with the graph's kernels set
to float32 activations, where only the order of sums may differ, and as shipped, with activations rounded to 8 bits. How
far the packed model is from the original one is measured beside it, and not judged.

Letters: B batch, T tokens, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeslim.errors import ParityError
from edgeslim.exporters.passes.half_products import set_single_products
from edgeslim.exporters.passes.quantize_linears import set_accuracy_level
from edgeslim.exporters.passes.store_packed import set_float_activations
from edgeslim.exporters.plan import Rounding
from edgeslim.exporters.reference import Logits, Tokens, reference_logits
from edgeslim.runtime.config import read_config
from edgeslim.runtime.manifest import GRAPH, SCORING
from edgeslim.runtime.session import OrtSession

TOKENS = 24
TOLERANCE = 1e-4
"""Largest allowed difference of a logit, as a part of the largest logit (of 1 where that is smaller).

Sums in another order differ by some 1e-6; what is wrong (a mask, a position, a state) differs by 1e-2 and more.
"""
SHIPPED_TOLERANCE = 0.2
"""The same for packed weights with activations rounded to 8 bits: random weights make some 0.04 of it."""

_EXACT = "exact-"  # prefix of the temporary graphs with float32 activations


def check_parity(bundle: Path, checkpoint: Path, *, rounding: Rounding | None = None) -> dict[str, Any]:
    """Return the largest differences between the logits of `bundle` and of the `checkpoint` in transformers.

    `rounding` is how the bundle's weights were rounded, None for float32.

    Raises: ParityError when one of them is beyond its tolerance.
    """
    tokens = sample_tokens(bundle)
    original = reference_logits(checkpoint, tokens)
    expected = original if rounding is None else reference_logits(checkpoint, tokens, rounding=rounding)
    scale = max(1.0, float(np.abs(expected).max()))
    figures: dict[str, Any] = {"tokens": tokens.shape[1], "logit_scale": scale, "tolerance": TOLERANCE}
    if rounding is None:
        figures["max_abs_error"] = judge(bundle, compare(bundle, tokens, expected)[0], TOLERANCE * scale)
        return figures
    with exact_graphs(bundle) as prefix:
        exact = compare(bundle, tokens, expected, prefix=prefix)[0]
    figures["max_abs_error"] = judge(bundle, exact, TOLERANCE * scale)
    shipped, logits = compare(bundle, tokens, expected)
    figures["shipped_tolerance"] = SHIPPED_TOLERANCE
    figures["shipped_max_abs_error"] = judge(bundle, shipped, SHIPPED_TOLERANCE * scale)
    return {**figures, "to_original": divergence(original, logits)}


def judge(bundle: Path, errors: dict[str, float], allowed: float) -> dict[str, float]:
    """Return `errors`, by way of feeding.

    Raises: ParityError when one is beyond `allowed`, or no number.
    """
    for way, error in errors.items():
        if not error <= allowed:
            raise ParityError(
                f"{bundle}: logits of a prompt fed in the way {way!r} differ from transformers' by {error:.3g}; "
                f"allowed are {allowed:.3g}"
            )
    return errors


def sample_tokens(bundle: Path, *, count: int = TOKENS, seed: int = 0) -> Tokens:
    """Return `count` random token ids [1, T] of the bundle's vocabulary."""
    config = read_config(bundle)
    length = min(count, config.context_length or count)
    return np.random.default_rng(seed).integers(0, config.vocab_size or 2, (1, length), dtype=np.int64)


def compare(bundle: Path, tokens: Tokens, expected: Logits, *, prefix: str = "") -> tuple[dict[str, float], Logits]:
    """Return the largest absolute difference to `expected` [T, V] for each way of feeding `tokens` [1, T], and the
    bundle's logits [T, V] of all positions. `prefix` selects other graphs of the folder."""
    count = tokens.shape[1]
    ways = {"whole": [count], "split": [count // 2, count - count // 2], "step": [1] * count}
    session = OrtSession(bundle, graph=prefix + GRAPH)
    errors = {way: last_error(session, tokens, expected, pieces) for way, pieces in ways.items()}
    del session  # one graph in memory at a time
    logits = OrtSession(bundle, graph=prefix + SCORING).feed_all(tokens)[0]
    errors["all_positions"] = float(np.abs(logits - expected).max())
    return errors, logits


@contextmanager
def exact_graphs(bundle: Path) -> Iterator[str]:
    """Yield the prefix of graphs that differ from the bundle's in one attribute: their activations stay float32."""
    copies = [bundle / (_EXACT + name) for name in (GRAPH, SCORING)]
    try:
        for copy in copies:
            model = ir.load(bundle / copy.name.removeprefix(_EXACT))
            set_accuracy_level(model, 0)
            set_float_activations(model)
            set_single_products(model)
            ir.save(model, copy)
        yield _EXACT
    finally:
        for copy in copies:
            copy.unlink(missing_ok=True)


def last_error(session: OrtSession, tokens: Tokens, expected: Logits, pieces: Sequence[int]) -> float:
    """Feed `tokens` in `pieces` and return the largest difference after each piece's last token."""
    session.reset()
    worst, end = 0.0, 0
    for size in pieces:
        found = session.feed(tokens[:, end : end + size])[0]
        end += size
        worst = max(worst, float(np.abs(found - expected[end - 1]).max()))
    return worst


def divergence(original: Logits, packed: Logits) -> dict[str, float]:
    """Return how far `packed` logits [T, V] are from `original`: mean KL divergence (nats), agreement of the argmax."""
    log_p, log_q = _log_softmax(original), _log_softmax(packed)
    kl = (np.exp(log_p) * (log_p - log_q)).sum(axis=-1).mean()
    same = (original.argmax(axis=-1) == packed.argmax(axis=-1)).mean()
    return {"kl": float(kl), "argmax_agreement": float(same)}


def _log_softmax(logits: Logits) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))
