"""The trials of a frontier: recipes to try, and what became of each."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from edgeslim.recipe import ExportRecipe, FrontierRecipe, LayerRecipe, PruneRecipe, Recipe
from edgeslim.search.allocation import Option
from edgeslim.search.forms import UNIFORM, Form

STEP = 0.25
"""Bits a weight between two budgets for which each linear gets a form of its own; twice that from `FINE` on, where the
bundled models' perplexities lie within 0.2 % of the dense ones."""
FINE = 3.25
LITTLE = 0.01
"""The part of the dense perplexity that a form may cost and still be named where no budget is given."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One recipe to try. `budget` is the bits a weight that forms were chosen for, None where one form is for all."""

    name: str
    recipe: Recipe
    budget: float | None = None


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of one trial: bits a weight of its linears by count, perplexity of its bundle, bytes of all weights
    as packed, tokens a second where they were measured; `doubtful`: always with a warning, as of a busy machine."""

    name: str
    budget: float | None
    bits: float
    perplexity: float
    weight_bytes: int
    bundle_bytes: int
    decode_tok_s: float | None = None
    prefill_tok_s: float | None = None
    doubtful: bool = False


def uniform_trials(model: str, frontier: FrontierRecipe, low: float, high: float) -> list[Trial]:
    """Return a trial for each form of all linears that takes between `low` and `high` bits a weight."""
    forms = [form for form in UNIFORM if low <= form.bits <= high]
    return [Trial(name=_file_name(form), recipe=_recipe(model, frontier, form)) for form in forms]


def budgets(low: float, high: float) -> list[float]:
    """Return the budgets between `low` and `high` to choose forms for: `high` alone where the steps leave none."""
    fine = [number * STEP for number in range(int(FINE / STEP))]
    coarse = [FINE + number * 2 * STEP for number in range(int(high / STEP))]
    return [budget for budget in (*fine, *coarse) if low <= budget <= high] or [high] * (low <= high)


def mixed_trial(
    model: str, frontier: FrontierRecipe, budget: float, chosen: Mapping[str, Option], forms: Sequence[Form]
) -> Trial:
    """Return the trial of the forms `chosen` for each linear, by the names that they have among `forms`."""
    by_name = {str(form): form for form in forms}
    layers = tuple(_layer(name, by_name[option.form]) for name, option in sorted(chosen.items()))
    most_common = max(by_name.values(), key=lambda form: sum(option.form == str(form) for option in chosen.values()))
    recipe = _recipe(model, frontier, most_common, layers)
    return Trial(name=f"mixed-{budget:.2f}", recipe=recipe, budget=budget)


def recipe_table(recipe: Recipe) -> dict[str, Any]:
    """Return `recipe` as a table that `read_recipe` reads again, without what says nothing."""
    table = asdict(recipe)
    return {key: value for key, value in table.items() if value is not None}


def best(results: Sequence[Result], dense: float, *, max_bytes: int | None, min_tok_s: float | None) -> Result | None:
    """Return the result of least perplexity within the budgets; where there are none, the smallest that costs no more
    than `LITTLE` of the perplexity `dense`. None where no result is so."""
    if max_bytes is None and min_tok_s is None:
        close = [result for result in results if result.perplexity <= (1 + LITTLE) * dense]
        return min(close, key=lambda result: (result.weight_bytes, result.perplexity), default=None)
    fitting = [
        result
        for result in results
        if (max_bytes is None or result.weight_bytes <= max_bytes)
        and (min_tok_s is None or (result.decode_tok_s or 0.0) >= min_tok_s)
    ]
    return min(fitting, key=lambda result: result.perplexity, default=None)


def middle(turns: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the medians of the rates measured in `turns`, of those without a warning where there are such."""
    quiet = [turn for turn in turns if not turn["doubtful"]]
    rates = {key: median(turn[key] for turn in quiet or turns) for key in ("decode_tok_s", "prefill_tok_s")}
    return {**rates, "doubtful": not quiet}


def undominated(results: Sequence[Result]) -> list[Result]:
    """Return the results to which no other is better in bytes and perplexity at once, from few bytes to many."""
    found: list[Result] = []
    for result in sorted(results, key=lambda result: (result.weight_bytes, result.perplexity)):
        if not found or result.perplexity < found[-1].perplexity:
            found.append(result)
    return found


def _recipe(model: str, frontier: FrontierRecipe, form: Form, layers: tuple[LayerRecipe, ...] = ()) -> Recipe:
    prune = PruneRecipe(
        pattern=form.pattern,
        quantize=form.quantize,
        calib=frontier.calib,
        samples=frontier.samples,
        seqlen=frontier.seqlen,
        seed=frontier.seed,
        device=frontier.device,
        effort=frontier.effort,
        layers=layers,
    )
    return Recipe(model=model, prune=prune, export=ExportRecipe(lowering=frontier.lowering), baseline=False)


def _file_name(form: Form) -> str:
    return str(form).replace(" ", "-").replace(":", "of")


def _layer(name: str, form: Form) -> LayerRecipe:
    return LayerRecipe(match=name, pattern=form.pattern, quantize=form.quantize)
