"""The verbs of edgeslim as functions: shed, prune, reduce, export, inspect, run, profile, eval, compress and more.

Keyword options are the keys of the verb's recipe (see `edgeslim.recipe`), with its defaults. Heavy libraries are
imported by the verb that needs them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgeslim.errors import EvaluationError, RecipeError, first_line
from edgeslim.output import new_folder, refuse_existing, refuse_existing_file
from edgeslim.progress import Progress, silent
from edgeslim.recipe import (
    EvalRecipe,
    ExportRecipe,
    FrontierRecipe,
    LayerRecipe,
    ProfileRecipe,
    PruneRecipe,
    ReduceRecipe,
    RunRecipe,
    ShedRecipe,
    from_options,
)

if TYPE_CHECKING:
    from edgeslim.calibration import Calibration
    from edgeslim.checkpoint import Checkpoint
    from edgeslim.devices.catalog import Device as DeviceFile
    from edgeslim.devices.estimate import Estimate
    from edgeslim.evaluate.perplexity import PerplexityResult
    from edgeslim.evaluate.reduction_suite import Amount, ReductionResult
    from edgeslim.evaluate.schedules import Trial
    from edgeslim.pruner import PruneReport
    from edgeslim.pruning.methods import PruneConfig
    from edgeslim.pruning.patterns import Pattern
    from edgeslim.reducer import ReduceReport
    from edgeslim.reporting.report import Report
    from edgeslim.runtime.inspection import Inspection
    from edgeslim.runtime.kernel_bench import KernelReport
    from edgeslim.runtime.manifest import Manifest
    from edgeslim.runtime.operators import OperatorProfile
    from edgeslim.runtime.profiler import Profile
    from edgeslim.runtime.repeat import Repeated
    from edgeslim.shedding.job import ShedReport
    from edgeslim.tokens.plan import ReductionPlan

StrPath = str | Path


def prune(
    model: StrPath,
    output: StrPath,
    *,
    force: bool = False,
    restart: bool = False,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    progress: Progress = silent,
    **options: Any,
) -> "PruneReport":
    """Prune the checkpoint `model` (a folder or hub id) into the new folder `output`; return what became of it.

    `options` are the keys of `PruneRecipe`. `allow_pickle` also reads weights that lie in pickles, without running
    their code. A killed prune called again with the same arguments goes on after its last
    finished block; `restart` begins anew, `force` replaces an existing output.

    Raises: RecipeError, CheckpointError, CalibrationError, PruneError, OutputError.
    """
    recipe = from_options(PruneRecipe, options)
    output = Path(output)
    refuse_existing(output, force=force)
    from edgeslim.checkpoint import Checkpoint
    from edgeslim.pruner import PruneJob, prune_checkpoint

    checkpoint = Checkpoint.open(model, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)
    progress(0, 1, "reading calibration text")
    calibration = calibration_windows(recipe, checkpoint)
    config, sequential = _prune_config(recipe)
    job = PruneJob(
        config=config,
        rules=tuple((layer.match, _layer_config(layer, config, recipe)) for layer in recipe.layers),
        calibration=calibration,
        seed=recipe.seed,
        include=recipe.include,
        exclude=recipe.exclude,
        device=torch_device(recipe.device),
        sequential=sequential,
    )
    return prune_checkpoint(checkpoint, output, job, force=force, restart=restart, progress=progress)


def shed(
    model: StrPath,
    output: StrPath,
    *,
    force: bool = False,
    restart: bool = False,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    progress: Progress = silent,
    **options: Any,
) -> "ShedReport":
    """Write the checkpoint `model` without some of its blocks or heads into the new folder `output`; return what went.

    `options`: see `ShedRecipe`. The whole model is in memory. A killed search called again with the same arguments goes
    on after its last step.

    Raises: RecipeError, CheckpointError, CalibrationError, OutputError.
    """
    recipe = from_options(ShedRecipe, options)
    output = Path(output)
    refuse_existing(output, force=force)
    from edgeslim.checkpoint import Checkpoint
    from edgeslim.shedding.job import ShedJob, shed_checkpoint
    from edgeslim.shedding.search import Amount

    checkpoint = Checkpoint.open(model, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)
    progress(0, 1, "reading calibration text")
    windows = PruneRecipe(calib=recipe.calib, samples=recipe.samples, seqlen=recipe.seqlen, seed=recipe.seed)
    job = ShedJob(
        amount=Amount(blocks=recipe.blocks or 0, heads=recipe.heads or 0, parameters=recipe.parameters),
        calibration=calibration_windows(windows, checkpoint),
        method=recipe.method,
        refit=recipe.refit,
        seed=recipe.seed,
        device=torch_device(recipe.device),
    )
    return shed_checkpoint(checkpoint, output, job, force=force, restart=restart, progress=progress)


def reduce(
    model: StrPath, output: StrPath, *, force: bool = False, progress: Progress = silent, **options: Any
) -> "ReduceReport":
    """Copy the checkpoint `model` into the new folder `output` with a plan of token reduction; return what it does.

    `options`: see `ReduceRecipe`.

    Raises: RecipeError, CheckpointError, CalibrationError, OutputError.
    """
    recipe = from_options(ReduceRecipe, options)
    output = Path(output)
    refuse_existing(output, force=force)
    from edgeslim.checkpoint import Checkpoint
    from edgeslim.reducer import reduce_checkpoint

    checkpoint = Checkpoint.open(model)
    measure = _measure_schedules(checkpoint, recipe, progress) if recipe.measure else None
    return reduce_checkpoint(checkpoint.folder, output, recipe, measure=measure, force=force)


def _measure_schedules(
    checkpoint: "Checkpoint", recipe: ReduceRecipe, progress: Progress
) -> "Callable[[Sequence[ReductionPlan]], tuple[Trial, ...]]":
    """Return a function that tries schedules on calibration text, in prompts as long as the recipe's."""
    from edgeslim.checkpoint import quiet_transformers
    from edgeslim.evaluate.schedules import SUFFIX, try_schedules

    seqlen = recipe.prompt_tokens + SUFFIX
    windows = PruneRecipe(calib=recipe.calib, samples=recipe.samples, seqlen=seqlen, seed=recipe.seed)
    tokens = calibration_windows(windows, checkpoint).tokens.numpy()

    def measure(plans: "Sequence[ReductionPlan]") -> "tuple[Trial, ...]":
        with quiet_transformers():
            model = checkpoint.load()
        return try_schedules(model, tokens, plans, on_progress=_labelled(progress, "trying schedules"))

    return measure


