"""Forms chosen under a budget, against every possible choice."""

import itertools
import random

import pytest

from edgeslim.errors import RecipeError
from edgeslim.search.allocation import Option, allocate


def _problem(seed: int, linears: int = 5, forms: int = 4) -> tuple[dict[str, list[Option]], dict[str, int]]:
    """Linears whose loss falls with bits, as errors of quantization do, some steeper than others."""
    rng = random.Random(seed)
    options = {}
    for number in range(linears):
        weight, bits = 10 ** rng.uniform(-3, 0), [2.25 + form for form in range(forms)]
        options[f"l{number}"] = [Option(str(b), b, weight * 4**-b * rng.uniform(0.8, 1.2)) for b in bits]
    return options, {name: rng.choice([64, 128, 1024]) for name in options}


def _best(options: dict[str, list[Option]], sizes: dict[str, int], budget: float) -> float:
    limit = budget * sum(sizes.values())
    return min(
        sum(option.loss for option in chosen)
        for chosen in itertools.product(*options.values())
        if sum(option.bits * sizes[name] for name, option in zip(options, chosen, strict=True)) <= limit
    )


@pytest.mark.parametrize("budget", [2.25, 2.6, 3.0, 3.7, 5.25])
def test_the_budget_is_kept_and_the_loss_is_near_the_least_there_is(budget: float) -> None:
    ratios = []
    for seed in range(20):
        options, sizes = _problem(seed)
        chosen = allocate(options, sizes, budget)
        assert sum(sizes[name] * option.bits for name, option in chosen.items()) <= budget * sum(sizes.values()) + 1e-6
        ratios.append(sum(option.loss for option in chosen.values()) / _best(options, sizes, budget))
    assert min(ratios) >= 1 - 1e-9
    assert sum(ratios) / len(ratios) < 1.15  # a knapsack: by prices and a greedy rest, not exactly


def test_with_bits_to_spare_every_linear_takes_its_best() -> None:
    options, sizes = _problem(1)
    assert all(option.bits == 5.25 for option in allocate(options, sizes, 9.0).values())


def test_a_sensitive_linear_gets_more_bits_than_its_equal() -> None:
    forms = [(2.0, 1.0), (4.0, 0.1)]
    options = {
        "calm": [Option(str(b), b, loss) for b, loss in forms],
        "sensitive": [Option(str(b), b, 10 * loss) for b, loss in forms],
    }
    chosen = allocate(options, {"calm": 100, "sensitive": 100}, 3.0)
    assert (chosen["calm"].bits, chosen["sensitive"].bits) == (2.0, 4.0)


def test_a_budget_below_the_narrowest_forms_is_refused() -> None:
    options, sizes = _problem(2)
    with pytest.raises(RecipeError, match=r"at least 2\.250 bits a weight, got 2"):
        allocate(options, sizes, 2.0)
