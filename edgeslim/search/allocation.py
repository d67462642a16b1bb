"""One form for each linear under one budget of bits: the least sum of losses.

    minimise  Σ_l loss_l(f_l)     subject to  Σ_l size_l bits_l(f_l) <= budget · Σ_l size_l

Each linear by itself takes the form with the least loss + λ · size · bits; a larger λ buys fewer bits. λ is bisected to
the budget, and what is left of it goes to the linears that gain most for a bit: no choice by λ alone meets a budget
between two corners of the hull.

References
[1] Everett (1963): generalized Lagrange multipliers; each choice so found is optimal for the bits that it takes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgeslim.errors import RecipeError

_HALVINGS = 60


@dataclass(frozen=True)
class Option:
    """One form of one linear: bits a weight and what it is expected to add to the model's loss."""

    form: str
    bits: float
    loss: float


def allocate(options: Mapping[str, Sequence[Option]], sizes: Mapping[str, int], budget: float) -> dict[str, Option]:
    """Return the option of each linear, by name, that `budget` bits a weight on average pay for.

    Raises: RecipeError where even the narrowest options take more.
    """
    total, least = sum(sizes[name] for name in options), bits_between(options, sizes)[0]
    if least > budget * (1 + 1e-9):
        raise RecipeError(f"budget must be at least {least:.3f} bits a weight, got {budget:g}")
    low, high = 0.0, 1.0
    while _bits(_choose(options, sizes, high), sizes) > budget * total and high < 1e30:
        high *= 2
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if _bits(_choose(options, sizes, middle), sizes) > budget * total:
            low = middle
        else:
            high = middle
    return _spend(_choose(options, sizes, high), options, sizes, budget * total)


def bits_between(options: Mapping[str, Sequence[Option]], sizes: Mapping[str, int]) -> tuple[float, float]:
    """Return the bits a weight on average of the narrowest and of the widest option of every linear."""
    total = sum(sizes[name] for name in options)
    ends = [
        sum(sizes[name] * end(option.bits for option in choices) for name, choices in options.items()) / total
        for end in (min, max)
    ]
    return ends[0], ends[1]


def _choose(options: Mapping[str, Sequence[Option]], sizes: Mapping[str, int], price: float) -> dict[str, Option]:
    return {
        name: min(choices, key=lambda option: (option.loss + price * sizes[name] * option.bits, option.bits))
        for name, choices in options.items()
    }


def _bits(chosen: Mapping[str, Option], sizes: Mapping[str, int]) -> float:
    return sum(sizes[name] * option.bits for name, option in chosen.items())


def _spend(
    chosen: dict[str, Option], options: Mapping[str, Sequence[Option]], sizes: Mapping[str, int], limit: float
) -> dict[str, Option]:
    """Take, while the limit allows any, the upgrade of one linear that lowers the loss most for the bits it costs."""
    chosen, left = dict(chosen), limit - _bits(chosen, sizes)
    while True:
        upgrades = [
            ((now.loss - option.loss) / max(cost, 1e-12), name, option, cost)
            for name, now in chosen.items()
            for option in options[name]
            if option.loss < now.loss and (cost := sizes[name] * (option.bits - now.bits)) <= left
        ]
        if not upgrades:
            return chosen
        _, name, option, cost = max(upgrades, key=lambda upgrade: upgrade[0])
        chosen[name] = option
        left -= cost