def export(
    model: StrPath,
    output: StrPath,
    *,
    force: bool = False,
    allow_pickle: bool = False,
    progress: Progress = silent,
    **options: Any,
) -> "Manifest":
    """Export `model`, a checkpoint or an ONNX file, into the new bundle `output`; return its manifest.

    `options`: see `ExportRecipe`. `allow_pickle` also reads weights that lie in pickles, without running their code.

    Raises: RecipeError, CheckpointError, ExportError, ParityError, OutputError.
    """
    recipe = from_options(ExportRecipe, options)
    output = Path(output)
    refuse_existing(output, force=force)
    from edgeslim.exporters.bundle import STAGES, export_checkpoint

    def stage(name: str) -> None:
        progress(STAGES.index(name), len(STAGES), f"export: {name}")

    shared: dict[str, Any] = {
        "weights": recipe.weights,
        "lowering": recipe.lowering,
        "embedding": recipe.embedding,
        "architectures": recipe.arch or None,
        "library": recipe.library,
        "recipe": {"export": asdict(recipe)},
        "source": str(model),
        "progress": stage,
    }
    if Path(model).suffix == ".onnx":
        from edgeslim.exporters.onnx_model import export_onnx

        with new_folder(output, force=force) as folder:
            return export_onnx(Path(model), folder, **shared)
    from edgeslim.checkpoint import Checkpoint

    checkpoint = Checkpoint.open(model, allow_pickle=allow_pickle)
    with new_folder(output, force=force) as folder:
        return export_checkpoint(checkpoint.folder, folder, **shared)


def inspect(bundle: StrPath) -> "Inspection":
    """Return what `bundle` consists of, its files compared with their checksums, and what runs it on this machine.

    Raises: BundleError, RuntimeUnavailable.
    """
    from edgeslim.runtime.inspection import inspect_bundle

    return inspect_bundle(Path(bundle))


