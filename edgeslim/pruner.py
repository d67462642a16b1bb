"""Prune a checkpoint block by block into a new checkpoint, resuming where a kill stopped it.

The new checkpoint starts as a copy of the old one's files; the pruned weights of each finished block are written over
their places there. What a block needs is read from the old files, so a block cut short is simply done again.
"""

import fnmatch
import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgeslim import __version__
from edgeslim.activations import Activations
from edgeslim.blockwise import (
    BlockRunner,
    all_linear_names,
    capture_inputs,
    check_patterns,
    input_groups,
    is_routed,
    prunable_linears,
    twin,
    weight_matrix,
)
from edgeslim.calibration import Calibration
from edgeslim.checkpoint import Checkpoint, Skeleton, drop_parameters, quiet_transformers, write_weight
from edgeslim.errors import CheckpointError, OutputError, RecipeError
from edgeslim.gridfile import GRID_FILE, LinearGrid, read_grids, write_grids
from edgeslim.journal import Journal, resumable_folder
from edgeslim.memory import release_free_memory
from edgeslim.progress import Progress, silent
from edgeslim.pruning.methods import PruneConfig, prune_matrix
from edgeslim.pruning.statistics import InputStatistics
from edgeslim.quantize.grid import bits_per_weight
from edgeslim.tensorfile import TensorEntry

REPORT = "prune_report.json"
_NOT_COPIED = {".bin", ".pt", ".pth", ".gguf"}
"""Other forms of the weights, which would no longer agree with the pruned ones."""


@dataclass(frozen=True, kw_only=True)
class PruneJob:
    """All that decides the weights of a pruned checkpoint, besides the old one."""

    config: PruneConfig
    calibration: Calibration
    rules: tuple[tuple[str, PruneConfig], ...] = ()
    """Configurations of the linears whose names match a pattern, the first that does; `config` is for the others."""
    seed: int = 0
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    device: str = "cpu"
    sequential: bool = False
    """Gather each linear's inputs after those before it in the block are pruned, not all at once."""

    def config_of(self, linear: str) -> PruneConfig:
        """Return the configuration for the linear of that name."""
        return next((config for match, config in self.rules if fnmatch.fnmatch(linear, match)), self.config)


@dataclass(frozen=True, kw_only=True)
class LinearReport:
    """What became of one linear. `relative_error`: ‖(W'-W)X‖²/‖WX‖² on its calibration inputs, after rounding.

    `quantize` is its grid and `bits` its bits a weight by count (mask and scales included), None where it has no grid.
    """

    name: str
    shape: tuple[int, int]
    sparsity: float
    relative_error: float
    quantize: str | None = None
    bits: float | None = None


@dataclass(frozen=True, kw_only=True)
class PruneReport:
    """What a prune did. `relative_error` is the mean over its linears; `seconds` counts work, resumed runs included.

    `bits` is the mean over all weights of the linears, None unless every linear is on a grid.
    """

    method: str
    pattern: str
    effort: str
    sparsity: float
    relative_error: float
    calibration: str
    seconds: float
    linears: tuple[LinearReport, ...] = field(repr=False)
    quantize: str | None = None
    bits: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]


def prune_checkpoint(
    checkpoint: Checkpoint,
    output: Path,
    job: PruneJob,
    *,
    force: bool = False,
    restart: bool = False,
    progress: Progress = silent,
) -> PruneReport:
    """Write `checkpoint`, pruned as `job` says, to the folder `output`.

    Raises: OutputError, CheckpointError, CalibrationError, PruneError, RecipeError.
    """
    if output.resolve() == checkpoint.folder.resolve():
        raise OutputError(f"{output}: is the model itself; expected another folder")
    arguments = _arguments(checkpoint, job)
    with resumable_folder(output, arguments, force=force, restart=restart) as (journal, content), quiet_transformers():
        if "copy" not in journal.steps:
            _copy(checkpoint.folder, content)
            journal.finish("copy", {})
        target = Checkpoint(content, checkpoint.trust_remote_code)
        run = _PruneRun(checkpoint, target, job, journal, content.parent)
        records = list(run.blocks(progress))
        report = _report(job, [linear for record in records for linear in record["linears"]], records)
        run.write_grids(checkpoint.folder / GRID_FILE, content / GRID_FILE)
        _mark(content, report, job, checkpoint)
    return report


