"""Where to reduce, and by how much, for a wanted cut of the prefill's FLOPs. Needs no torch.

Source of the formula and of the layers: "Rethinking Token Reduction for State Space Models" (arXiv 2410.14725),
section 5.1 and appendix. The formula counts each layer alike and nothing else; counted FLOPs are those of
`edgeslim.tokens.flops` at a stated prompt length, and it is these that a schedule meets.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from edgeslim.errors import RecipeError
from edgeslim.tokens.flops import ModelShape, prefill_flops
from edgeslim.tokens.plan import BEFORE_ALL, ReductionPlan

PAPER_LAYERS = {
    24: (5, 8, 11, 14, 17, 20),
    48: (10, 15, 20, 25, 30, 35),
    64: (12, 17, 22, 27, 32, 37, 42),
}
TOLERANCE = 0.01
"""How far the counted cut may lie from the wanted one."""

LEAST_LEFT, LEAST_RATIO_OF_SCANS, LEAST_RATIO_OF_ATTENTION = 1 / 6, 0.55, 0.7
"""The least share of tokens that all steps of a chosen schedule together keep, and that each step keeps.

Measured on models that recall lists from 252 tokens, and on text: the later the steps of a state-space model, the less
is lost for the same cut, until so few tokens are left that they cannot hold the list. A transformer loses less by
several gentle steps than by few late ones (README, "Token reduction").
"""

_GRID = 10_000  # ratios have four decimals


def default_layers(depth: int, method: str = "utrc") -> tuple[int, ...]:
    """Return the layers that may reduce in a model of `depth` blocks; a schedule takes the last of them.

    The paper's where it has that depth, else those at the relative depths of its 48-layer schedule. `truncate` acts
    before the first block.
    """
    if method == "truncate":
        return (BEFORE_ALL,)
    if depth in PAPER_LAYERS:
        return PAPER_LAYERS[depth]
    scaled = (min(depth - 1, (2 * layer * depth + 48) // 96) for layer in PAPER_LAYERS[48])
    return tuple(sorted(set(scaled)))


def formula_cut(layers: Sequence[int], ratios: Sequence[float], depth: int) -> float:
    """Return the paper's cut: 1 - the mean over layers of the product of the ratios before that layer."""
    total = 0.0
    for layer in range(depth):
        left = 1.0
        for at, ratio in zip(layers, ratios, strict=True):
            left *= ratio if at < layer else 1.0
        total += left
    return 1 - total / depth


def formula_ratio(layers: Sequence[int], depth: int, cut: float) -> float | None:
    """Return the one ratio that gives `cut` by the formula, None where halving at every layer is too little."""
    if formula_cut(layers, [0.5] * len(layers), depth) < cut:
        return None
    low, high = 0.5, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if formula_cut(layers, [middle] * len(layers), depth) > cut else (low, middle)
    return (low + high) / 2


def counted_cut(shape: ModelShape, plan: ReductionPlan, tokens: int) -> float:
    """Return the share of a prefill's FLOPs that `plan` saves at a prompt of `tokens`, its own costs subtracted."""
    return 1 - prefill_flops(shape, tokens, plan) / prefill_flops(shape, tokens)


def with_cuts(shape: ModelShape, plan: ReductionPlan, tokens: int) -> ReductionPlan:
    """Return `plan` with the cuts it makes written into it."""
    return replace(
        plan,
        flops_cut_formula=round(formula_cut(plan.layers, plan.ratios, shape.depth), 6),
        flops_cut_counted=round(counted_cut(shape, plan, tokens), 6),
        prompt_tokens=tokens,
    )


def fixed(shape: ModelShape, plan: ReductionPlan, layers: Sequence[int], ratio: float, tokens: int) -> ReductionPlan:
    """Return `plan` with that `ratio` at each of `layers`, its cuts counted at a prompt of `tokens`.

    Raises: RecipeError for a layer that the model does not have, or a ratio outside of [0.5, 1].
    """
    check_layers(layers, shape.depth)
    return with_cuts(shape, replace(plan, layers=tuple(layers), ratios=(ratio,) * len(layers)), tokens)