def bench_kernels(*, progress: Progress = silent, **options: Any) -> "KernelReport":
    """Measure every kernel variant on this machine; see `edgeslim.runtime.kernel_bench.bench_kernels`.

    Raises: RuntimeUnavailable, RecipeError.
    """
    from edgeslim.runtime.kernel_bench import bench_kernels

    return bench_kernels(**options, on_progress=_labelled(progress, "measuring kernels"))


def run(
    bundle: StrPath,
    prompt: str,
    *,
    load_state: StrPath | None = None,
    save_state: StrPath | None = None,
    force: bool = False,
    **options: Any,
) -> Iterator[str]:
    """Yield the text that `bundle` writes after `prompt`, piece by piece. `options`: see `RunRecipe`.

    `load_state` is a file of an earlier run's state: the bare `prompt`, which may be empty, goes on after it.
    `save_state` is the file that the state at the end goes to, `force` replaces one that is there. Engine ``auto`` is
    then the one that wrote the file, or onnxruntime, or without it the native runtime.

    Raises: RecipeError, BundleError, RuntimeUnavailable, OutputError.
    """
    recipe = from_options(RunRecipe, {**options, "prompt": prompt})
    if save_state is not None:
        refuse_existing_file(Path(save_state), force=force)
    from edgeslim.runtime.config import bundle_file
    from edgeslim.runtime.generate import Sampling, generate, go_on
    from edgeslim.runtime.session import open_session
    from edgeslim.runtime.text import TextCodec

    bundle = Path(bundle)
    bundle_file(bundle)
    codec = TextCodec(bundle)
    if load_state is None:
        tokens = codec.prompt_tokens(recipe.prompt, raw=recipe.raw)
    else:
        tokens = codec.encode(recipe.prompt, special=False)
    if not tokens and load_state is None:
        raise RecipeError("the prompt is empty and the model has no token to begin with; give at least one word")
    session = open_session(bundle, _run_engine(recipe.engine, load_state, save_state), recipe.threads)  # type: ignore[arg-type]
    logits = None if load_state is None else session.load_state(Path(load_state))
    sampling = Sampling(temperature=recipe.temperature, top_k=recipe.top_k, top_p=recipe.top_p, seed=recipe.seed)
    if load_state is None and save_state is None:
        new = generate(session, tokens, recipe.max_new_tokens, sampling, session.config.eos_ids)
    else:
        new = go_on(session, logits, tokens, recipe.max_new_tokens, sampling, session.config.eos_ids)
    yield from codec.detokenizer().stream(new)
    if save_state is not None:
        session.save_state(Path(save_state))


def _run_engine(engine: str, load_state: StrPath | None, save_state: StrPath | None) -> str:
    """Return the engine for a run that may begin or end in a file, which onnxruntime-genai cannot."""
    if load_state is None and save_state is None:
        return engine
    if engine == "genai":
        raise RecipeError("engine genai keeps its state to itself: it cannot be saved or loaded; take ort or native")
    if engine != "auto":
        return engine
    if load_state is None:
        from edgeslim.runtime.engines import is_installed

        return "ort" if is_installed("ort") else "native"
    from edgeslim.runtime.saved_state import state_engine

    return state_engine(Path(load_state))


def profile(bundle: StrPath, *, progress: Progress = silent, **options: Any) -> "Profile | OperatorProfile | Estimate":
    """Measure `bundle`, in a process of its own on this machine or on another device. `options`: see `ProfileRecipe`.

    With `estimate` true nothing is measured: see `estimate`, whose `device` it needs. With `operators` true the time of
    each kind of operator is measured too, on this machine's onnxruntime.

    Raises: RecipeError, BundleError, RuntimeUnavailable, DeviceError.
    """
    if options.pop("estimate", None):
        return estimate(bundle, **options)
    operators = options.pop("operators", None)
    recipe = asdict(from_options(ProfileRecipe, options))
    device, bench_dir = recipe.pop("device"), recipe.pop("bench_dir")
    if device != "local" or bench_dir is not None:
        if operators:
            raise RecipeError(f"operators are timed on this machine only, got device {device!r}")
        from edgeslim.devices.remote import profile_on

        return profile_on(device, Path(bundle), bench_dir=bench_dir, **recipe, progress=progress)
    from edgeslim.runtime.profiler import profile_bundle

    measured = profile_bundle(Path(bundle), **recipe, on_progress=_labelled(progress, "profiling"))
    if not operators:
        return measured
    from edgeslim.runtime.operators import OperatorProfile, operator_times

    tokens = {name: recipe[name] for name in ("prompt_tokens", "new_tokens")}
    timed = operator_times(
        Path(bundle), **tokens, threads=measured.threads, on_progress=_labelled(progress, "timing operators")
    )
    return OperatorProfile(profile=measured, operators=timed)


