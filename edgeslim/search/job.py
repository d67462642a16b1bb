"""Try forms of one model, measure each, and say which is best: every trial once, also across kills."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgeslim import api
from edgeslim.errors import RecipeError
from edgeslim.evaluate.perplexity import PerplexityResult
from edgeslim.journal import Journal, Record, resumable_folder
from edgeslim.progress import Progress
from edgeslim.recipe import FrontierRecipe, PruneRecipe
from edgeslim.runtime.profiler import Profile
from edgeslim.search.allocation import Option, allocate
from edgeslim.search.forms import CANDIDATES, parse_range
from edgeslim.search.report import markdown, plot, require_matplotlib
from edgeslim.search.trials import (
    Result,
    Trial,
    best,
    budgets,
    mixed_trial,
    recipe_table,
    undominated,
    uniform_trials,
)
from edgeslim.toml_text import to_toml

REPORT, TABLE, PLOT = "frontier.json", "frontier.md", "frontier.svg"


def run_frontier(
    model: str, output: Path, recipe: FrontierRecipe, *, force: bool, restart: bool, progress: Progress
) -> dict[str, Any]:
    """Write the table (Markdown and JSON), the plot and `trials/NAME/recipe.toml` into the new folder `output`; return
    what the JSON has.

    Raises: RecipeError and whatever the steps raise.
    """
    low, high = parse_range(recipe.bits)
    if recipe.plot:
        require_matplotlib()
    arguments = {"model": str(Path(model).resolve() if Path(model).is_dir() else model), **asdict(recipe)}
    with resumable_folder(output, arguments, force=force, restart=restart) as (journal, content):
        run = _Run(model, recipe, journal, content, progress)
        run.refuse_unknown_family()
        trials = [*uniform_trials(model, recipe, low, high), *run.mixed(low, high)]
        if not trials:
            raise RecipeError(f"bits {recipe.bits}: no form takes so many; expected a range within 2.2-8.3")
        dense = run.dense()
        results = [run.measure(trial, number, len(trials)) for number, trial in enumerate(trials)]
        report = _report(model, recipe, dense, results)
        (content / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        (content / TABLE).write_text(markdown(Path(model).name, dense, results, _words(report)), encoding="utf-8")
        if recipe.plot:
            plot(content / PLOT, Path(model).name, dense, results)
    return report


class _Run:
    """One frontier; what the journal has is not done again."""

    def __init__(self, model: str, recipe: FrontierRecipe, journal: Journal, content: Path, progress: Progress) -> None:
        self._model, self._recipe, self._journal = model, recipe, journal
        self._content, self._progress = content, progress
        self._scratch = content.parent / "trial"

    def refuse_unknown_family(self) -> None:
        """Raise ExportError where no trial could be exported, before any is pruned."""
        from edgeslim.checkpoint import Checkpoint
        from edgeslim.exporters.graph import check_family, read_config

        folder = Checkpoint.open(self._model).folder
        check_family(read_config(folder), folder)

    def dense(self) -> float:
        """Return the perplexity of the model as it is."""
        return float(self._once("dense", lambda: {"perplexity": self._perplexity(Path(self._model))})["perplexity"])

    def mixed(self, low: float, high: float) -> list[Trial]:
        """Return a trial for each budget, with a form for every linear."""
        record = self._once("sensitivity", self._sensitivity)
        options = {name: [Option(**option) for option in found] for name, found in record["options"].items()}
        narrowest = sum(record["sizes"][name] * min(o.bits for o in found) for name, found in options.items())
        least = max(low, narrowest / sum(record["sizes"].values()))
        return [
            mixed_trial(self._model, self._recipe, budget, allocate(options, record["sizes"], budget), CANDIDATES)
            for budget in budgets(least, high)
        ]

    def measure(self, trial: Trial, number: int, total: int) -> Result:
        """Return what becomes of `trial`; its recipe is left beside the results, its files are not."""

        def progress(done: int, steps: int, label: str) -> None:
            self._progress(number, total, f"{trial.name}: {label}")

        folder = self._content / "trials" / trial.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "recipe.toml").write_text(to_toml(recipe_table(trial.recipe)), encoding="utf-8")
        return Result(**self._once(f"trial {trial.name}", lambda: asdict(self._try(trial, progress))))

    def _sensitivity(self) -> Record:
        from edgeslim.checkpoint import Checkpoint
        from edgeslim.search.sensitivity import measure_options

        recipe, checkpoint = self._recipe, Checkpoint.open(self._model)
        prune = PruneRecipe(calib=recipe.calib, samples=recipe.samples, seqlen=recipe.seqlen, seed=recipe.seed)
        windows = api.calibration_windows(prune, checkpoint)
        options, sizes = measure_options(
            checkpoint,
            windows.tokens,
            CANDIDATES,
            self._content.parent,
            api.torch_device(recipe.device),
            self._progress,
        )
        return {"options": {name: [asdict(each) for each in found] for name, found in options.items()}, "sizes": sizes}

    def _try(self, trial: Trial, progress: Progress) -> Result:
        checkpoint, bundle = self._scratch / "checkpoint", self._scratch / "bundle"
        assert trial.recipe.prune is not None
        pruned = api.prune(
            trial.recipe.model, checkpoint, force=True, restart=True, progress=progress, **asdict(trial.recipe.prune)
        )
        manifest = api.export(checkpoint, bundle, force=True, progress=progress, **asdict(trial.recipe.export))
        perplexity = self._perplexity(bundle)
        speeds: dict[str, float] = {}
        if self._recipe.profile:
            profile = api.profile(bundle, progress=progress)
            assert isinstance(profile, Profile)
            speeds = {"decode_tok_s": profile.decode_tok_s_p50, "prefill_tok_s": profile.prefill_tok_s_p50}
        size = sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file())
        shutil.rmtree(self._scratch)
        assert pruned.bits is not None
        return Result(
            name=trial.name,
            budget=trial.budget,
            bits=pruned.bits,
            perplexity=perplexity,
            weight_bytes=manifest.weight_bytes,
            bundle_bytes=size,
            **speeds,
        )

    def _perplexity(self, model: Path) -> float:
        recipe = self._recipe
        scored = api.eval(model, text=recipe.text, seqlen=recipe.eval_seqlen, progress=self._progress)
        assert isinstance(scored, PerplexityResult)
        return scored.perplexity

    def _once(self, step: str, work: Callable[[], Record]) -> Record:
        if step not in self._journal.steps:
            self._journal.finish(step, work())
        return self._journal.steps[step]


def _report(model: str, recipe: FrontierRecipe, dense: float, results: list[Result]) -> dict[str, Any]:
    chosen = best(results, max_bytes=recipe.max_bytes, min_tok_s=recipe.min_tok_s)
    return {
        "model": model,
        "recipe": asdict(recipe),
        "dense_perplexity": dense,
        "trials": [asdict(result) for result in results],
        "frontier": [result.name for result in undominated(results)],
        "best": None if chosen is None else chosen.name,
    }


def _words(report: dict[str, Any]) -> list[str]:
    """Return the lines that name the best form within the budgets asked for."""
    limits = report["recipe"]
    asked = [
        f"at most {limits['max_bytes'] / 1e6:.2f} MB" if limits["max_bytes"] else "",
        f"at least {limits['min_tok_s']:g} tokens a second" if limits["min_tok_s"] else "",
    ]
    if not any(asked):
        return []
    name = report["best"]
    found = f"`{name}` (trials/{name}/recipe.toml)" if name else "none of those tried"
    return ["", f"Best with {' and '.join(filter(None, asked))}: {found}."]
