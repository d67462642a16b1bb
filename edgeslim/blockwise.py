"""Walk a model's decoder blocks in order, one in memory at a time.

Two streams of hidden states go through the blocks: the *pruned* stream, what each block really sees once those before
it are pruned, and the *dense* stream, what it saw in the original model.
"""

import copy
import fnmatch
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgeslim.activations import Activations
from edgeslim.checkpoint import Skeleton
from edgeslim.errors import CheckpointError, RecipeError, did_you_mean
from edgeslim.experts import SplitExperts

SENSITIVE = ("*.x_proj", "*.dt_proj")
"""Small, sensitive matrices of Mamba-1: pruned only where an include pattern names them, and the block calls them
(transformers multiplies by dt_proj's weight without calling it)."""

_BATCH_TOKENS = 2048


@dataclass(frozen=True)
class BlockCall:
    """What a model hands a block besides the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def values(self) -> list[Any]:
        """All arguments."""
        return [*self.args, *self.kwargs.values()]


class _Embedded:
    """Stands in a recorded call for the embedded tokens, which differ from batch to batch."""


def _is_embedded(value: Any) -> bool:
    return isinstance(value, _Embedded)


def _marked(value: Any, embedded: Tensor) -> Any:
    """Return `value`, or the mark of the `embedded` tokens where it is a copy of them."""
    same = isinstance(value, Tensor) and value.shape == embedded.shape and torch.equal(value, embedded)
    return _Embedded() if same else value


class BlockRunner:
    """Feeds calibration tokens into a skeleton and runs its blocks one by one."""

    def __init__(self, skeleton: Skeleton, tokens: Tensor, device: torch.device) -> None:
        """`tokens`: int64 [samples, seqlen]."""
        self._skeleton = skeleton
        self._device = device
        self._batches = tokens.split(max(1, _BATCH_TOKENS // tokens.shape[1]))
        self._calls: dict[int, list[BlockCall]] = {}
        self._returns = 0  # how many values a block returns as a tuple; 0: its output alone
        self._embedded: Activations | None = None

    @torch.no_grad()
    def embed(self, *streams: Activations) -> None:
        """Fill the empty `streams` with the hidden states that enter the first block."""
        skeleton = self._skeleton
        skeleton.fill_outside_blocks(self._device)
        first = self._catch_first(self._batches[0])
        block = skeleton.fill_block(0, self._device)
        out = block(*first.args, **first.kwargs)
        self._returns = len(out) if isinstance(out, tuple) else 0
        skeleton.empty_block(0)
        for batch in self._batches:
            calls: list[BlockCall] = []
            hidden: list[Tensor] = []
            with self._recording(calls, hidden):
                skeleton.base(input_ids=batch.to(self._device), use_cache=False)
            self._calls.setdefault(len(batch), calls)
            if self._embedded is None and any(_is_embedded(v) for call in calls for v in call.values):
                self._embedded = Activations(streams[0].path.with_name("embedded.hidden"))
            for stream in (*streams, *([] if self._embedded is None else [self._embedded])):
                stream.append(hidden[0])
        skeleton.empty_outside_blocks()

    @torch.no_grad()
    def run(self, index: int, block: nn.Module, hidden: Tensor, batch: int) -> Tensor:
        """Return the output of `block`, number `index` of the model, for `hidden` [batch, seqlen, hidden].

        `batch` is the number of the batch that `hidden` comes from.
        """
        call = self._calls[len(hidden)][index]
        args = [self._given(value, batch) for value in call.args]
        kwargs = {name: self._given(value, batch) for name, value in call.kwargs.items()}
        out = block(hidden.to(self._device), *args, **kwargs)
        return out[0] if isinstance(out, tuple) else out  # type: ignore[no-any-return]

    def advance(self, index: int, block: nn.Module, stream: Activations) -> None:
        """Replace the hidden states in `stream` by the outputs of `block` for them."""
        for batch in range(len(stream)):
            stream.write(batch, self.run(index, block, stream.read(batch), batch))

    def _given(self, value: Any, batch: int) -> Any:
        """Return an argument of a recorded call, the embedded tokens of batch number `batch` where it is these."""
        if self._embedded is None or not _is_embedded(value):
            return value
        return self._embedded.read(batch).to(self._device)

    def _catch_first(self, batch: Tensor) -> BlockCall:
        """Return the whole call, hidden states included, that the model makes to its first block."""
        block = self._skeleton.blocks[0]

        def catch(*args: Any, **kwargs: Any) -> None:
            raise _Caught(args, kwargs)

        with _replaced_forward(block, catch):
            try:
                self._skeleton.base(input_ids=batch.to(self._device), use_cache=False)
            except _Caught as caught:
                return BlockCall(*caught.args)
        raise CheckpointError(f"{type(self._skeleton.model).__name__}: its forward never calls its first block")

    @contextmanager
    def _recording(self, calls: list[BlockCall], hidden: list[Tensor]) -> Iterator[None]:
        """Let every block return its input and note how it was called."""

        def record(*args: Any, **kwargs: Any) -> Any:
            state = args[0] if args else kwargs.pop("hidden_states")
            hidden[:] = hidden or [state]
            rest = tuple(_marked(value, hidden[0]) for value in args[1:])
            calls.append(BlockCall(rest, {name: _marked(value, hidden[0]) for name, value in kwargs.items()}))
            return (state, *[None] * (self._returns - 1)) if self._returns else state

        blocks = list(self._skeleton.blocks)
        for block in blocks:
            block.forward = record
        try:
            yield
        finally:
            for block in blocks:
                del block.forward


class _Caught(Exception):
    """Carries a call out of a forward pass."""


class _Enough(Exception):
    """Ends a forward pass whose rest is not needed."""


def prunable_linears(
    block: nn.Module, name: str, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> dict[str, nn.Module]:
    """Return the linears of `block` to prune, by their full names.

    `include` keeps only the names that match one of its patterns, `exclude` drops those that match one of its.

    Raises: CheckpointError for fused expert tensors, which are no matrices.
    """
    linears = {f"{name}.{path}": module for path, module in block.named_modules() if _is_linear(module)}
    chosen = {full: module for full, module in linears.items() if _wanted(full, include, exclude)}
    for path, parameter in block.named_parameters():
        owner = f"{name}.{path.rpartition('.')[0]}"
        if (
            parameter.dim() == 3
            and not isinstance(block.get_submodule(path.rpartition(".")[0]), nn.Conv1d)
            and _wanted(owner, include, exclude)
        ):
            raise CheckpointError(
                f"{name}.{path}: a fused tensor of experts {list(parameter.shape)} cannot be pruned yet; "
                f"leave it out with --exclude '*.{path.rpartition('.')[0]}'"
            )
    return chosen


def check_patterns(names: Sequence[str], patterns: Sequence[str], option: str) -> None:
    """Raise RecipeError where one of `patterns` matches none of the linears called `names`."""
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            endings = {name.rpartition(".")[2] for name in names}
            raise RecipeError(f"{option} {pattern!r}: matches no linear{did_you_mean(pattern.strip('*.'), endings)}")


def all_linear_names(skeleton: Skeleton) -> list[str]:
    """Return the full name of every linear in every decoder block."""
    return [
        f"{name}.{path}"
        for name, block in zip(skeleton.block_names, skeleton.blocks, strict=True)
        for path, module in block.named_modules()
        if _is_linear(module)
    ]


def is_routed(block: nn.Module, name: str, prefix: str) -> bool:
    """Return whether only some tokens reach the linear `name` of `block`, whose full names begin with `prefix`."""
    path = name.removeprefix(prefix)
    owners = [path.rsplit(".", count)[0] for count in range(1, path.count(".") + 1)]
    return any(isinstance(block.get_submodule(owner), SplitExperts) for owner in owners)


def weight_matrix(module: nn.Module) -> Tensor:
    """Return the weight of a linear as [out, in]; transformers' Conv1D keeps it the other way round."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    return weight if isinstance(module, nn.Linear) else weight.T