def scheduled(
    shape: ModelShape, plan: ReductionPlan, cut: float, tokens: int, layers: Sequence[int] | None = None
) -> ReductionPlan:
    """Return `plan` with one ratio at each of `layers` (None: chosen), so that its counted cut is `cut`.

    Chosen are as few and as late ones of `default_layers` as keep the least shares above, else all of them.

    Raises: RecipeError naming the largest cut where `cut` cannot be reached, for a layer that the model does not have,
    and for a prompt so short that no ratio comes within `TOLERANCE`.
    """
    if not 0 <= cut < 1:
        raise RecipeError(f"flops must be in [0, 1), got {cut}")
    if tokens < plan.min_tokens and cut > TOLERANCE:
        raise RecipeError(
            f"flops {cut} cannot be met at a prompt of {tokens} tokens, fewer than min_tokens {plan.min_tokens}; "
            "give a longer prompt_tokens or a smaller min_tokens"
        )
    if layers is None:
        for late in late_schedules(shape, plan, cut, tokens):
            if keeps_enough(shape, late):
                return late
        layers = default_layers(shape.depth, plan.method)
    check_layers(layers, shape.depth)
    best = _nearest(shape, plan, cut, tokens, layers)
    if _is_met(best, cut):
        return best
    most = counted_cut(shape, replace(plan, layers=tuple(layers), ratios=(0.5,) * len(layers)), tokens)
    if most < cut - TOLERANCE:
        raise _unreachable(cut, most, layers)
    raise RecipeError(
        f"flops {cut} cannot be met within {TOLERANCE} at a prompt of {tokens} tokens; give a longer prompt_tokens"
    )


def late_schedules(shape: ModelShape, plan: ReductionPlan, cut: float, tokens: int) -> Iterator[ReductionPlan]:
    """Yield `plan` at the last one, two, … of `default_layers`, with one ratio each, where that meets `cut`."""
    possible = default_layers(shape.depth, plan.method)
    for first in range(len(possible) - 1, -1, -1):
        late = _nearest(shape, plan, cut, tokens, possible[first:])
        if _is_met(late, cut):
            yield late


def _nearest(shape: ModelShape, plan: ReductionPlan, cut: float, tokens: int, layers: Sequence[int]) -> ReductionPlan:
    """Return `plan` with the one ratio at each of `layers` whose counted cut is nearest to `cut`."""

    def at(grid: int) -> ReductionPlan:
        return replace(plan, layers=tuple(layers), ratios=(grid / _GRID,) * len(layers))

    def cut_at(grid: int) -> float:
        return counted_cut(shape, at(grid), tokens)

    low, high = _GRID // 2, _GRID
    while high - low > 1 and cut_at(low) >= cut:
        middle = (low + high) // 2
        low, high = (middle, high) if cut_at(middle) >= cut else (low, middle)
    return with_cuts(shape, at(min((_GRID, low, high), key=lambda grid: abs(cut_at(grid) - cut))), tokens)


def _is_met(plan: ReductionPlan, cut: float) -> bool:
    return plan.flops_cut_counted is not None and abs(plan.flops_cut_counted - cut) <= TOLERANCE


def keeps_enough(shape: ModelShape, plan: ReductionPlan) -> bool:
    """Return whether `plan` leaves so many tokens that a schedule may be chosen."""
    least = LEAST_RATIO_OF_SCANS if shape.is_scan else LEAST_RATIO_OF_ATTENTION
    return min(plan.ratios) >= least and math.prod(plan.ratios) >= LEAST_LEFT


def check_layers(layers: Sequence[int], depth: int) -> None:
    """Raise RecipeError where a layer is not one of the model's `depth`, or there is none."""
    if not layers:
        raise RecipeError("layers must name at least one layer, got none")
    for layer in layers:
        if layer >= depth:
            raise RecipeError(f"layers must be at most {depth - 1}, the model's last, got {layer}")


def _unreachable(cut: float, most: float, layers: Sequence[int]) -> RecipeError:
    return RecipeError(
        f"flops {cut} cannot be reached at layers {', '.join(map(str, layers))}; "
        f"half of the tokens at each gives at most {most:.3f}; reduce at more or earlier layers"
    )
