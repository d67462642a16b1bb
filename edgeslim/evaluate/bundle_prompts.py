"""A bundle as the reduction suite sees models, and the suite on a bundle: its scoring graph on onnxruntime. No torch.

The dense partner is the bundle itself. A graph reduces only what begins a sequence, and never a single token: a prompt
whose first token is fed alone is read whole, by the same weights in the same form.

Letters: B prompts, N tokens each, K left after the prefill, M further tokens, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgeslim.errors import EvaluationError
from edgeslim.evaluate.perplexity import encode_text
from edgeslim.evaluate.reduction import Logits, PromptModel, Tokens
from edgeslim.evaluate.reduction_suite import (
    LEAST_TEXT_IDS,
    Amount,
    Progress,
    ReductionResult,
    beside_dense,
    tasks_for,
)
from edgeslim.runtime.config import HF_CONFIG, read_object
from edgeslim.runtime.manifest import SCORING, Manifest
from edgeslim.runtime.session import OrtSession
from edgeslim.runtime.text import TextCodec
from edgeslim.tokens.plan import ReductionPlan


class BundlePromptModel:
    """A `PromptModel` on a session of a bundle's scoring graph: reduced as the graph says, or dense.

    A dense one with attention takes one prompt at a time (B = 1): onnxruntime's attention reads several tokens after
    others for one sequence only.
    """

    def __init__(self, session: OrtSession, *, reduced: bool = True) -> None:
        self._session, self._reduced = session, reduced

    def prefill(self, prompts: Tokens) -> tuple[Logits, Tokens]:
        """See `PromptModel.prefill`."""
        self._session.reset(len(prompts))
        if self._reduced:
            return self._session.feed_kept(prompts)
        pieces = [prompts[:, :1], prompts[:, 1:]] if prompts.shape[1] > 1 else [prompts]
        logits = np.concatenate([self._session.feed_all(piece) for piece in pieces], 1)
        return logits, np.tile(np.arange(prompts.shape[1]), (len(prompts), 1))

    def extend(self, tokens: Tokens) -> Logits:
        """See `PromptModel.extend`."""
        if len(tokens) == 1 or not self._session.cache_lengths:
            return self._session.feed_all(tokens)
        return np.concatenate([self._session.feed_all(column) for column in np.split(tokens, tokens.shape[1], 1)], 1)


def bundle_reduction(
    bundle: Path, text: str, amount: Amount, *, threads: int | None = None, on_progress: Progress | None = None
) -> ReductionResult:
    """Compare `bundle`, whose graph reduces its prompts, with itself unreduced.

    What a random drop draws stands in the graph: the seeds of `amount` then choose windows and prompts alone.

    Raises: EvaluationError where nothing is reduced or the text is too short; BundleError, RuntimeUnavailable.
    """
    plan = reduction_of_bundle(bundle)
    if plan is None:
        raise EvaluationError(
            f"{bundle}: its graph does not reduce its prompts; write a plan with `edgeslim reduce` before the export"
        )
    config = read_object(bundle / HF_CONFIG)
    vocabulary = config.get("vocab_size") or LEAST_TEXT_IDS
    tokens = _text_tokens(bundle, text) if vocabulary >= LEAST_TEXT_IDS else None
    session = OrtSession(bundle, graph=SCORING, threads=threads)
    amount = replace(amount, batch=1) if session.cache_lengths else amount.fitted(vocabulary)

    def model(*, reduced: bool) -> Callable[[int], PromptModel]:
        return lambda seed: BundlePromptModel(session, reduced=reduced)

    return beside_dense(
        model(reduced=True),
        model(reduced=False),
        tokens,
        tasks_for(config),
        amount,
        plan=plan.to_json(),
        on_progress=on_progress,
    )


def _text_tokens(bundle: Path, text: str) -> Tokens:
    codec = TextCodec(bundle)
    return encode_text(text, lambda t, special: codec.encode(t, special=special))


def reduction_of_bundle(bundle: Path) -> ReductionPlan | None:
    """Return the plan that the graph of `bundle` follows, None where it reduces nothing.

    Raises: BundleError, RecipeError for a plan that cannot be meant.
    """
    table = Manifest.read(bundle).recipe.get("reduction")
    if table is None:
        return None
    plan = ReductionPlan.from_json(table, f"{bundle}: recipe: reduction")
    return plan if plan.layers else None
