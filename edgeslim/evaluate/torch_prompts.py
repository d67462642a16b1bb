"""A transformers model as the reduction suite sees models, and the suite on a checkpoint."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from edgeslim.checkpoint import Checkpoint
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
from edgeslim.reducer import read_config
from edgeslim.tokens.plan import ReductionPlan, plan_of_config
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


def checkpoint_reduction(
    checkpoint: Checkpoint,
    text: str,
    amount: Amount,
    *,
    device: str = "cpu",
    on_progress: Progress | None = None,
) -> ReductionResult:
    """Compare the checkpoint's model, reduced by the plan in its config.json, with itself unreduced.

    Raises: EvaluationError where there is no plan or the text is too short, CheckpointError.
    """
    config = read_config(checkpoint.folder)
    plan = plan_of_config(config, checkpoint.folder / "config.json")
    if plan is None:
        raise EvaluationError(f"{checkpoint.folder}: no plan of token reduction; write one with `edgeslim reduce`")
    model, tokens = checkpoint.load(), text_tokens(checkpoint, config, text)
    return beside_dense(
        prompt_models(model, plan, device),
        prompt_models(model, None, device),
        tokens,
        tasks_for(config),
        amount.fitted(config.get("vocab_size") or 0),
        plan=plan.to_json(),
        on_progress=on_progress,
    )


def prompt_models(model: Any, plan: ReductionPlan | None, device: str = "cpu") -> Callable[[int], PromptModel]:
    """Return a function from a seed to the model with `plan` under that seed, or dense."""
    return lambda seed: TorchPromptModel(model, plan and replace(plan, seed=seed), device)


def text_tokens(checkpoint: Checkpoint, config: dict[str, Any], text: str) -> Tokens | None:
    """Return the tokens of `text`, None for a model of too few ids to be scored on any."""
    if config.get("vocab_size", LEAST_TEXT_IDS) < LEAST_TEXT_IDS:
        return None
    tokenizer = checkpoint.tokenizer()
    return encode_text(text, lambda t, special: tokenizer(t, add_special_tokens=special, verbose=False)["input_ids"])
