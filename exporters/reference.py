"""transformers' own logits of a checkpoint, one decoder block in memory at a time.

Letters: T tokens, V vocabulary.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edgeslim.checkpoint import Checkpoint, Skeleton, quiet_transformers
from edgeslim.errors import CheckpointError, ExportError
from edgeslim.exporters.plan import Rounding
from edgeslim.tensorfile import read_tensor

Logits = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.int64]

_CPU = torch.device("cpu")


def reference_logits(checkpoint: Path, tokens: Tokens, *, rounding: Rounding | None = None) -> Logits:
    """Return transformers' float32 logits [T, V] for `tokens` [1, T].

    With `rounding`, linears, head and token embedding are first rounded by it.

    Raises: ExportError when transformers cannot run the checkpoint.
    """
    try:
        with quiet_transformers():
            skeleton = Checkpoint.open(checkpoint).skeleton()
            with _streamed(skeleton, rounder(rounding)), torch.inference_mode():
                logits = skeleton.model(torch.from_numpy(tokens), use_cache=False).logits[0]
    except CheckpointError as fault:
        raise ExportError(f"no reference to compare with: {fault}") from fault
    return np.asarray(logits.float().numpy())


def rounder(rounding: Rounding | None) -> Callable[[nn.Module, str], None]:
    """Return what is done with each module once it is loaded: its weights are rounded, by `rounding` where given."""

    def prepare(module: nn.Module, name: str) -> None:
        if rounding is not None:
            round_weights_(module, rounding, name)

    return prepare


def round_weights_(model: nn.Module, rounding: Rounding, name: str = "") -> None:
    """Round the linears, and the embeddings of tokens, of `model` in place; an embedding before a head tied to it.

    `name` is what the checkpoint calls `model`.
    """
    done: set[int] = set()
    for path, module in model.named_modules():
        is_convolution = type(module).__name__ == "Conv1D"  # GPT-2's linear, with weights [inputs, outputs]
        if not (is_convolution or isinstance(module, nn.Linear | nn.Embedding)):
            continue
        weight = module.weight.data
        assert isinstance(weight, torch.Tensor)
        if weight.device.type == "meta" or weight.data_ptr() in done:
            continue
        done.add(weight.data_ptr())
        rows = weight.T if is_convolution else weight
        full = f"{name}.{path}".strip(".")
        rows.copy_(torch.from_numpy(rounding(full, rows.numpy(), isinstance(module, nn.Embedding))))


@contextmanager
def _streamed(skeleton: Skeleton, prepare: Callable[[nn.Module, str], None]) -> Iterator[None]:
    """Let each decoder block of `skeleton` be loaded and `prepare`d just before it runs, and dropped after."""
    fill_outside_blocks(skeleton, prepare)
    hooks = []
    for index, module in enumerate(skeleton.blocks):

        def load(*_: object, index: int = index) -> None:
            prepare(skeleton.fill_block(index, _CPU), skeleton.block_names[index])

        def drop(*_: object, index: int = index) -> None:
            skeleton.empty_block(index)

        hooks += [module.register_forward_pre_hook(load), module.register_forward_hook(drop)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def fill_outside_blocks(skeleton: Skeleton, prepare: Callable[[nn.Module, str], None]) -> None:
    """Load and `prepare` what is no decoder block: embedding, head, norms."""
    skeleton.fill_outside_blocks(_CPU)
    _fill_head(skeleton)
    embedding, head = skeleton.model.get_input_embeddings(), skeleton.model.get_output_embeddings()  # type: ignore[operator]
    prepare(nn.ModuleList([embedding, head]), "")
    for name, module in skeleton.model.named_modules():
        if isinstance(module, nn.Linear) and module is not head and module.weight.device.type != "meta":
            prepare(module, name)


def _fill_head(skeleton: Skeleton) -> None:
    """Give the head its own weights, or the embedding's where they are tied."""
    model = skeleton.model
    head = model.get_output_embeddings()  # type: ignore[operator]
    if getattr(skeleton.checkpoint.config, "tie_word_embeddings", False):
        head.weight = model.get_input_embeddings().weight  # type: ignore[operator]
        return
    name = next(name for name, module in model.named_modules() if module is head)
    for kind in [kind for kind, _ in head.named_parameters(recurse=False)]:
        value = read_tensor(skeleton.entry(f"{name}.{kind}")).to(torch.float32)
        setattr(head, kind, nn.Parameter(value, requires_grad=False))