def repeat_profile(bundle: StrPath, count: int, *, progress: Progress = silent, **options: Any) -> "Repeated":
    """Measure `bundle` on this machine `count` times; return the profiles, and what was different where they differ.

    `options`: see `ProfileRecipe`.

    Raises: RecipeError, BundleError, RuntimeUnavailable.
    """
    recipe = asdict(from_options(ProfileRecipe, options))
    device, bench_dir = recipe.pop("device"), recipe.pop("bench_dir")
    if device != "local" or bench_dir is not None:
        raise RecipeError(f"repeat measures this machine only, got device {device!r}")
    from edgeslim.runtime.repeat import repeat_profile

    return repeat_profile(Path(bundle), count, **recipe, on_progress=_labelled(progress, "profiling"))


def estimate(bundle: StrPath, device: str | None = None, **options: Any) -> "Estimate":
    """Return what `bundle` is believed to do on `device`, a known one's name or the path of a device's TOML file.

    Nothing is run. `options`: `prompt_tokens`, `new_tokens` and `engine`, as in `ProfileRecipe`.

    Raises: RecipeError, BundleError, DeviceError.
    """
    recipe = from_options(ProfileRecipe, options)
    if device is None:
        raise RecipeError("estimate needs device: a known one's name (`edgeslim devices list`) or a device file")
    from edgeslim.devices.catalog import load_device
    from edgeslim.devices.estimate import estimate_bundle
    from edgeslim.devices.transports import is_transport

    if is_transport(device):
        raise RecipeError(
            f"estimate reckons from a device file, got {device!r}: `edgeslim devices list` has the known ones, "
            "`edgeslim devices probe -o FILE` writes that of the machine it runs on"
        )
    return estimate_bundle(
        Path(bundle),
        load_device(device),
        prompt_tokens=recipe.prompt_tokens,
        new_tokens=recipe.new_tokens,
        engine=recipe.engine,
    )


def probe(output: StrPath | None = None, *, progress: Progress = silent, **options: Any) -> "DeviceFile":
    """Measure this machine, write its device file to `output` where one is named, and return the device.

    `options`: see `edgeslim.devices.probe.probe_machine`.

    Raises: RuntimeUnavailable, OutputError.
    """
    from edgeslim.devices.device_file import check_output, write_device
    from edgeslim.devices.probe import probe_machine

    if output is not None:
        check_output(Path(output))
    device = probe_machine(**options, on_progress=_labelled(progress, "probing"))
    if output is not None:
        write_device(device, Path(output))
    return device


def report(profiles: Sequence[StrPath | Mapping[str, Any]], output: StrPath, *, force: bool = False) -> "Report":
    """Write one report on `profiles` to the file `output`, by its suffix .html, .md or .json; return the report.

    `profiles` are profiles as JSON objects, or files of such: of `profile --json`, `eval --json`, `compress`, or an
    earlier report.

    Raises: RecipeError, OutputError.
    """
    from edgeslim.reporting.report import write_report

    return write_report(profiles, Path(output), force=force)


def eval(
    model: StrPath,
    *,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    progress: Progress = silent,
    **options: Any,
) -> "PerplexityResult | ReductionResult":
    """Return what a checkpoint or a bundle is worth on a text, by the suite asked for. `options`: see `EvalRecipe`.

    Raises: RecipeError, CheckpointError, BundleError, EvaluationError.
    """
    recipe = from_options(EvalRecipe, options)
    text = _evaluation_text(recipe.text)
    from edgeslim.runtime.manifest import MANIFEST

    if (Path(model) / MANIFEST).is_file():
        if recipe.suite == "reduction":
            return _eval_reducing_bundle(Path(model), text, recipe, progress)
        return _eval_bundle(Path(model), text, recipe, progress)
    from edgeslim.checkpoint import Checkpoint

    checkpoint = Checkpoint.open(model, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)
    if recipe.suite == "reduction":
        return _eval_reduction(checkpoint, text, recipe, progress)
    return _eval_checkpoint(checkpoint, text, recipe, progress)