class _PruneRun:
    """One walk over the blocks of `source`, writing into `target`."""

    def __init__(self, source: Checkpoint, target: Checkpoint, job: PruneJob, journal: Journal, folder: Path) -> None:
        self._target, self._job, self._journal = target, job, journal
        self._device = torch.device(job.device)
        self._skeleton: Skeleton = source.skeleton()
        names = all_linear_names(self._skeleton)
        check_patterns(names, job.include, "--include")
        check_patterns(names, job.exclude, "--exclude")
        check_patterns(names, [match for match, _ in job.rules], "match")
        self._grids = folder / "grids"
        self._grids.mkdir(exist_ok=True)
        self._on_grid: dict[str, LinearGrid] = {}
        self._runner = BlockRunner(self._skeleton, job.calibration.tokens, self._device)
        self._pruned = Activations(folder / "pruned.hidden")
        self._dense = Activations(folder / "dense.hidden") if job.config.needs_cross_moment else None

    def blocks(self, progress: Progress) -> Iterator[dict[str, Any]]:
        """Prune the blocks that the journal lacks, in order, and yield every block's record."""
        names = self._skeleton.block_names
        self._runner.embed(*(stream for stream in (self._pruned, self._dense) if stream is not None))
        release_free_memory()
        for index, name in enumerate(names):
            if name in self._journal.steps:
                progress(index, len(names), f"replaying {name}")
                if not all(other in self._journal.steps for other in names):
                    self._replay(index)
            else:
                progress(index, len(names), f"pruning {name}")
                self._journal.finish(name, self._prune(index))
            yield self._journal.steps[name]
        progress(len(names), len(names), "pruned")

    def write_grids(self, before: Path, after: Path) -> None:
        """Write the grids of all linears to the file `after`: those of this run, and of the file `before` those of
        linears that it left alone."""
        done = {linear["name"] for record in self._journal.steps.values() for linear in record.get("linears", ())}
        grids = {name: entry for name, entry in read_grids(before).items() if name not in done}
        for index in range(len(self._skeleton.block_names)):
            grids |= read_grids(self._block_grids(index))
        if grids:
            write_grids(after, grids)

    def _block_grids(self, index: int) -> Path:
        return self._grids / f"{index}.safetensors"

    def _replay(self, index: int) -> None:
        """Send both streams through a block that is already pruned."""
        if self._dense is not None:
            self._runner.advance(index, self._skeleton.fill_block(index, self._device), self._dense)
        pruned = self._skeleton.fill_block(index, self._device, self._target.entries)
        self._runner.advance(index, pruned, self._pruned)
        self._skeleton.empty_block(index)
        release_free_memory()

    @torch.no_grad()
    def _prune(self, index: int) -> dict[str, Any]:
        """Prune one block and advance the streams; return its record for the journal."""
        started = time.perf_counter()
        name = self._skeleton.block_names[index]
        block = self._skeleton.fill_block(index, self._device)
        linears = prunable_linears(block, name, self._job.include, self._job.exclude)
        dense = twin(block) if self._dense is not None else block
        done = self._done()
        self._skeleton.refill_shared(index, self._device, self._target.entries, only=done)
        linears = {full: module for full, module in linears.items() if self._first_name(full) not in done}
        stages = self._stages(index, block, linears)
        reports = [
            report
            for number, stage in enumerate(stages, 1)
            for report in self._prune_stage(index, block, dense, stage, linears, last=number == len(stages))
        ]
        if self._dense is not None and not stages:
            self._runner.advance(index, dense, self._dense)
        self._runner.advance(index, block, self._pruned)
        self._skeleton.empty_block(index)
        if self._on_grid:
            write_grids(self._block_grids(index), self._on_grid)
        self._on_grid = {}
        release_free_memory()
        return {"linears": [asdict(report) for report in reports], "seconds": time.perf_counter() - started}

    def _done(self) -> set[str]:
        """Return the linears of finished blocks: one that several blocks share is pruned in the first that calls it."""
        return {linear["name"] for record in self._journal.steps.values() for linear in record.get("linears", ())}

    def _first_name(self, linear: str) -> str:
        return self._skeleton.first_names.get(f"{linear}.weight", f"{linear}.weight").removesuffix(".weight")

    def _stages(self, index: int, block: nn.Module, linears: dict[str, nn.Module]) -> list[list[list[str]]]:
        """Return groups of linears with equal input, in stages: all at once, or one group after the other."""
        if not linears:
            return []
        later = self._skeleton.shared_names()
        groups = input_groups(
            lambda: self._runner.run(index, block, self._pruned.read(0), 0),
            linears,
            optional={full for full in linears if f"{self._first_name(full)}.weight" in later},
        )
        return [[group] for group in groups] if self._job.sequential else [groups]

    def _prune_stage(
        self,
        index: int,
        block: nn.Module,
        dense: nn.Module,
        stage: list[list[str]],
        linears: dict[str, nn.Module],
        *,
        last: bool,
    ) -> Iterator[LinearReport]:
        """Prune the groups of one stage; the statistics of a group go as soon as its linears are done."""
        statistics = self._gather(index, block, dense, {group[0]: linears[group[0]] for group in stage}, last=last)
        if last and dense is not block:
            for module in dense.modules():
                drop_parameters(module)
        release_free_memory()
        for group in stage:
            shared = statistics.pop(group[0])
            for linear in group:
                yield self._prune_linear(linear, linears[linear], shared)
                release_free_memory()

    def _gather(
        self, index: int, block: nn.Module, dense: nn.Module, firsts: dict[str, nn.Module], *, last: bool
    ) -> dict[str, InputStatistics]:
        """Return the input statistics of the linears `firsts`, one of each group, by name.

        With the `last` groups of a block, the dense stream moves on to the block's output. Experts see other tokens in
        each stream, so their statistics do not relate the two.
        """
        prefix = f"{self._skeleton.block_names[index]}."
        related = [] if self._dense is None else [name for name in firsts if not is_routed(block, name, prefix)]
        statistics = {
            name: InputStatistics(weight_matrix(module).shape[1], cross=name in related, device=self._device)
            for name, module in firsts.items()
        }
        partners = {name: dense.get_submodule(name.removeprefix(prefix)) for name in related}
        for batch in range(len(self._pruned)):
            hidden = self._pruned.read(batch)
            seen, _ = capture_inputs(partial(self._runner.run, index, block, hidden, batch), list(firsts.values()))
            original: dict[str, Tensor] = {}
            if self._dense is not None and (related or last):
                found = self._dense_inputs(index, dense, list(partners.values()), batch, self._dense, last=last)
                original = dict(zip(related, found, strict=True))
            for (name, entry), x in zip(statistics.items(), seen, strict=True):
                entry.add(x, original.get(name))
        return statistics

    def _dense_inputs(
        self, index: int, dense: nn.Module, partners: list[nn.Module], batch: int, stream: Activations, *, last: bool
    ) -> list[Tensor]:
        """Return the inputs of `partners` in the dense stream, which the `last` call sends through the block."""
        run = partial(self._runner.run, index, dense, stream.read(batch), batch)
        inputs, out = capture_inputs(run, partners, to_end=last)
        if out is not None:
            stream.write(batch, out)
        return inputs

    def _prune_linear(self, name: str, module: nn.Module, statistics: InputStatistics) -> LinearReport:
        """Prune one linear in place, in memory and on disk."""
        entry: TensorEntry = self._skeleton.entry(f"{name}.weight", self._target.entries)
        weight = weight_matrix(module)
        transposed = not isinstance(module, nn.Linear)
        config = self._job.config_of(name)
        if config.needs_cross_moment and statistics.c is None:
            config = replace(config, target="pruned")
        if not statistics.tokens:  # an expert that no token went to: all inputs count the same
            statistics.add(torch.eye(weight.shape[1]))
        pruned = prune_matrix(weight.to(entry.dtype), statistics, config)
        stored = pruned.weight.T.contiguous() if transposed else pruned.weight
        write_weight(entry, stored)
        module.weight.copy_(stored)  # type: ignore[operator]
        kept, on_grid, first = int(pruned.keep.sum()), pruned.on_grid, self._first_name(name)
        if on_grid is not None:
            self._on_grid[first] = LinearGrid(on_grid.grid, on_grid.scales.to("cpu", torch.float16).numpy())
        return LinearReport(
            name=first,
            shape=(weight.shape[0], weight.shape[1]),
            sparsity=1 - kept / weight.numel(),
            relative_error=pruned.relative_error,
            quantize=None if on_grid is None else str(on_grid.grid),
            bits=None if on_grid is None else bits_per_weight(on_grid.codes, on_grid.grid),
        )


