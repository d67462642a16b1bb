"""What the walk through a model needs to know of its family.

A block is a mixer (scan or attention) with its residual, and what follows (a transformer's MLP, nothing in Mamba).
Letters: B batch, N tokens, H hidden size, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from edgeslim.errors import CheckpointError
from edgeslim.tokens.flops import ATTENTION_FAMILIES, FAMILIES, SCAN_FAMILIES
from edgeslim.tokens.methods import Seen

LayerState = tuple[Tensor, ...]
"""What a layer remembers; the first axis of each tensor is the batch."""


@dataclass(frozen=True, kw_only=True)
class Mixed:
    """A mixer's result: branch [B, N, H], the layer's new state, and what a step may look at, for a metric."""

    branch: Tensor
    state: LayerState
    look: Callable[[str], Seen]


class Blocks(Protocol):
    """The blocks of one model. Positions [B, N] are those of the original tokens."""

    depth: int

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the embeddings [B, N, H] of `tokens` [B, N]."""

    def mix(self, layer: int, x: Tensor, positions: Tensor, state: LayerState | None) -> Mixed:
        """Run the mixer of `layer`, with the norm before it, on `x` [B, N, H]; a state is gone on from."""

    def finish(self, layer: int, x: Tensor) -> Tensor:
        """Run what follows the mixer's residual sum."""

    def logits(self, x: Tensor) -> Tensor:
        """Return the float32 logits [B, N, V]."""

    def join(self, states: list[LayerState]) -> LayerState:
        """Return the states of several batches as one."""


def blocks_of(model: Any) -> Blocks:
    """Return the blocks of `model`, a transformers causal language model.

    Raises: CheckpointError for a family whose tokens cannot be reduced.
    """
    family = model.config.model_type
    if family in SCAN_FAMILIES:
        from edgeslim.tokens.scan_blocks import Mamba2Blocks, MambaBlocks

        return Mamba2Blocks(model) if family == "mamba2" else MambaBlocks(model)
    if family in ATTENTION_FAMILIES:
        from edgeslim.tokens.attention_blocks import AttentionBlocks

        return AttentionBlocks(model)
    raise CheckpointError(f"token reduction knows {', '.join(FAMILIES)}; the model is of type {family!r}")
