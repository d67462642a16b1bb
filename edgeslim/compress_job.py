"""The whole way of one recipe: prune, reduce, export, generate, profile, evaluate, and a report on the models."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgeslim import api
from edgeslim.errors import RecipeError
from edgeslim.journal import Journal, Record, resumable_folder
from edgeslim.progress import Progress
from edgeslim.recipe import Recipe

REPORT = "report.json"


def compress_checkpoint(
    recipe: Recipe, output: Path, *, force: bool, restart: bool, progress: Progress
) -> dict[str, Any]:
    """Write `checkpoint/`, `bundle/` and `report.json` into the new folder `output`; return the report.

    The model as it was (`baseline`) is exported beside, measured and deleted again.

    Raises: RecipeError and whatever the steps raise.
    """
    if recipe.prune is None and recipe.reduce is None and recipe.baseline:
        raise RecipeError("baseline needs a [prune] or [reduce] step to compare with; add one, or set baseline = false")
    if recipe.reduce is None and recipe.eval is not None and recipe.eval.suite == "reduction":
        raise RecipeError('suite reduction needs a [reduce] step; add one, or set suite = "perplexity"')
    with resumable_folder(output, asdict(recipe), force=force, restart=restart) as (journal, content):
        steps = _Steps(recipe, journal, content, progress)
        bundles = steps.bundles()
        report = {
            "recipe": asdict(recipe),
            "prune": journal.steps.get("prune"),
            "reduce": journal.steps.get("reduce"),
            "models": {name: steps.measure(name, bundle) for name, bundle in bundles.items()},
        }
        (content / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


class _Steps:
    """The steps of one recipe, each done once even if the run is killed in between."""

    def __init__(self, recipe: Recipe, journal: Journal, content: Path, progress: Progress) -> None:
        self._recipe, self._journal, self._content, self._progress = recipe, journal, content, progress

    def bundles(self) -> dict[str, Path]:
        """Prune, reduce and export; return the bundles to measure, by the name they have in the report."""
        recipe, bundle = self._recipe, self._content / "bundle"
        made = self._checkpoint()
        name = {(): "dense", ("prune",): "pruned", ("reduce",): "reduced"}.get(made, "pruned and reduced")
        self._export(name, self._content / "checkpoint" if made else recipe.model, bundle)
        if not made or not recipe.baseline:
            return {name: bundle}
        baseline = self._content.parent / "baseline"
        self._export("dense", recipe.model, baseline)
        return {"dense": baseline, name: bundle}

    def _checkpoint(self) -> tuple[str, ...]:
        """Write `checkpoint/`, where the recipe changes the model at all; return the steps that did."""
        recipe, checkpoint = self._recipe, self._content / "checkpoint"
        if recipe.reduce is None:
            if recipe.prune is None:
                return ()
            self._prune(checkpoint)
            return ("prune",)
        if recipe.prune is None:
            self._reduce(recipe.model, checkpoint)
            return ("reduce",)
        pruned = self._content.parent / "pruned"
        self._prune(pruned)
        self._reduce(pruned, checkpoint)
        return ("prune", "reduce")

    def measure(self, name: str, bundle: Path) -> dict[str, Any]:
        """Generate with, profile and evaluate one bundle, as far as the recipe asks for it."""
        recipe, progress, done = self._recipe, self._progress, {}
        if recipe.run is not None:
            options = asdict(recipe.run)
            done["run"] = self._once(f"run {name}", lambda: {"text": "".join(api.run(bundle, **options))})
        if recipe.profile is not None:
            options = asdict(recipe.profile)
            done["profile"] = self._once(
                f"profile {name}", lambda: api.profile(bundle, progress=progress, **options).to_json()
            )
        if recipe.eval is not None and (name != "dense" or recipe.eval.suite != "reduction"):
            options = asdict(recipe.eval)
            done["eval"] = self._once(f"eval {name}", lambda: asdict(api.eval(bundle, progress=progress, **options)))
        return done

    def _prune(self, checkpoint: Path) -> None:
        options = asdict(self._recipe.prune)  # type: ignore[arg-type]
        self._once(
            "prune",
            lambda: api.prune(self._recipe.model, checkpoint, force=True, progress=self._progress, **options).to_json(),
        )

    def _reduce(self, model: str | Path, checkpoint: Path) -> None:
        options = asdict(self._recipe.reduce)  # type: ignore[arg-type]
        self._once(
            "reduce",
            lambda: api.reduce(model, checkpoint, force=True, progress=self._progress, **options).to_json(),
        )

    def _export(self, name: str, model: str | Path, bundle: Path) -> None:
        options = asdict(self._recipe.export)
        self._once(
            f"export {name}",
            lambda: asdict(api.export(model, bundle, force=True, progress=self._progress, **options)),
        )

    def _once(self, step: str, work: Callable[[], Record]) -> Record:
        """Return the record of `step`, doing its `work` unless the journal has it."""
        if step not in self._journal.steps:
            self._journal.finish(step, json.loads(json.dumps(work())))  # as a resumed run reads it
        return self._journal.steps[step]
