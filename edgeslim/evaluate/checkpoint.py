"""Perplexity of a transformers model."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from edgeslim.errors import RecipeError
from edgeslim.evaluate.perplexity import (
    Nll,
    PerplexityResult,
    Progress,
    Rule,
    Windows,
    encode_text,
    nll_of_logits,
    perplexity,
    windows_at_once,
)


def model_perplexity(
    model: Any,
    tokenizer: Any,
    text: str,
    *,
    seqlen: int,
    rule: Rule = "edgeslim",
    device: str = "cpu",
    on_progress: Progress | None = None,
) -> PerplexityResult:
    """Return the perplexity of `model`, a transformers causal language model, on `text` tokenized by `tokenizer`.

    The model is moved to `device` and, on a CPU, to float32, and stays there.
    Raises: EvaluationError; RecipeError when `seqlen` exceeds the positions the model knows.
    """
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and seqlen > limit:
        raise RecipeError(f"seqlen must be at most {limit}, the model's context, got {seqlen}")
    tokens = encode_text(text, lambda t, special: _encode(tokenizer, t, special), rule)
    batch = windows_at_once(seqlen, model.config.get_text_config().vocab_size)
    score = model_scorer(model, device)
    return perplexity(tokens, score, seqlen=seqlen, rule=rule, batch=batch, on_progress=on_progress)


def model_scorer(model: Any, device: str = "cpu") -> Callable[[Windows], Nll]:
    """Return a function from windows [B, T] to negative log-likelihoods [B, T-1], run by `model` on `device`."""
    on_cpu = torch.device(device).type == "cpu"
    model.to(device=device, dtype=torch.float32 if on_cpu else None).eval()

    @torch.inference_mode()
    def score(windows: Windows) -> Nll:
        logits = model(input_ids=torch.from_numpy(windows[:, :-1]).to(device), use_cache=False).logits
        return nll_of_logits(logits.numpy(), windows[:, 1:]) if on_cpu else _nll_on_device(logits, windows[:, 1:])

    return score


def _nll_on_device(logits: torch.Tensor, targets: Windows) -> Nll:
    """Return what `nll_of_logits` does, computed where `logits` [B, T, V] lie, so that they need not be moved."""
    wanted = torch.from_numpy(np.ascontiguousarray(targets)).to(logits.device)
    nll = [
        torch.logsumexp(row.float(), -1).double() - row.gather(-1, target[:, None])[:, 0].double()
        for row, target in zip(logits, wanted, strict=True)
    ]
    return torch.stack(nll).cpu().numpy()


def _encode(tokenizer: Any, text: str, special: bool) -> list[int]:
    # Not verbose: a whole file is longer than any model's context, and is cut into windows afterwards.
    return list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])
