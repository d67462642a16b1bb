"""A transformers model as the reduction suite sees models."""

from typing import Any

import torch

from edgeslim.evaluate.reduction import Logits, Tokens
from edgeslim.tokens.plan import ReductionPlan
from edgeslim.tokens.prefill import PromptCache, extend, reduced_prefill


class TorchPromptModel:
    """A `PromptModel` in PyTorch: reduced as `plan` says, dense without one."""

    def __init__(self, model: Any, plan: ReductionPlan | None = None, device: str = "cpu") -> None:
        self._model, self._plan, self._device = model.eval().to(device), plan, device
        self._cache: PromptCache | None = None

    def prefill(self, prompts: Tokens) -> tuple[Logits, Tokens]:
        """See `PromptModel.prefill`."""
        prefilled = reduced_prefill(self._model, torch.from_numpy(prompts).to(self._device), self._plan)
        self._cache = prefilled.cache
        return prefilled.logits.cpu().numpy(), prefilled.positions.cpu().numpy()

    def extend(self, tokens: Tokens) -> Logits:
        """See `PromptModel.extend`."""
        if self._cache is None:
            raise ValueError("extend before prefill")
        logits, self._cache = extend(self._model, self._cache, torch.from_numpy(tokens).to(self._device))
        return logits.cpu().numpy()
