"""Does the bundle compute what transformers computes? Asked of every export, answered in the manifest.

The reference is transformers' own forward pass in float32 over a random prompt. The bundle gets the same tokens in three
ways: whole, in two pieces, one by one; every state it carries is thereby exercised. Compared are the logits of the last
position (the generation graph) and of all positions (the scoring graph).

Letters: B batch, T tokens, V vocabulary.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeslim.errors import ParityError
from edgeslim.runtime.manifest import SCORING
from edgeslim.runtime.session import OrtSession

Logits = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.int64]

TOKENS = 24
TOLERANCE = {"fp32": 1e-4}
"""Largest allowed difference of a logit, as a part of the largest logit (of 1 where that is smaller).

fp32: sums in another order differ by some 1e-6; what is wrong (a mask, a position, a state) differs by 1e-2 and more.
"""


def check_parity(bundle: Path, checkpoint: Path, *, weights: str) -> dict[str, Any]:
    """Return the largest differences between the logits of `bundle` and of the `checkpoint` in transformers.

    Raises: ParityError when one of them is beyond the tolerance.
    """
    tokens = sample_tokens(bundle)
    expected = reference_logits(checkpoint, tokens)
    errors = compare(bundle, tokens, expected)
    scale = max(1.0, float(np.abs(expected).max()))
    tolerance = TOLERANCE[weights]
    worst = max(errors, key=lambda way: errors[way])
    if not errors[worst] <= tolerance * scale:
        raise ParityError(
            f"{bundle}: logits of a prompt fed {worst} differ from transformers' by {errors[worst]:.3g}; "
            f"allowed are {tolerance * scale:.3g} ({tolerance:g} of the largest logit)"
        )
    return {"tokens": tokens.shape[1], "logit_scale": scale, "tolerance": tolerance, "max_abs_error": errors}


def sample_tokens(bundle: Path, *, count: int = TOKENS, seed: int = 0) -> Tokens:
    """Return `count` random token ids [1, T] of the bundle's vocabulary."""
    from edgeslim.runtime.config import read_config

    config = read_config(bundle)
    length = min(count, config.context_length or count)
    return np.random.default_rng(seed).integers(0, config.vocab_size or 2, (1, length), dtype=np.int64)


def reference_logits(checkpoint: Path, tokens: Tokens) -> Logits:
    """Return transformers' float32 logits [T, V] for `tokens` [1, T]."""
    import torch

    from edgeslim.checkpoint import Checkpoint

    model = Checkpoint.open(checkpoint).load()
    with torch.inference_mode():
        logits: Logits = model(torch.from_numpy(tokens), use_cache=False).logits[0].float().numpy()
    return logits


def compare(bundle: Path, tokens: Tokens, expected: Logits) -> dict[str, float]:
    """Return the largest absolute difference to `expected` [T, V] for each way of feeding `tokens` [1, T]."""
    count = tokens.shape[1]
    ways = {"whole": [count], "split": [count // 2, count - count // 2], "step": [1] * count}
    session = OrtSession(bundle)
    errors = {way: _last_error(session, tokens, expected, pieces) for way, pieces in ways.items()}
    del session
    session = OrtSession(bundle, graph=SCORING)
    errors["all_positions"] = float(np.abs(session.feed_all(tokens)[0] - expected).max())
    return errors


def _last_error(session: OrtSession, tokens: Tokens, expected: Logits, pieces: Sequence[int]) -> float:
    """Feed `tokens` in `pieces` and return the largest difference after each piece's last token."""
    session.reset()
    worst, end = 0.0, 0
    for size in pieces:
        found = session.feed(tokens[:, end : end + size])[0]
        end += size
        worst = max(worst, float(np.abs(found - expected[end - 1]).max()))
    return worst