def compress(
    recipe_file: StrPath, output: StrPath, *, force: bool = False, restart: bool = False, progress: Progress = silent
) -> dict[str, Any]:
    """Take a model the whole way that the TOML `recipe_file` describes; return the report, as plain JSON values.

    `output` gets `checkpoint/` (pruned), `bundle/` and `report.json`. Finished steps of a killed run are kept.

    Raises: RecipeError and whatever the steps raise.
    """
    from edgeslim.compress_job import compress_checkpoint
    from edgeslim.recipe import read_recipe

    return compress_checkpoint(
        read_recipe(Path(recipe_file)), Path(output), force=force, restart=restart, progress=progress
    )


def frontier(
    model: StrPath,
    output: StrPath,
    *,
    force: bool = False,
    restart: bool = False,
    progress: Progress = silent,
    **options: Any,
) -> dict[str, Any]:
    """Try forms of `model`, uniform ones and one for each linear, and measure each; return the report as JSON values.

    `options`: see `FrontierRecipe`. `output` gets the table (Markdown and JSON), a plot, and each trial's recipe, which
    `compress` repeats. What a killed run has finished is kept; an `output` that differs in nothing but `max_bytes` and
    `min_tok_s` is not measured again.

    Raises: RecipeError and whatever the steps raise.
    """
    recipe = from_options(FrontierRecipe, options)
    from edgeslim.search.job import run_frontier

    return run_frontier(str(model), Path(output), recipe, force=force, restart=restart, progress=progress)


_STREAMS: dict[str, tuple[Literal["pruned", "dense"], bool]] = {"fast": ("pruned", False), "best": ("dense", True)}
"""For each effort of MRP: the stream whose outputs are fitted, and whether a block's linears are pruned in sequence.

Measured at 60 % on early weights of the bundled models: fitting the dense stream closed 35 % of SparseGPT's gap on the
Mamba-2 instead of 27 %; with it, sequence closed 61 % on the Llama instead of 56 %. Both cost forward passes only.
"""


def _prune_config(recipe: PruneRecipe) -> tuple["PruneConfig", bool]:
    """Return the method's configuration, and whether linears of a block are pruned one after the other."""
    from edgeslim.pruning.methods import PruneConfig
    from edgeslim.quantize.grid import parse_grid

    target, sequential = _STREAMS[recipe.effort] if recipe.method == "mrp" else ("pruned", False)
    config = PruneConfig(
        method=recipe.method,  # type: ignore[arg-type]
        pattern=_pattern(recipe.pattern, recipe.sparsity, recipe.scope),
        grid=parse_grid(recipe.quantize) if recipe.quantize else None,
        effort=recipe.effort,  # type: ignore[arg-type]
        mask_rule=recipe.mask_rule,  # type: ignore[arg-type]
        solver=recipe.solver,  # type: ignore[arg-type]
        target=recipe.target or target,  # type: ignore[arg-type]
    )
    return config, sequential if recipe.sequential is None else recipe.sequential


def _pattern(text: str | None, sparsity: float | None, scope: str) -> "Pattern":
    """Return the pattern meant by `text` ("2:4", "block:64") or a sparsity, by 50 % where none is given."""
    from edgeslim.pruning.patterns import Unstructured, parse_pattern

    pattern = parse_pattern(text, sparsity) if text else Unstructured(sparsity=0.5 if sparsity is None else sparsity)
    return replace(pattern, scope=scope) if isinstance(pattern, Unstructured) else pattern  # type: ignore[arg-type]


def _layer_config(layer: LayerRecipe, config: "PruneConfig", recipe: PruneRecipe) -> "PruneConfig":
    """Return `config` with what `layer` says otherwise."""
    from edgeslim.quantize.grid import parse_grid

    if layer.pattern is not None or layer.sparsity is not None:
        config = replace(config, pattern=_pattern(layer.pattern, layer.sparsity, recipe.scope))
    if layer.quantize is None:
        return config
    return replace(config, grid=None if layer.quantize == "none" else parse_grid(layer.quantize))


