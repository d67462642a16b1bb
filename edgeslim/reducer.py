"""The reduction of a checkpoint's tokens: a plan worked out and written into the config.json of a copy.

Weights stay as they are; transformers ignores the plan, `edgeslim export` builds it into the graph and `edgeslim eval`
follows it.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeslim import __version__
from edgeslim.errors import CheckpointError, RecipeError
from edgeslim.output import new_folder
from edgeslim.tokens.flops import ModelShape, shape_of_config
from edgeslim.tokens.plan import ATTENTION_METRICS, ReductionPlan
from edgeslim.tokens.schedule import default_layers, fixed, formula_ratio, late_schedules, scheduled

if TYPE_CHECKING:
    from edgeslim.evaluate.schedules import Trial
    from edgeslim.recipe import ReduceRecipe

    Measure = Callable[[Sequence[ReductionPlan]], tuple[Trial, ...]]

DEFAULT_CUT = 0.2


@dataclass(frozen=True, kw_only=True)
class ReduceReport:
    """What a reduction does to a prompt of `plan.prompt_tokens`: `kept` tokens after each step.

    `formula_ratio` is what the paper's formula gives for the same cut, None where it gives or was asked for none.
    `trials` are the schedules that were measured, the unreduced model first; empty where none were.
    """

    plan: ReductionPlan
    kept: tuple[int, ...]
    formula_ratio: float | None
    trials: "tuple[Trial, ...]" = ()

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        plan = self.plan.to_json()
        ratio = self.plan.ratios[0] if self.plan.ratios else 1.0
        trials = [{**asdict(trial), "layers": list(trial.layers)} for trial in self.trials]
        kept, by_formula = list(self.kept), self.formula_ratio
        return {**plan, "ratio": ratio, "kept": kept, "formula_ratio": by_formula, "trials": trials}


def reduce_checkpoint(
    folder: Path, output: Path, recipe: "ReduceRecipe", *, measure: "Measure | None" = None, force: bool = False
) -> ReduceReport:
    """Copy the checkpoint `folder` into the new folder `output` with the plan that `recipe` asks for.

    `measure` gives the trials of schedules; the one that costs least is taken.

    Raises: CheckpointError for a model whose tokens cannot be reduced, RecipeError for a cut or a layer that cannot
    be had, OutputError.
    """
    config = read_config(folder)
    report = plan_reduction(config, recipe, measure)
    config["edgeslim"] = {
        **(config.get("edgeslim") or {}),
        "version": __version__,
        "reduction": report.plan.to_json(),
    }
    with new_folder(output, force=force) as content:
        for file in sorted(folder.iterdir()):
            if file.is_file() and file.name != "config.json":
                shutil.copy2(file, content / file.name)
        (content / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return report


def plan_reduction(config: Mapping[str, Any], recipe: "ReduceRecipe", measure: "Measure | None" = None) -> ReduceReport:
    """Return what `recipe` means for the model whose config.json holds `config`; `measure` as in `reduce_checkpoint`.

    Raises: CheckpointError, RecipeError.
    """
    shape = shape_of_config(config)
    template = _template(shape, recipe)
    layers = recipe.layers or None
    if recipe.ratio is not None:
        chosen = layers or default_layers(shape.depth, recipe.method)
        plan = fixed(shape, template, chosen, recipe.ratio, recipe.prompt_tokens)
        return ReduceReport(plan=plan, kept=plan.kept(recipe.prompt_tokens), formula_ratio=None)
    cut = DEFAULT_CUT if recipe.flops is None else recipe.flops
    plan = scheduled(shape, template, cut, recipe.prompt_tokens, layers)
    trials: tuple[Trial, ...] = ()
    if measure is not None:
        plans = list(late_schedules(shape, template, cut, recipe.prompt_tokens))
        trials = measure(plans)
        plan = min(zip(plans, trials[1:], strict=True), key=lambda pair: pair[1].suffix_nll)[0]
    by_formula = formula_ratio(plan.layers, shape.depth, cut)
    return ReduceReport(
        plan=plan,
        kept=plan.kept(recipe.prompt_tokens),
        formula_ratio=None if by_formula is None else round(by_formula, 4),
        trials=trials,
    )


def read_config(folder: Path) -> dict[str, Any]:
    """Return the JSON object in the config.json of a checkpoint.

    Raises: CheckpointError where there is none.
    """
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise CheckpointError(f"{file}: cannot be read as JSON: {fault}") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{file}: expected a JSON object, got {type(config).__name__}")
    return config


def _template(shape: ModelShape, recipe: "ReduceRecipe") -> ReductionPlan:
    """Return the plan without layers and ratios."""
    metric = recipe.metric or ("clip" if shape.is_scan else "attention")
    if shape.is_scan and metric in ATTENTION_METRICS:
        raise RecipeError(
            f"metric {metric} needs attention, and the model is a {shape.family}; take clip, l1, l2 or none"
        )
    return ReductionPlan(
        method=recipe.method,
        metric=metric,
        q=recipe.q,
        hidden=recipe.hidden,
        residual=recipe.residual,
        merge=recipe.merge,
        protect_last=recipe.protect_last,
        protect_first=recipe.protect_first,
        min_tokens=recipe.min_tokens,
        seed=recipe.seed,
    )
