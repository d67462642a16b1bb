"""Try forms of one model, measure each, and say which is best: every trial once, also across kills."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from edgeslim import api
from edgeslim.errors import RecipeError
from edgeslim.evaluate.perplexity import PerplexityResult
from edgeslim.journal import Journal, Record, resumable_folder
from edgeslim.output import write_file
from edgeslim.progress import Progress
from edgeslim.recipe import FrontierRecipe, PruneRecipe
from edgeslim.runtime.profiler import Profile
from edgeslim.search.allocation import Option, allocate, bits_between
from edgeslim.search.forms import CANDIDATES, parse_range
from edgeslim.search.report import markdown, plot, require_matplotlib
from edgeslim.search.trials import (
    Result,
    Trial,
    best,
    budgets,
    middle,
    mixed_trial,
    recipe_table,
    undominated,
    uniform_trials,
)
from edgeslim.toml_text import to_toml

REPORT, TABLE, PLOT = "frontier.json", "frontier.md", "frontier.svg"
TURNS = 3
"""How often each form's speed is measured, the forms one after another."""


def run_frontier(
    model: str, output: Path, recipe: FrontierRecipe, *, force: bool, restart: bool, progress: Progress
) -> dict[str, Any]:
    """Write the table (Markdown and JSON), the plot and `trials/NAME/recipe.toml` into the new folder `output`; return
    what the JSON has. A folder that has the same measurements already is only asked for the best within the budgets.

    Raises: RecipeError and whatever the steps raise.
    """
    low, high = parse_range(recipe.bits)
    if recipe.plot:
        require_matplotlib()
    model = _absolute(model) or model
    recipe = replace(recipe, calib=_absolute(recipe.calib), text=_absolute(recipe.text))
    measured = None if force or restart else _measured(output, model, recipe)
    if measured is not None:
        report = _report(model, recipe, *measured)
        write_file(output / REPORT, _json(report), force=True)
        write_file(output / TABLE, markdown(report), force=True)
        return report
    progress(0, 1, "opening the model")
    with resumable_folder(output, _arguments(model, recipe), force=force, restart=restart) as (journal, content):
        run = _Run(model, recipe, journal, content, progress)
        run.refuse_unknown_family()
        trials = [*uniform_trials(model, recipe, low, high), *run.mixed(low, high)]
        if not trials:
            raise RecipeError(f"bits {recipe.bits}: no form takes so many; expected a range within 2.2-8.3")
        dense = run.dense()
        results = [run.measure(trial, number, len(trials)) for number, trial in enumerate(trials)]
        if recipe.profile:
            results = run.time(results)
        report = _report(model, recipe, dense, results)
        (content / REPORT).write_text(_json(report), encoding="utf-8")
        (content / TABLE).write_text(markdown(report), encoding="utf-8")
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
        found = self._once("dense", lambda: {"perplexity": self._perplexity(Path(self._model), self._progress)})
        return float(found["perplexity"])

    def mixed(self, low: float, high: float) -> list[Trial]:
        """Return a trial for each budget, with a form for every linear."""
        record = self._once("sensitivity", self._sensitivity)
        options = {name: [Option(**option) for option in found] for name, found in record["options"].items()}
        narrowest, widest = bits_between(options, record["sizes"])
        return [
            mixed_trial(self._model, self._recipe, budget, allocate(options, record["sizes"], budget), CANDIDATES)
            for budget in budgets(max(low, narrowest), min(high, widest))
        ]

    def measure(self, trial: Trial, number: int, total: int) -> Result:
        """Return what becomes of `trial`, its speed apart; its recipe is left beside the results, its bundle until
        `time` has measured it."""

        def progress(done: int, steps: int, label: str) -> None:
            self._progress(number, total, f"{trial.name}: {label} ({done} of {steps})")

        folder = self._content / "trials" / trial.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "recipe.toml").write_text(to_toml(recipe_table(trial.recipe)), encoding="utf-8")
        result = Result(**self._once(f"trial {trial.name}", lambda: asdict(self._try(trial, progress))))
        spent = self._checkpoint(trial.name) if self._recipe.profile else self._scratch / trial.name
        shutil.rmtree(spent, ignore_errors=True)
        return result

    def time(self, results: list[Result]) -> list[Result]:
        """Return `results` with their speeds. All forms take turns, so that an hour in which the machine is slow is not
        one form's."""
        for turn in range(TURNS):
            for number, result in enumerate(results):
                self._progress(turn * len(results) + number, TURNS * len(results), f"{result.name}: speed")
                self._once(_turn(turn, result.name), partial(self._profile, self._bundle(result.name)))
        turns = [[self._journal.steps[_turn(turn, result.name)] for turn in range(TURNS)] for result in results]
        return [replace(result, **middle(found)) for result, found in zip(results, turns, strict=True)]

    def _profile(self, bundle: Path) -> Record:
        profile = api.profile(bundle)
        assert isinstance(profile, Profile)
        rates = {"decode_tok_s": profile.decode_tok_s_p50, "prefill_tok_s": profile.prefill_tok_s_p50}
        return {**rates, "doubtful": bool(profile.warnings)}

    def _checkpoint(self, name: str) -> Path:
        return self._scratch / name / "checkpoint"

    def _bundle(self, name: str) -> Path:
        return self._scratch / name / "bundle"

    def _sensitivity(self) -> Record:
        from edgeslim.checkpoint import Checkpoint
        from edgeslim.search.sensitivity import measure_options

        self._progress(0, 1, "reading calibration text")
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
            self._once,
        )
        return {"options": {name: [asdict(each) for each in found] for name, found in options.items()}, "sizes": sizes}

    def _try(self, trial: Trial, progress: Progress) -> Result:
        checkpoint, bundle = self._checkpoint(trial.name), self._bundle(trial.name)
        bits = self._once(f"prune {trial.name}", lambda: {"bits": self._prune(trial, checkpoint, progress)})["bits"]
        manifest = api.export(checkpoint, bundle, force=True, progress=progress, **asdict(trial.recipe.export))
        perplexity = self._perplexity(bundle, progress)
        return Result(
            name=trial.name,
            budget=trial.budget,
            bits=bits,
            perplexity=perplexity,
            weight_bytes=manifest.weight_bytes,
            bundle_bytes=sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file()),
        )

    def _prune(self, trial: Trial, checkpoint: Path, progress: Progress) -> float:
        """Return the bits a weight of the linears; a prune that was killed goes on after its last finished block."""
        assert trial.recipe.prune is not None
        options = asdict(trial.recipe.prune)
        pruned = api.prune(trial.recipe.model, checkpoint, force=True, progress=progress, **options)
        assert pruned.bits is not None
        return pruned.bits

    def _perplexity(self, model: Path, progress: Progress) -> float:
        recipe = self._recipe
        scored = api.eval(model, text=recipe.text, seqlen=recipe.eval_seqlen, progress=progress)
        assert isinstance(scored, PerplexityResult)
        return scored.perplexity

    def _once(self, step: str, work: Callable[[], Record]) -> Record:
        if step not in self._journal.steps:
            self._journal.finish(step, work())
        return self._journal.steps[step]