def calibration_windows(recipe: PruneRecipe, checkpoint: "Checkpoint") -> "Calibration":
    """Return the calibration windows that `recipe` asks for, in the checkpoint's tokens.

    Raises: RecipeError, CalibrationError, CheckpointError.
    """
    from edgeslim.calibration import read_text, sample_windows

    return sample_windows(
        read_text(recipe.calib),
        checkpoint.tokenizer(),
        samples=recipe.samples,
        seqlen=_calibration_length(recipe, checkpoint.config),
        seed=recipe.seed,
    )


def _calibration_length(recipe: PruneRecipe, config: Any) -> int:
    """Return the window length: as asked, else 2048 or the model's context where that is shorter."""
    limit = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    if recipe.seqlen is None:
        return min(2048, limit or 2048)
    if limit and recipe.seqlen > limit:
        raise RecipeError(f"seqlen {recipe.seqlen} is longer than the model's context of {limit} tokens")
    return recipe.seqlen


def torch_device(name: str) -> str:
    """Return the device that `name` (auto, cpu, cuda) means here.

    Raises: RecipeError where it cannot be used.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as fault:
        raise RecipeError(f"device {name!r} cannot be used here: {first_line(fault)}") from None
    return name


def _evaluation_text(source: str | None) -> str:
    if source is None:
        from edgeslim.corpus import standard_library_text

        return standard_library_text("heldout").text
    try:
        return Path(source).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise EvaluationError(f"{source}: no such text file") from None
    except (OSError, UnicodeDecodeError) as fault:
        raise EvaluationError(f"{source}: cannot be read as UTF-8 text: {fault}") from None


def _eval_bundle(bundle: Path, text: str, recipe: EvalRecipe, progress: Progress) -> "PerplexityResult":
    from edgeslim.evaluate.bundle import bundle_perplexity

    return bundle_perplexity(
        bundle,
        text,
        seqlen=recipe.seqlen,
        rule=recipe.rule,  # type: ignore[arg-type]
        on_progress=_labelled(progress, "scoring the bundle"),
    )


def _eval_checkpoint(checkpoint: "Checkpoint", text: str, recipe: EvalRecipe, progress: Progress) -> "PerplexityResult":
    from edgeslim.checkpoint import quiet_transformers
    from edgeslim.evaluate.checkpoint import model_perplexity

    with quiet_transformers():
        return model_perplexity(
            checkpoint.load(),
            checkpoint.tokenizer(),
            text,
            seqlen=recipe.seqlen,
            rule=recipe.rule,  # type: ignore[arg-type]
            device=torch_device(recipe.device),
            on_progress=_labelled(progress, "scoring the checkpoint"),
        )


def _eval_reduction(checkpoint: "Checkpoint", text: str, recipe: EvalRecipe, progress: Progress) -> "ReductionResult":
    """Compare a model whose tokens are reduced with itself unreduced."""
    from edgeslim.checkpoint import quiet_transformers
    from edgeslim.evaluate.torch_prompts import checkpoint_reduction

    with quiet_transformers():
        return checkpoint_reduction(
            checkpoint,
            text,
            _amount(recipe),
            device=torch_device(recipe.device),
            on_progress=_labelled(progress, "scoring, reduced and dense"),
        )


def _eval_reducing_bundle(bundle: Path, text: str, recipe: EvalRecipe, progress: Progress) -> "ReductionResult":
    """Compare a bundle that reduces its prompts with itself unreduced."""
    from edgeslim.evaluate.bundle_prompts import bundle_reduction

    return bundle_reduction(
        bundle, text, _amount(recipe), on_progress=_labelled(progress, "scoring the bundle, reduced and dense")
    )


def _amount(recipe: EvalRecipe) -> "Amount":
    """Return how much the reduction suite scores."""
    from edgeslim.evaluate.reduction_suite import Amount

    return Amount(
        seqlen=recipe.seqlen,
        suffix=max(1, min(64, recipe.seqlen // 4)),
        windows=recipe.windows,
        prompts=recipe.prompts,
        seeds=tuple(range(recipe.seeds)),
    )


def _labelled(progress: Progress, label: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(done, total, label)
