"""PyTorch's logits of a prompt whose tokens are reduced, one decoder block in memory at a time.

Letters: T tokens, K tokens left, M further tokens, V vocabulary.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from edgeslim.checkpoint import Checkpoint, Skeleton, quiet_transformers
from edgeslim.errors import CheckpointError, ExportError
from edgeslim.exporters.plan import Rounding
from edgeslim.exporters.reference import Logits, Tokens, fill_outside_blocks, rounder
from edgeslim.tokens.plan import ReductionPlan
from edgeslim.tokens.prefill import extend, reduced_prefill

_CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class ReducedLogits:
    """logits: [K, V] of the tokens left of a prompt, at positions [K]; further: [M, V] of what was read after it."""

    logits: Logits
    positions: Tokens
    further: Logits


def reduced_logits(
    checkpoint: Path, prompt: Tokens, further: Tokens, plan: ReductionPlan, *, rounding: Rounding | None = None
) -> ReducedLogits:
    """Return PyTorch's float32 logits for `prompt` [1, T], reduced as `plan` says, and for `further` [1, M] after it.

    `rounding` is as in `reference_logits`.

    Raises: ExportError when transformers cannot run the checkpoint.
    """
    try:
        with quiet_transformers():
            skeleton = Checkpoint.open(checkpoint).skeleton()
            with _streamed(skeleton, rounder(rounding)), torch.inference_mode():
                prefilled = reduced_prefill(skeleton.model, torch.from_numpy(prompt), plan)
                after = prefilled.logits[:, :0]
                if further.shape[1]:
                    after, _ = extend(skeleton.model, prefilled.cache, torch.from_numpy(further))
    except CheckpointError as fault:
        raise ExportError(f"no reference to compare with: {fault}") from fault
    return ReducedLogits(
        logits=_array(prefilled.logits), positions=prefilled.positions[0].numpy(), further=_array(after)
    )


@contextmanager
def _streamed(skeleton: Skeleton, prepare: Callable[[nn.Module, str], None]) -> Iterator[None]:
    """Let each block of `skeleton` be loaded and `prepare`d when its first norm runs, until the next one is.

    A reduced prefill calls the parts of a block, not the block.
    """
    fill_outside_blocks(skeleton, prepare)
    loaded: list[int] = []
    hooks = []
    for index, block in enumerate(skeleton.blocks):

        def load(*_: object, index: int = index) -> None:
            while loaded:
                skeleton.empty_block(loaded.pop())
            loaded.append(index)
            prepare(skeleton.fill_block(index, _CPU), skeleton.block_names[index])

        first = block.norm if hasattr(block, "norm") else block.input_layernorm
        assert isinstance(first, nn.Module)
        hooks.append(first.register_forward_pre_hook(load))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _array(logits: Tensor) -> Logits:
    return np.asarray(logits[0].float().numpy())
