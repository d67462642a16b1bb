"""The whole way of one recipe: prune, export, generate, profile, evaluate, and a report that compares the models."""

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

    The unpruned model (`baseline`) is exported beside, measured and deleted again.

    Raises: RecipeError and whatever the steps raise.
    """
    if recipe.prune is None and recipe.baseline:
        raise RecipeError("baseline needs a [prune] step to compare with; add one, or set baseline = false")
    with resumable_folder(output, asdict(recipe), force=force, restart=restart) as (journal, content):
        steps = _Steps(recipe, journal, content, progress)
        bundles = steps.bundles()
        report = {
            "recipe": asdict(recipe),
            "prune": journal.steps.get("prune"),
            "models": {name: steps.measure(name, bundle) for name, bundle in bundles.items()},
        }
        (content / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


class _Steps:
    """The steps of one recipe, each done once even if the run is killed in between."""

    def __init__(self, recipe: Recipe, journal: Journal, content: Path, progress: Progress) -> None:
        self._recipe, self._journal, self._content, self._progress = recipe, journal, content, progress

    def bundles(self) -> dict[str, Path]:
        """Prune and export; return the bundles to measure, by the name they have in the report."""
        recipe, bundle = self._recipe, self._content / "bundle"
        if recipe.prune is None:
            self._export("dense", recipe.model, bundle)
            return {"dense": bundle}
        checkpoint, baseline = self._content / "checkpoint", self._content.parent / "baseline"
        self._prune(checkpoint)
        self._export("pruned", checkpoint, bundle)
        if not recipe.baseline:
            return {"pruned": bundle}
        self._export("dense", recipe.model, baseline)
        return {"dense": baseline, "pruned": bundle}

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
        if recipe.eval is not None:
            options = asdict(recipe.eval)
            done["eval"] = self._once(f"eval {name}", lambda: asdict(api.eval(bundle, progress=progress, **options)))
        return done

    def _prune(self, checkpoint: Path) -> None:
        options = asdict(self._recipe.prune)  # type: ignore[arg-type]
        self._once(
            "prune",
            lambda: api.prune(self._recipe.model, checkpoint, force=True, progress=self._progress, **options).to_json(),
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
            self._journal.finish(step, work())
        return self._journal.steps[step]
