"""A bundle as the reduction suite sees models: its scoring graph on onnxruntime. Needs no torch.

Letters: B prompts, N tokens each, K left after the prefill, M further tokens, V vocabulary.
"""

from pathlib import Path

import numpy as np

from edgeslim.evaluate.reduction import Logits, Tokens
from edgeslim.runtime.manifest import SCORING
from edgeslim.runtime.session import OrtSession


class BundlePromptModel:
    """A `PromptModel` on a bundle: reduced as its graph says."""

    def __init__(self, bundle: Path, *, threads: int | None = None) -> None:
        """Load the scoring graph of `bundle`.

        Raises: BundleError, RuntimeUnavailable.
        """
        self._session = OrtSession(bundle, graph=SCORING, threads=threads)

    def prefill(self, prompts: Tokens) -> tuple[Logits, Tokens]:
        """See `PromptModel.prefill`."""
        self._session.reset(len(prompts))
        return self._session.feed_kept(prompts)

    def extend(self, tokens: Tokens) -> Logits:
        """See `PromptModel.extend`. Attention takes several tokens after others for one sequence only."""
        if len(tokens) == 1 or not self._session.cache_lengths:
            return self._session.feed_all(tokens)
        return np.concatenate([self._session.feed_all(column) for column in np.split(tokens, tokens.shape[1], 1)], 1)