def input_groups(
    run: Callable[[], object], linears: dict[str, nn.Module], *, optional: Container[str] = ()
) -> list[list[str]]:
    """Return the names of `linears` grouped by equal input (q, k and v share one), as `run` calls them in order.

    Raises: CheckpointError where `run` never calls one of them that is not `optional`.
    """
    seen: list[tuple[Tensor, list[str]]] = []

    def note(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            for tensor, names in seen:
                if tensor is args[0]:
                    names.append(name)
                    return
            seen.append((args[0], [name]))

        return hook

    handles = [module.register_forward_pre_hook(note(name)) for name, module in linears.items()]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    groups = [names for _, names in seen]
    missing = linears.keys() - {name for names in groups for name in names}
    missing = {name for name in missing if name not in optional}
    if missing:
        raise CheckpointError(f"{sorted(missing)[0]}: the block's forward never calls it, so its inputs are not known")
    return groups


def capture_inputs(
    run: Callable[[], Tensor], modules: Sequence[nn.Module], *, to_end: bool = False
) -> tuple[list[Tensor], Tensor | None]:
    """Return the input of each of `modules` as [tokens, in] during `run`, and the output of `run`.

    Unless `to_end`, the run stops once all inputs are there; its output is then None.
    """
    captured: dict[int, Tensor] = {}

    def keep(position: int) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            captured[position] = args[0].reshape(-1, args[0].shape[-1])
            if len(captured) == len(modules) and not to_end:
                raise _Enough

        return hook

    handles = [module.register_forward_pre_hook(keep(position)) for position, module in enumerate(modules)]
    out: Tensor | None = None
    try:
        out = run()
    except _Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return [captured[position] for position in range(len(modules))], out


def twin(block: nn.Module) -> nn.Module:
    """Return a copy of `block` with weights of its own."""
    return copy.deepcopy(block)


def _is_linear(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D)


def _wanted(name: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    if any(fnmatch.fnmatch(name, pattern) for pattern in exclude):
        return False
    if include:
        return any(fnmatch.fnmatch(name, pattern) for pattern in include)
    return not any(fnmatch.fnmatch(name, pattern) for pattern in SENSITIVE)


@contextmanager
def _replaced_forward(block: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    block.forward = forward
    try:
        yield
    finally:
        del block.forward
