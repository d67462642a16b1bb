"""Experts as linears of their own.

transformers 5 keeps the experts of a layer in one tensor a projection, checkpoints keep each expert's matrices apart.
Where a checkpoint does, the model gets them apart too: every matrix then has a name, an entry in the files and inputs
of its own, like any other linear.

Letters: E experts, H hidden size, F feed-forward size, K experts a token.
"""

from collections.abc import Container
from typing import Any

import torch
from torch import Tensor, nn


class SplitExperts(nn.ModuleList):
    """Gated feed-forward layers of which each token goes through a few."""

    def __init__(self, count: int, hidden: int, inner: int, act_fn: Any) -> None:
        super().__init__([_Expert(hidden, inner, act_fn) for _ in range(count)])

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Return [tokens, H], the sum over each token's experts; indices and weights are [tokens, K]."""
        result = torch.zeros_like(hidden_states)
        for index, expert in enumerate(self):
            token, place = torch.where(top_k_index == index)
            result.index_add_(0, token, expert(hidden_states[token]) * top_k_weights[token, place, None])
        return result


class _Expert(nn.Module):
    def __init__(self, hidden: int, inner: int, act_fn: Any) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)
        self.act_fn = act_fn

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


def split_experts_(model: nn.Module, names: Container[str]) -> None:
    """Replace each fused set of gated experts in `model` whose matrices the checkpoint's tensors `names` keep apart."""
    fused = [(name, module) for name, module in model.named_modules() if f"{name}.0.gate_proj.weight" in names]
    for name, module in fused:
        both, act_fn = getattr(module, "gate_up_proj", None), getattr(module, "act_fn", None)
        if not isinstance(both, nn.Parameter) or both.dim() != 3 or act_fn is None:
            continue
        count, rows, hidden = both.shape
        with torch.device("meta"):
            parts = SplitExperts(count, hidden, rows // 2, act_fn)
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, parts.requires_grad_(False))