def _arguments(checkpoint: Checkpoint, job: PruneJob) -> dict[str, Any]:
    """Return what must be equal for a run to be resumed."""
    return {
        "model": str(checkpoint.folder.resolve()),
        "model_files": _fingerprint(checkpoint.folder),
        "calibration": job.calibration.description,
        "windows": list(job.calibration.tokens.shape),
        "seed": job.seed,
        "include": list(job.include),
        "exclude": list(job.exclude),
        "device": job.device,
        "sequential": job.sequential,
        "threads": torch.get_num_threads(),
        "versions": {"edgeslim": __version__, "torch": torch.__version__},
        **asdict(job.config),
        "rules": [[match, asdict(config)] for match, config in job.rules],
    }


def _fingerprint(folder: Path) -> str:
    """Return a digest of the checkpoint's file names, sizes and times: enough to notice that it was changed."""
    facts = [
        (file.name, file.stat().st_size, file.stat().st_mtime_ns)
        for file in sorted(folder.iterdir())
        if file.suffix in {".safetensors", ".json"}
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _copy(source: Path, target: Path) -> None:
    """Copy the files of a checkpoint; links of a hub cache become files of their own."""
    for file in source.iterdir():
        if file.is_file() and file.name not in (REPORT, GRID_FILE) and file.suffix not in _NOT_COPIED:
            shutil.copyfile(file, target / file.name)


def _report(job: PruneJob, linears: list[dict[str, Any]], records: list[dict[str, Any]]) -> PruneReport:
    if not linears:
        raise RecipeError("nothing was pruned: --include and --exclude leave no linear")
    reports = tuple(LinearReport(**{**linear, "shape": tuple(linear["shape"])}) for linear in linears)
    sizes = [report.shape[0] * report.shape[1] for report in reports]
    pruned = sum(report.sparsity * size for report, size in zip(reports, sizes, strict=True))
    return PruneReport(
        method=job.config.method,
        pattern=str(job.config.pattern),
        effort=job.config.effort,
        sparsity=pruned / sum(sizes),
        relative_error=sum(report.relative_error for report in reports) / len(reports),
        calibration=job.calibration.description,
        seconds=sum(record["seconds"] for record in records),
        linears=reports,
        quantize=_grids_of(job),
        bits=_mean_bits(reports),
    )


def _grids_of(job: PruneJob) -> str | None:
    """Return the grids of a job as one text, None where it has none."""
    grids = {str(config.grid) for config in (job.config, *(config for _, config in job.rules)) if config.grid}
    return ", ".join(sorted(grids)) or None


def _mean_bits(reports: tuple[LinearReport, ...]) -> float | None:
    total = sum(report.shape[0] * report.shape[1] for report in reports)
    bits = [report.bits for report in reports]
    if any(each is None for each in bits):
        return None
    return sum(each * r.shape[0] * r.shape[1] for each, r in zip(bits, reports, strict=True) if each) / total


def _mark(content: Path, report: PruneReport, job: PruneJob, checkpoint: Checkpoint) -> None:
    """Write the report, and what later stages need to know into config.json under `edgeslim`."""
    (content / REPORT).write_text(json.dumps(report.to_json(), indent=1) + "\n", encoding="utf-8")
    path = content / "config.json"
    try:
        config = json.loads((checkpoint.folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as fault:
        raise CheckpointError(f"{path}: not JSON: {fault}") from None
    recipe = {
        **asdict(job.config),
        "pattern": report.pattern,
        "grid": None if job.config.grid is None else str(job.config.grid),
        "layers": [_rule(match, config) for match, config in job.rules],
        "calibration": job.calibration.description,
        "samples": job.calibration.tokens.shape[0],
        "seqlen": job.calibration.tokens.shape[1],
        "seed": job.seed,
        "include": list(job.include),
        "exclude": list(job.exclude),
        "sequential": job.sequential,
    }
    config["edgeslim"] = {**config.get("edgeslim", {}), "version": __version__, "prune": recipe}
    config["edgeslim"].pop("grid", None)
    if (content / GRID_FILE).is_file():
        grid = job.config.grid
        config["edgeslim"]["grid"] = {"file": GRID_FILE, **(asdict(grid) if grid is not None else {})}
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _rule(match: str, config: PruneConfig) -> dict[str, str | None]:
    grid = None if config.grid is None else str(config.grid)
    return {"match": match, "pattern": str(config.pattern), "grid": grid}