def _turn(turn: int, name: str) -> str:
    return f"speed {name} {turn}"


def _absolute(place: str | None) -> str | None:
    """Return `place` such that recipes name it from any folder; what is no path (a hub id, None) as it is."""
    return str(Path(place).resolve()) if place and Path(place).exists() else place


_BUDGETS = ("max_bytes", "min_tok_s")
"""What is asked of the measurements; they are the same whatever it is."""


def _arguments(model: str, recipe: FrontierRecipe) -> dict[str, Any]:
    """Return what decides the measurements."""
    return {"model": model, **{key: value for key, value in asdict(recipe).items() if key not in _BUDGETS}}


def _measured(output: Path, model: str, recipe: FrontierRecipe) -> tuple[float, list[Result]] | None:
    """Return the dense perplexity and the results in `output`, None where it has none of these arguments."""
    try:
        report = json.loads((output / REPORT).read_text(encoding="utf-8"))
        if _arguments(report["model"], FrontierRecipe(**report["recipe"])) != _arguments(model, recipe):
            return None
        return report["dense_perplexity"], [Result(**trial) for trial in report["trials"]]
    except (OSError, ValueError, KeyError, TypeError, RecipeError):
        return None  # not a finished frontier: an existing folder is refused as everywhere


def _report(model: str, recipe: FrontierRecipe, dense: float, results: list[Result]) -> dict[str, Any]:
    chosen = best(results, dense, max_bytes=recipe.max_bytes, min_tok_s=recipe.min_tok_s)
    return {
        "model": model,
        "recipe": asdict(recipe),
        "dense_perplexity": dense,
        "trials": [asdict(result) for result in results],
        "frontier": [result.name for result in undominated(results)],
        "best": None if chosen is None else chosen.name,
    }


def _json(report: dict[str, Any]) -> str:
    return json.dumps(report, indent=1) + "\n"
