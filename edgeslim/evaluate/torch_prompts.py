"""A transformers model as the reduction suite sees models, and the suite on a checkpoint."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from edgeslim.checkpoint import Checkpoint
from edgeslim.errors import EvaluationError
from edgeslim.evaluate.perplexity import encode_text
from edgeslim.evaluate.recall import RecallTask, RecallVocabulary
from edgeslim.evaluate.reduction import (
    PROMPT,
    Amount,
    Logits,
    Progress,
    PromptModel,
    ReductionResult,
    Scores,
    Tokens,
    compare,
    recall_tasks,
    score,
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


LEAST_TEXT_IDS = 256
"""A model of fewer token ids is not scored on text: it cannot have been trained on any."""


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
    model, tokens, tasks = checkpoint.load(), text_tokens(checkpoint, config, text), tasks_for(config)

    def half(number: int) -> Progress | None:
        return None if on_progress is None else lambda done, total: on_progress(number * total + done, 2 * total)

    def scores(number: int, used: ReductionPlan | None) -> Scores:
        return score(prompt_models(model, used, device), tokens, tasks, amount, on_progress=half(number))

    return compare(scores(0, plan), scores(1, None), tasks, amount, plan.to_json())


def prompt_models(model: Any, plan: ReductionPlan | None, device: str = "cpu") -> Callable[[int], PromptModel]:
    """Return a function from a seed to the model with `plan` under that seed, or dense."""
    return lambda seed: TorchPromptModel(model, plan and replace(plan, seed=seed), device)


def text_tokens(checkpoint: Checkpoint, config: dict[str, Any], text: str) -> Tokens | None:
    """Return the tokens of `text`, None for a model of too few ids to be scored on any."""
    if config.get("vocab_size", LEAST_TEXT_IDS) < LEAST_TEXT_IDS:
        return None
    tokenizer = checkpoint.tokenizer()
    return encode_text(text, lambda t, special: tokenizer(t, add_special_tokens=special, verbose=False)["input_ids"])


def tasks_for(config: dict[str, Any], items: tuple[int, ...] = (4,)) -> list[RecallTask]:
    """Return the recall tasks that fit the model's vocabulary and context; none where they do not."""
    vocabulary = RecallVocabulary()
    if config.get("vocab_size", 0) < vocabulary.first + vocabulary.size:
        return []
    context = config.get("max_position_embeddings") or 1 << 30
    return recall_tasks(vocabulary, items=items, length=min(PROMPT, context - max(items)))
