"""Which blocks and heads go: the one whose absence costs least, then all that are left are measured again.

Every step is a line of the journal, so that a killed search goes on after its last step.

References
[1] Muñoz, Yuan & Jain, Mamba-Shedder (arXiv 2501.17088).
"""

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgeslim.errors import CheckpointError, RecipeError
from edgeslim.journal import Journal
from edgeslim.progress import Progress
from edgeslim.pruning.heads import HeadShape, fitted_outputs, kept_parts, norm_gain
from edgeslim.shedding.model import SheddableModel, States

MIXERS = ("Mamba2Mixer", "NemotronHMamba2Mixer")
"""Classes of transformers whose heads can be taken out."""


@dataclass(frozen=True, kw_only=True)
class Amount:
    """How much goes: whole blocks, heads of every mixer, or a share of all parameters (blocks first, then heads)."""

    blocks: int = 0
    heads: int = 0
    parameters: float | None = None


@dataclass(frozen=True, kw_only=True)
class Found:
    """What goes: blocks by their numbers, in order of choice, and heads of each block that stays."""

    blocks: list[int]
    heads: dict[int, list[int]]
    loss: float


def check_amount(model: SheddableModel, amount: Amount, method: str) -> None:
    """Raise RecipeError where `model` has not that much to take out, or the share of its parameters is too small."""
    sizes, shapes = _sizes(model), dict(_shapes(model))
    if amount.blocks >= len(sizes):
        raise RecipeError(f"blocks must be less than the model's {len(sizes)}, got {amount.blocks}")
    if amount.heads and not shapes:
        raise RecipeError("heads can be taken out of Mamba-2 mixers only, and the model has none")
    if amount.heads and method == "last":
        raise RecipeError("method last is for blocks; take measured, random or magnitude for heads")
    groups, heads = max(((shape.groups, shape.heads) for shape in shapes.values()), default=(1, 1))
    if amount.heads and (amount.heads % groups or amount.heads >= heads):
        raise RecipeError(f"heads must be a multiple of {groups} below {heads}, got {amount.heads}")
    if amount.parameters is None:
        return
    total = _count(model.model)
    least = min(min(sizes), (method != "last" and _round_size(model)) or min(sizes))
    if amount.parameters * total < least:
        raise RecipeError(f"parameters {amount.parameters:g} is less than the least that can go, {least / total:.4f}")


class Search:
    """One search on `model`, which it changes, for an `amount` that `check_amount` let pass.

    `method` is measured, random, last or magnitude. `refit` solves the output projections of smaller mixers for the
    dense mixers' outputs. `dtype_of` says in which dtype a tensor of a block is stored: what is solved is rounded so.
    `can_go` says whether blocks can go together.
    """

    def __init__(
        self,
        model: SheddableModel,
        amount: Amount,
        journal: Journal,
        progress: Progress,
        *,
        method: str = "measured",
        refit: bool = True,
        seed: int = 0,
        dtype_of: Callable[[int, str], torch.dtype] = lambda index, name: torch.float32,
        can_go: Callable[[Collection[int]], bool] = lambda gone: True,
    ) -> None:
        self.model, self._amount, self._journal, self._progress = model, amount, journal, progress
        self._method, self._refit, self._seed, self._dtype_of, self._can_go = method, refit, seed, dtype_of, can_go
        self._heads = {index: list(range(shape.heads)) for index, shape in _shapes(model)}
        self._originals: dict[int, nn.Module] = {}
        self._sizes = _sizes(model)

    def run(self) -> Found:
        """Choose and take out; return what went."""
        before = {index: list(heads) for index, heads in self._heads.items()}
        share = self._amount.parameters
        left = self._shed_blocks(None if share is None else share * _count(self.model.model))
        rounds = self._rounds(left)
        for number in range(rounds):
            self.shed_round(number, rounds)
        here = {index: kept for index, kept in self._heads.items() if index not in self.model.gone}
        heads = {index: sorted(set(before[index]) - set(kept)) for index, kept in here.items()}
        order = [self._journal.steps[key]["block"] for key in self._journal.steps if key.startswith("block ")]
        return Found(blocks=order, heads=heads if rounds else {}, loss=self.model.loss())

    def parameters(self) -> int:
        """Return how many parameters the model has without the blocks and heads that are out."""
        gone = sum(self._sizes[index] for index in self.model.gone)
        return _count(self.model.model) - gone

    def smaller_tensors(self, index: int) -> dict[str, Tensor]:
        """Return the tensors of block `index` by their names in it, where heads of it went; else none."""
        if index not in self._originals:
            return {}
        prefix = "mixer."
        return {prefix + name: value for name, value in self.model.blocks[index].mixer.state_dict().items()}  # type: ignore[union-attr]

    # ---- blocks ------------------------------------------------------------------------------------------------

    def _shed_blocks(self, budget: float | None) -> float:
        """Take blocks out, as many as asked for or fit the `budget` of parameters; return what is left of it.

        Raises: CheckpointError where none is left that can go before `amount.blocks` went.
        """
        count, left = self._amount.blocks, budget or 0.0
        step = 0
        while step < count if budget is None else min(self._sizes) <= left:
            total = count if budget is None else int(budget // min(self._sizes))
            index = self._next_block(step, total, None if budget is None else left)
            if index is None and budget is None:
                raise CheckpointError(
                    f"{count} blocks cannot go: without {sorted(self.model.gone)} the configuration can leave out none"
                )
            if index is None:
                break
            self.model.gone.add(index)
            left -= self._sizes[index]
            step += 1
        return left

    def _next_block(self, step: int, total: int, limit: float | None) -> int | None:
        key = f"block {step}"
        if key not in self._journal.steps:
            costs = self._block_costs(step, total)
            fitting = [index for index in costs if limit is None or self._sizes[index] <= limit]
            if not fitting:
                return None
            best = min(fitting, key=lambda index: costs[index])
            self._journal.finish(key, {"block": best, "costs": {str(k): v for k, v in costs.items()}})
        return int(self._journal.steps[key]["block"])

    def _block_costs(self, step: int, total: int) -> dict[int, float]:
        """Return what the absence of each block that can go costs: the loss, or the baseline's number."""
        left = [index for index in range(len(self.model.blocks)) if index not in self.model.gone]
        here = [index for index in left if len(left) > 1 and self._can_go(self.model.gone | {index})]
        if self._method == "random":
            order = torch.randperm(len(self.model.blocks), generator=torch.Generator().manual_seed(self._seed))
            return {index: float(order[index]) for index in here}
        if self._method == "last":
            return {index: float(-index) for index in here}
        if self._method == "magnitude":
            return {index: _mean_square(self.model.blocks[index]) for index in here}
        return dict(self._measured_blocks(left, here, f"block {step + 1} of {total}"))

    def _measured_blocks(self, left: Sequence[int], here: Collection[int], label: str) -> Iterator[tuple[int, float]]:
        states = self.model.embedded()
        for done, index in enumerate(left):
            if index in here:
                self._progress(done, len(left), f"{label}: without block {index}")
                yield index, self.model.loss(index + 1, states)
            states = self.model.advance(index, states)

    # ---- heads -------------------------------------------------------------------------------------------------

    def _rounds(self, left: float) -> int:
        """Return how many times every mixer gives up a head of each group."""
        shapes = [shape for _, shape in _shapes(self.model)]
        if not shapes or (self._amount.parameters is not None and self._method == "last"):
            return 0
        if self._amount.parameters is None:
            return self._amount.heads // shapes[0].groups
        most = min(shape.heads // shape.groups for shape in shapes) - 1
        return min(most, int(left // _round_size(self.model)))

    def shed_round(self, number: int, rounds: int) -> None:
        """Take a head of each group out of every mixer, from the first block to the last."""
        states = self.model.embedded()
        here = [index for index in range(len(self.model.blocks)) if index not in self.model.gone]
        for done, index in enumerate(here):
            self._progress(done, len(here), f"heads, round {number + 1} of {rounds}: block {index}")
            if index in self._heads:
                self._shed_heads_of(index, number, states)
            states = self.model.advance(index, states)

    def _shed_heads_of(self, index: int, number: int, states: States) -> None:
        key, mixer = f"heads {number} block {index}", self._mixer(index)
        shape = _shape(mixer)
        if key not in self._journal.steps:
            costs = self._head_costs(index, number, states)
            going = [min(group, key=lambda head: costs[head]) for group in _groups(shape)]
            names = [self._heads[index][head] for head in going]
            self._journal.finish(key, {"heads": names, "costs": costs})
        gone = set(self._journal.steps[key]["heads"])
        keep = [place for place, head in enumerate(self._heads[index]) if head not in gone]
        self._shrink(index, keep, states)
        self._heads[index] = [self._heads[index][place] for place in keep]

    def _head_costs(self, index: int, number: int, states: States) -> list[float]:
        """Return what the absence of each head costs: the loss without its part of the output, or the baseline's."""
        mixer = self._mixer(index)
        shape, weight = _shape(mixer), mixer.out_proj.weight
        parts = [slice(head * shape.size, (head + 1) * shape.size) for head in range(shape.heads)]
        if self._method == "random":
            seed = (self._seed * 1009 + number) * 1009 + index
            return torch.rand(shape.heads, generator=torch.Generator().manual_seed(seed)).tolist()
        if self._method == "magnitude":
            return [float(weight[:, part].square().sum()) for part in parts]
        costs = []
        for part in parts:
            kept = weight[:, part].clone()
            weight[:, part] = 0
            costs.append(self.model.loss(index, states))
            weight[:, part] = kept
        return costs

    @torch.no_grad()
    def _shrink(self, index: int, keep: list[int], states: States) -> None:
        """Make the mixer of block `index` one of the heads `keep`, with its norm and output projection fitted to it."""
        mixer = self._mixer(index)
        if index not in self._originals:
            self._originals[index] = copy.deepcopy(mixer)
        shape, before = _shape(mixer), self._outputs(index, mixer, states)
        mean_square = torch.stack([x.square().mean(0) for x in before]).mean(0)
        gain = norm_gain(mean_square, mixer.norm.weight, shape, keep)
        shrink_mixer_(mixer, keep)
        mixer.norm.weight.mul_(gain)
        self._round(index, "norm.weight")
        if self._refit:
            self._fit(index, keep, states)

    def _fit(self, index: int, keep: list[int], states: States) -> None:
        mixer, original = self._mixer(index), self._originals[index]
        target = original.out_proj.weight  # type: ignore[union-attr]
        x, fewer = self._outputs(index, original, states), self._outputs(index, mixer, states)
        count = sum(len(part) for part in x)
        h = sum((part.T.double() @ part.double() for part in fewer), torch.zeros(())) / count
        c = sum((a.T.double() @ b.double() for a, b in zip(x, fewer, strict=True)), torch.zeros(())) / count
        mixer.out_proj.weight.copy_(fitted_outputs(target, mixer.out_proj.weight, h, c))  # type: ignore[arg-type]
        self._round(index, "out_proj.weight")

    def _outputs(self, index: int, mixer: Any, states: States) -> list[Tensor]:
        """Return what enters the output projection of `mixer` in block `index`, [tokens, I] a batch."""
        found: list[Tensor] = []
        block: Any = self.model.blocks[index]
        own, block.mixer = block.mixer, mixer
        handle = mixer.out_proj.register_forward_pre_hook(lambda _, args: found.append(args[0].flatten(0, -2)))
        try:
            self.model.advance(index, states)
        finally:
            handle.remove()
            block.mixer = own
        return found

    def _round(self, index: int, name: str) -> None:
        value = self._mixer(index).get_parameter(name)
        value.copy_(value.to(self._dtype_of(index, f"mixer.{name}")))

    def _mixer(self, index: int) -> Any:
        return self.model.blocks[index].mixer


def shrink_mixer_(mixer: Any, keep: Sequence[int]) -> None:
    """Make transformers' Mamba-2 `mixer` one of the heads `keep` (ascending places of those it has)."""
    shape = _shape(mixer)
    for name, (dimension, places) in kept_parts(shape, keep).items():
        path, _, kind = name.rpartition(".")
        owner = mixer.get_submodule(path)
        value = getattr(owner, kind, None)
        if value is not None:
            smaller = value.detach().index_select(dimension, places.to(value.device)).contiguous()
            setattr(owner, kind, nn.Parameter(smaller, requires_grad=False))
    inner = len(keep) * shape.size
    mixer.num_heads, mixer.intermediate_size = len(keep), inner
    mixer.conv_dim = inner + 2 * shape.groups * shape.state
    mixer.conv1d.in_channels = mixer.conv1d.out_channels = mixer.conv1d.groups = mixer.conv_dim
    mixer.norm.group_size = inner // shape.groups


def _shapes(model: SheddableModel) -> Iterator[tuple[int, HeadShape]]:
    """Yield number and shape of the mixers whose heads can go, of the blocks that are there."""
    for index, block in enumerate(model.blocks):
        mixer = getattr(block, "mixer", None)
        if index not in model.gone and type(mixer).__name__ in MIXERS:
            yield index, _shape(mixer)


def _round_size(model: SheddableModel) -> int:
    """Return how many parameters go where every mixer gives up a head of each group."""
    mixers: list[Any] = [getattr(model.blocks[index], "mixer", None) for index, _ in _shapes(model)]
    return sum(_shape(m).parameters(m.hidden_size, m.conv_kernel_size) * m.n_groups for m in mixers)


def _sizes(model: SheddableModel) -> list[int]:
    return [_count(block) for block in model.blocks]


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _shape(mixer: Any) -> HeadShape:
    return HeadShape(heads=mixer.num_heads, size=mixer.head_dim, groups=mixer.n_groups, state=mixer.ssm_state_size)


def _groups(shape: HeadShape) -> list[range]:
    per_group = shape.heads // shape.groups
    return [range(group * per_group, (group + 1) * per_group) for group in range(shape.groups)]


def _mean_square(block: nn.Module) -> float:
    """Return the mean square of the weights of a block's matrices."""
    matrices = [parameter for parameter in block.parameters() if parameter.dim() == 2]
    return sum(float(m.double().square().sum()) for m in matrices) / sum(m.numel() for m in matrices)
