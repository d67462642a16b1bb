"""The command line: one verb a function, options as in the recipes, results on stdout, everything else on stderr."""

import json
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from edgeslim import __version__, api
from edgeslim.errors import EdgeslimError, RecipeError
from edgeslim.progress import Progress, progress_bar
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
    read_recipe,
)

app = typer.Typer(
    name="edgeslim",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Prune a small language model, export it to ONNX, run and measure it.",
)

bench = typer.Typer(no_args_is_help=True, help="Measure parts of edgeslim on this machine.")
app.add_typer(bench, name="bench")
devices = typer.Typer(no_args_is_help=True, help="Devices that there are files for, and the file of this machine.")
app.add_typer(devices, name="devices")

_PRUNE, _EXPORT, _RUN, _PROFILE, _EVAL = PruneRecipe(), ExportRecipe(), RunRecipe(), ProfileRecipe(), EvalRecipe()
_FRONTIER, _REDUCE, _SHED = FrontierRecipe(), ReduceRecipe(), ShedRecipe(blocks=1)

_EXTRA_OF = {
    **dict.fromkeys(("torch", "transformers", "safetensors", "tokenizers", "datasets", "huggingface_hub"), "compress"),
    **dict.fromkeys(("mobius", "onnx", "onnx_ir", "onnxscript"), "export"),
}
"""The extra of pyproject.toml that brings a package."""

Model = Annotated[str, typer.Argument(help="A Hugging Face checkpoint folder or hub id.", show_default=False)]
Bundle = Annotated[Path, typer.Argument(help="A bundle folder.", show_default=False)]
Output = Annotated[Path, typer.Option("--output", "-o", help="The folder to write.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, nothing else.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing output.")]
Restart = Annotated[bool, typer.Option("--restart", help="Begin anew instead of resuming an interrupted run.")]
Remote = Annotated[bool, typer.Option("--trust-remote-code", help="Run Python code that the checkpoint brings.")]
Pickle = Annotated[bool, typer.Option("--allow-pickle", help="Read weights in pickles (*.bin), running no code.")]
Threads = Annotated[int | None, typer.Option(help="Threads of the engine.  [default: the engine's choice]")]
Engine = Annotated[str, typer.Option(help="auto, genai (onnxruntime-genai), ort (onnxruntime) or native (ours).")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Calibration = Annotated[
    str | None, typer.Option(help="Text file, folder, JSONL or dataset id.  [default: the bundled text]")
]
Samples = Annotated[int, typer.Option(help="Calibration windows.")]
Seqlen = Annotated[int | None, typer.Option(help="Tokens a window.  [default: 2048 or the context]")]
Seed = Annotated[int, typer.Option(help="Where the windows lie.")]
Effort = Annotated[str, typer.Option(help="fast or best.")]


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    if debug:
        os.environ["EDGESLIM_DEBUG"] = "1"
    if version:
        print(f"edgeslim {__version__}")
        raise typer.Exit


@app.command()
def prune(
    model: Model,
    output: Output,
    method: Annotated[str, typer.Option(help="magnitude, wanda, sparsegpt or mrp.")] = _PRUNE.method,
    sparsity: Annotated[float | None, typer.Option(help="Share of weights to prune.  [default: 0.5]")] = None,
    pattern: Annotated[
        str | None, typer.Option(help="n:m (2:4: 2 kept of every 4 inputs) or block:ROWS (outputs that share inputs).")
    ] = None,
    quantize: Annotated[
        str | None, typer.Option(help="Put the kept weights on a grid: int8, int4, int3 or int2, as int3:64.")
    ] = None,
    layers: Annotated[
        Path | None, typer.Option(help="A recipe (TOML) whose [[prune.layers]] set some linears apart.")
    ] = None,
    scope: Annotated[str, typer.Option(help="Where the share is counted: row or layer.")] = _PRUNE.scope,
    calib: Calibration = None,
    samples: Samples = _PRUNE.samples,
    seqlen: Seqlen = None,
    seed: Seed = _PRUNE.seed,
    device: Device = _PRUNE.device,
    effort: Effort = _PRUNE.effort,
    mask_rule: Annotated[str | None, typer.Option(help="MRP's mask: s, m, progressive or admm.")] = None,
    solver: Annotated[str | None, typer.Option(help="MRP's solver: cholesky or cg.")] = None,
    target: Annotated[str | None, typer.Option(help="What MRP fits: the pruned or the dense stream.")] = None,
    sequential: Annotated[
        bool | None, typer.Option("--sequential/--together", help="Prune a block's linears one after the other.")
    ] = None,
    include: Annotated[list[str] | None, typer.Option(help="Only linears whose name matches; repeatable.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="No linears whose name matches; repeatable.")] = None,
    trust_remote_code: Remote = False,
    allow_pickle: Pickle = False,
    force: Force = False,
    restart: Restart = False,
    as_json: Json = False,
) -> None:
    """Prune a checkpoint into a new checkpoint that transformers loads."""
    with _reporting() as progress:
        report = api.prune(
            model,
            output,
            force=force,
            restart=restart,
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
            progress=progress,
            **_given(
                method=method,
                sparsity=sparsity,
                pattern=pattern,
                quantize=quantize,
                layers=_layers(layers),
                scope=scope,
                calib=calib,
                samples=samples,
                seqlen=seqlen,
                seed=seed,
                device=device,
                effort=effort,
                mask_rule=mask_rule,
                solver=solver,
                target=target,
                sequential=sequential,
                include=tuple(include or ()),
                exclude=tuple(exclude or ()),
            ),
        )
    if as_json:
        return _print_json(report.to_json())
    print(f"{output}: {report.method}, {report.pattern}, {len(report.linears)} linears, {report.sparsity:.1%} pruned")
    if report.quantize is not None:
        mean = "" if report.bits is None else f", {report.bits:.2f} bits a weight with mask and scales"
        print(f"on the grid {report.quantize}{mean}")
    print(f"relative output error {report.relative_error:.4f} (mean over linears), {report.seconds:.0f} s")
    print(f"calibrated on {report.calibration}")


@app.command()
def shed(
    model: Model,
    output: Output,
    blocks: Annotated[int | None, typer.Option(help="Whole decoder blocks to take out.", show_default=False)] = None,
    heads: Annotated[
        int | None, typer.Option(help="Heads to take out of every Mamba-2 mixer.", show_default=False)
    ] = None,
    parameters: Annotated[
        float | None,
        typer.Option(help="Instead: share of all parameters, in blocks, then heads.", show_default=False),
    ] = None,
    method: Annotated[str, typer.Option(help="measured, random, last or magnitude.")] = _SHED.method,
    refit: Annotated[
        bool, typer.Option("--refit/--no-refit", help="Solve output projections for fewer heads.")
    ] = _SHED.refit,
    calib: Calibration = None,
    samples: Samples = _SHED.samples,
    seqlen: Annotated[int, typer.Option(help="Tokens a window.")] = _SHED.seqlen,
    seed: Annotated[int, typer.Option(help="Where the windows lie, and of random.")] = _SHED.seed,
    device: Device = _SHED.device,
    trust_remote_code: Remote = False,
    allow_pickle: Pickle = False,
    force: Force = False,
    restart: Restart = False,
    as_json: Json = False,
) -> None:
    """Take whole blocks or Mamba-2 heads out of a checkpoint, those whose absence costs least, for a smaller one."""
    with _reporting() as progress:
        report = api.shed(
            model,
            output,
            force=force,
            restart=restart,
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
            progress=progress,
            **_given(
                blocks=blocks,
                heads=heads,
                parameters=parameters,
                method=method,
                refit=refit,
                calib=calib,
                samples=samples,
                seqlen=seqlen,
                seed=seed,
                device=device,
            ),
        )
    if as_json:
        return _print_json(report.to_json())
    print(f"{output}: {report.parameters:,} of {report.dense_parameters:,} parameters ({report.removed:.1%} less)")
    print(f"blocks taken out, in this order: {', '.join(map(str, report.blocks)) or 'none'}")
    if report.heads:
        print(f"heads taken out of every mixer: {len(next(iter(report.heads.values())))} ({report.model_type})")
    print(f"loss on the calibration windows {report.loss:.4f} nats a token, before {report.dense_loss:.4f}")


@app.command()
def reduce(
    model: Model,
    output: Output,
    method: Annotated[
        str, typer.Option(help="utrc, evit, pumer, ltmp, random, truncate or official-code.")
    ] = _REDUCE.method,
    flops: Annotated[float | None, typer.Option(help="Share of a prefill's FLOPs to save.  [default: 0.2]")] = None,
    layers: Annotated[
        str | None, typer.Option(help="Layers to reduce at, as 10,15,20.  [default: late ones, by the model's depth]")
    ] = None,
    ratio: Annotated[float | None, typer.Option(help="Tokens kept at each layer, instead of --flops.")] = None,
    metric: Annotated[
        str | None,
        typer.Option(help="Importance: clip, l1, l2, none; attention, key-norm.  [default: clip; attention]"),
    ] = None,
    q: Annotated[float, typer.Option(help="Share of removed tokens that a hybrid prunes; the rest merge.")] = _REDUCE.q,
    hidden: Annotated[str, typer.Option(help="The mixer's branch: hybrid, merge or prune.")] = _REDUCE.hidden,
    residual: Annotated[str, typer.Option(help="The residual beside it: hybrid, merge or prune.")] = _REDUCE.residual,
    merge: Annotated[str, typer.Option(help="Tokens that share a destination: pairwise or mean.")] = _REDUCE.merge,
    protect_last: Annotated[int, typer.Option(help="Tokens at the end that stay as they are.")] = _REDUCE.protect_last,
    protect_first: Annotated[
        bool, typer.Option("--protect-first/--no-protect-first", help="The first token stays as it is.")
    ] = _REDUCE.protect_first,
    min_tokens: Annotated[int, typer.Option(help="Fewer tokens than these are left as they are.")] = _REDUCE.min_tokens,
    prompt_tokens: Annotated[int, typer.Option(help="Prompt for which FLOPs are counted.")] = _REDUCE.prompt_tokens,
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Choose the layers by what they cost on text.")
    ] = _REDUCE.measure,
    calib: Annotated[str | None, typer.Option(help="Text to measure on.  [default: the bundled text]")] = None,
    samples: Annotated[int, typer.Option(help="Windows to measure on.")] = _REDUCE.samples,
    seed: Annotated[int, typer.Option(help="Of random, and of the windows.")] = _REDUCE.seed,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Copy a checkpoint with a plan of which tokens of a prompt to drop or merge, at which layers."""
    with _reporting() as progress:
        report = api.reduce(
            model,
            output,
            force=force,
            progress=progress,
            **_given(
                method=method,
                flops=flops,
                layers=_integers("layers", layers),
                ratio=ratio,
                metric=metric,
                q=q,
                hidden=hidden,
                residual=residual,
                merge=merge,
                protect_last=protect_last,
                protect_first=protect_first,
                min_tokens=min_tokens,
                prompt_tokens=prompt_tokens,
                measure=measure,
                calib=calib,
                samples=samples,
                seed=seed,
            ),
        )
    if as_json:
        return _print_json(report.to_json())
    plan = report.plan
    for trial in report.trials:
        where = f"layers {', '.join(map(str, trial.layers))} (ratio {trial.ratio})" if trial.layers else "unreduced"
        print(f"{where}: {trial.suffix_nll:.4f} nats a token after the prompt")
    print(f"{output}: {plan.method}, of {plan.prompt_tokens} tokens {', '.join(map(str, report.kept))} are left")
    print(f"after layers {', '.join(map(str, plan.layers))} (ratio {plan.ratios[0]}; -1 is before the first)")
    print(f"FLOPs of the prefill: {plan.flops_cut_counted:.1%} less, counted with head and reduction")
    by_formula = "" if report.formula_ratio is None else f", which would keep {report.formula_ratio} for the same cut"
    print(f"by the paper's formula: {plan.flops_cut_formula:.1%} less{by_formula}")


@app.command()
def export(
    model: Model,
    output: Output,
    weights: Annotated[
        str, typer.Option(help="auto (the checkpoint's grid, else int8), fp32, fp16, int8, int4 or int3.")
    ] = _EXPORT.weights,
    lowering: Annotated[
        str, typer.Option(help="auto, kernel (operators of ours), gather (for block:ROWS), dense (stock) or tensorrt.")
    ] = _EXPORT.lowering,
    embedding: Annotated[
        str,
        typer.Option(help="The embedding and a head tied to it: auto (int8 or as --weights) or one of those."),
    ] = _EXPORT.embedding,
    arch: Annotated[
        str | None, typer.Option(help="Architectures whose kernel library goes along, such as x86_64,aarch64.")
    ] = None,
    library: Annotated[
        bool, typer.Option("--library/--no-library", help="Take the kernel library along.")
    ] = _EXPORT.library,
    allow_pickle: Pickle = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Export a checkpoint, or a .onnx file, to a bundle: an onnxruntime-genai model folder with a manifest."""
    architectures = tuple(name.strip() for name in arch.split(",") if name.strip()) if arch else ()
    with _reporting() as progress:
        manifest = api.export(
            model,
            output,
            force=force,
            allow_pickle=allow_pickle,
            progress=progress,
            **_given(weights=weights, lowering=lowering, embedding=embedding, arch=architectures, library=library),
        )
    if as_json:
        return _print_json(manifest.to_json())
    print(f"{output}: {manifest.weights} weights, {manifest.weight_bytes / 1e6:.1f} MB")
    print(f"lowering {manifest.lowering} ({manifest.reason}); libraries: {', '.join(manifest.libraries) or 'none'}")
    past = manifest.recipe
    if weights == "auto" and manifest.weights == "int8" and "prune" in past and "grid" not in past:
        print("int8, for it was pruned without a grid; with prune --quantize int4:64 or int3:64 it takes fewer bits")
    if "max_abs_error" not in manifest.parity:
        return print(f"not compared with where it came from: {manifest.parity['not_compared']}")
    worst = max(manifest.parity["max_abs_error"].values())
    print(f"outputs differ from the source's by at most {worst:.2g}, of at most {manifest.parity['logit_scale']:.3g}")


@app.command()
def frontier(
    model: Model,
    output: Output,
    bits: Annotated[str, typer.Option(help="Range of bits a weight: values, mask and scales.")] = _FRONTIER.bits,
    calib: Calibration = None,
    samples: Samples = _FRONTIER.samples,
    seqlen: Annotated[int, typer.Option(help="Tokens a window.")] = _FRONTIER.seqlen,
    seed: Seed = _FRONTIER.seed,
    device: Device = _FRONTIER.device,
    effort: Effort = _FRONTIER.effort,
    text: Annotated[str | None, typer.Option(help="Text to score.  [default: the bundled held-out text]")] = None,
    eval_seqlen: Annotated[int, typer.Option(help="Tokens a window of the text to score.")] = _FRONTIER.eval_seqlen,
    lowering: Annotated[str, typer.Option(help="auto, kernel or dense.")] = _FRONTIER.lowering,
    profile: Annotated[bool, typer.Option("--profile/--no-profile", help="Measure speeds.")] = _FRONTIER.profile,
    plot: Annotated[bool, typer.Option("--plot/--no-plot", help="Draw the plot.")] = _FRONTIER.plot,
    max_bytes: Annotated[int | None, typer.Option(help="Name the best with at most so many bytes of weights.")] = None,
    min_tok_s: Annotated[float | None, typer.Option(help="Name the best that decodes at least so fast.")] = None,
    force: Force = False,
    restart: Restart = False,
    as_json: Json = False,
) -> None:
    """Try forms of a model, uniform ones and one for each linear: a table and a plot of perplexity, bytes and speed.

    Some twenty trials, each a prune, an export, a perplexity and a profile. A run that was stopped goes on when called
    again; a finished folder asked with another --max-bytes or --min-tok-s answers at once. Without either, the form
    named is the smallest within 1 % of the dense perplexity.
    """
    with _reporting() as progress:
        report = api.frontier(
            model,
            output,
            force=force,
            restart=restart,
            progress=progress,
            **_given(
                bits=bits,
                calib=calib,
                samples=samples,
                seqlen=seqlen,
                seed=seed,
                device=device,
                effort=effort,
                text=text,
                eval_seqlen=eval_seqlen,
                lowering=lowering,
                profile=profile,
                plot=plot,
                max_bytes=max_bytes,
                min_tok_s=min_tok_s,
            ),
        )
    if as_json:
        return _print_json(report)
    from edgeslim.tables import print_frontier

    print_frontier(report, output)


@app.command()
def inspect(bundle: Bundle, as_json: Json = False) -> None:
    """Show a bundle layer by layer: pattern, bits, bytes, and what runs it here. Every file's checksum is verified."""
    with _one_line_errors():
        inspection = api.inspect(bundle)
    if as_json:
        return _print_json(inspection.to_json())
    from edgeslim.tables import print_inspection

    print_inspection(inspection)


@bench.command(name="kernels")
def kernels(
    isa: Annotated[
        list[str] | None, typer.Option(help="Variant to measure; repeatable.  [default: the one in use]")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads.  [default: the physical cores]")] = None,
    megabytes: Annotated[int, typer.Option(help="Size of a matrix in dense int8.")] = 256,
    rounds: Annotated[int, typer.Option(help="Rounds, of which the best counts.")] = 5,
    refresh: Annotated[
        bool, typer.Option("--refresh/--no-refresh", help="Let `auto` decide by what is measured.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Measure each kernel: Gweights/s, GB/s and the share of this machine's read bandwidth."""
    options = _given(isas=isa, threads=threads, megabytes=megabytes, rounds=rounds, refresh=refresh)
    with _reporting() as progress:
        report = api.bench_kernels(progress=progress, **options)
    if as_json:
        return _print_json(asdict(report))
    from edgeslim.tables import print_kernels

    print_kernels(report)


@app.command()
def run(
    bundle: Bundle,
    prompt: Annotated[
        str | None,
        typer.Option(help=f"What the model goes on from.  [default: {_RUN.prompt}; none after --load-state]"),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="The most tokens to write.")] = _RUN.max_new_tokens,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = _RUN.temperature,
    top_k: Annotated[int, typer.Option(help="Draw from this many tokens; 0: all.")] = _RUN.top_k,
    top_p: Annotated[float, typer.Option(help="Draw from this share of probability.")] = _RUN.top_p,
    seed: Annotated[int, typer.Option(help="Of the draw.")] = _RUN.seed,
    raw: Annotated[bool, typer.Option("--raw", help="No chat template.")] = False,
    load_state: Annotated[
        Path | None, typer.Option(help="Go on from this file's state; the prompt is bare text.", show_default=False)
    ] = None,
    save_state: Annotated[
        Path | None, typer.Option(help="Write the state at the end to this file.", show_default=False)
    ] = None,
    engine: Engine = _RUN.engine,
    threads: Threads = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Generate text, streamed as it comes. A state saved here goes on exactly, in the same bundle and engine."""
    options = _given(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        raw=raw,
        engine=engine,
        threads=threads,
    )
    if prompt is None:
        prompt = _RUN.prompt if load_state is None else ""
    with _one_line_errors():
        pieces = api.run(bundle, prompt, load_state=load_state, save_state=save_state, force=force, **options)
        if as_json:
            return _print_json({"prompt": prompt, "text": "".join(pieces)})
        for piece in pieces:
            print(piece, end="", flush=True)
        print()


@app.command()
def profile(
    bundles: Annotated[list[Path], typer.Argument(help="Bundle folders.", show_default=False)],
    device: Annotated[
        list[str] | None,
        typer.Option(help="local, ssh://HOST, ssh://USER@HOST:PORT, adb or adb:SERIAL; repeatable.  [default: local]"),
    ] = None,
    bench_dir: Annotated[
        Path | None,
        typer.Option(help="Folder with edgeslim-bench and libonnxruntime.so for the device.", show_default=False),
    ] = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Run nothing: reckon it from the file of --device NAME or FILE.toml.")
    ] = False,
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of the prompt.")] = _PROFILE.prompt_tokens,
    new_tokens: Annotated[int, typer.Option(help="Tokens decoded after it.")] = _PROFILE.new_tokens,
    threads: Threads = None,
    engine: Engine = _PROFILE.engine,
    repeats: Annotated[int, typer.Option(help="Counted runs.")] = _PROFILE.repeats,
    warmup: Annotated[int, typer.Option(help="Runs before, not counted.")] = _PROFILE.warmup,
    repeat: Annotated[
        int | None,
        typer.Option(help="Profiles in a row; exit 3 and the cause where they differ by over 5 %.", show_default=False),
    ] = None,
    operators: Annotated[bool, typer.Option("--operators", help="Also time each kind of operator, here.")] = False,
    text: Annotated[str | None, typer.Option(help="Also score this text file, here.  [default: no score]")] = None,
    seqlen: Annotated[int, typer.Option(help="Tokens a window of the text.")] = _EVAL.seqlen,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also write a report: .html, .md, .json.", show_default=False)
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Measure load, latency, memory and energy of bundles, each in a fresh process, on one device or several."""
    options = _given(
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        threads=threads,
        engine=engine,
        repeats=repeats,
        warmup=warmup,
        estimate=estimate or None,
        operators=operators or None,
        bench_dir=None if bench_dir is None else str(bench_dir),
    )
    if repeat is not None:
        beside = _given(estimate=estimate or None, operators=operators or None, text=text, output=output)
        return _repeat(bundles, repeat, {**options, **_given(device=device)}, beside, as_json=as_json)
    failures: list[str] = []
    with _reporting() as progress:
        from edgeslim.reporting.collect import profile_all

        if output is not None:
            from edgeslim.reporting.report import check_output

            check_output(output, force=force)
        profiles = profile_all(
            bundles,
            device or [],
            options,
            text=text,
            seqlen=seqlen,
            progress=progress,
            on_failure=failures.append,
        )
        if output is not None:
            api.report(profiles, output, force=force)
    if as_json:
        print(json.dumps(profiles if len(bundles) * len(device or [""]) > 1 else profiles[0], indent=1))
    else:
        _print_profiles(profiles)
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    if failures:
        sys.exit(1)


@app.command()
def report(
    profiles: Annotated[list[Path], typer.Argument(help="Files of `profile --json`, `eval --json` or `compress`.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The file to write: .html, .md or .json.", show_default=False)
    ],
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Report on profiles measured earlier: tables and plots in one HTML file, or the same as Markdown or JSON."""
    with _one_line_errors():
        written = api.report(profiles, output, force=force)
    if as_json:
        return _print_json(written.to_json())
    print(f"{output}: {len(written.measured)} measured, {len(written.estimated)} estimated")


@devices.command(name="list")
def list_devices(as_json: Json = False) -> None:
    """List the known devices."""
    with _one_line_errors():
        from edgeslim.devices.catalog import known_devices, load_device

        found = [load_device(name) for name in known_devices()]
    if as_json:
        print(json.dumps([device.to_json() for device in found], indent=1))
        return
    from edgeslim.device_tables import print_devices

    print_devices(found)


@devices.command(name="show")
def show_device(
    name: Annotated[str, typer.Argument(help="A known device, or a device's TOML file.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Show what is known of a device, each number with its source."""
    with _one_line_errors():
        from edgeslim.devices.catalog import load_device

        device = load_device(name)
    if as_json:
        return _print_json(device.to_json())
    from edgeslim.device_tables import print_device

    print_device(device)


@devices.command()
def probe(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The .toml file to write.  [default: stdout]")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The device's name.  [default: after its processor]")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads.  [default: the physical cores]")] = None,
    passes: Annotated[int, typer.Option(help="Passes over all micro-runs, of which the median counts.")] = 5,
    as_json: Json = False,
) -> None:
    """Measure this machine: its memory, each kernel, what operators and engines take. Writes its device file."""
    with _reporting() as progress:
        device = api.probe(output, progress=progress, **_given(name=name, threads=threads, passes=passes))
    if as_json:
        return _print_json(device.to_json())
    if output is not None:
        return print(f"{output}: {device.title}, reads {device.dram_gb_per_s:g} GB/s; for `profile --device {output}`")
    from edgeslim.devices.device_file import device_text

    print(device_text(device), end="")


@app.command(name="eval")
def evaluate(
    model: Annotated[str, typer.Argument(help="A checkpoint or a bundle.", show_default=False)],
    text: Annotated[str | None, typer.Option(help="A text file.  [default: the bundled held-out text]")] = None,
    seqlen: Annotated[int, typer.Option(help="Tokens a window.")] = _EVAL.seqlen,
    rule: Annotated[str, typer.Option(help="edgeslim, or reference: that of the papers' scripts.")] = _EVAL.rule,
    suite: Annotated[str, typer.Option(help="perplexity, or reduction: beside itself unreduced.")] = _EVAL.suite,
    seeds: Annotated[int, typer.Option(help="Reduction suite: seeds.")] = _EVAL.seeds,
    windows: Annotated[int, typer.Option(help="Reduction suite: text windows a seed.")] = _EVAL.windows,
    prompts: Annotated[int, typer.Option(help="Reduction suite: prompts a recall task and seed.")] = _EVAL.prompts,
    device: Device = _EVAL.device,
    trust_remote_code: Remote = False,
    allow_pickle: Pickle = False,
    as_json: Json = False,
) -> None:
    """Perplexity of a checkpoint or a bundle on a text, or what the reduction of its tokens costs."""
    with _reporting() as progress:
        result = api.eval(
            model,
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
            progress=progress,
            **_given(
                text=text,
                seqlen=seqlen,
                rule=rule,
                suite=suite,
                seeds=seeds,
                windows=windows,
                prompts=prompts,
                device=device,
            ),
        )
    if as_json:
        return _print_json({"model": model, **asdict(result)})
    from edgeslim.evaluate.reduction_suite import ReductionResult

    if isinstance(result, ReductionResult):
        from edgeslim.tables import print_reduction

        return print_reduction(result, model)
    print(f"{model}: perplexity {result.perplexity:.3f} ({result.tokens:,} tokens in {result.windows} windows)")


@app.command()
def compress(
    recipe: Annotated[Path, typer.Argument(help="A recipe in TOML.", show_default=False)],
    output: Output,
    force: Force = False,
    restart: Restart = False,
    as_json: Json = False,
) -> None:
    """Take a model the whole way that a recipe describes, and compare it with where it came from."""
    with _reporting() as progress:
        report = api.compress(recipe, output, force=force, restart=restart, progress=progress)
    if as_json:
        return _print_json(report)
    from edgeslim.tables import print_comparison

    print_comparison(report, output)


def main() -> NoReturn:
    """Run the command line; expected faults are one line and exit 1, faults of usage exit 2."""
    with _one_line_errors():
        app()
    sys.exit(0)


@contextmanager
def _reporting() -> Iterator[Progress]:
    with _one_line_errors(), progress_bar() as progress:
        yield progress


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except (EdgeslimError, OSError) as fault:
        if isinstance(fault, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        if os.environ.get("EDGESLIM_DEBUG"):
            traceback.print_exc()
        print(f"error: {fault}", file=sys.stderr)
        sys.exit(1)
    except ModuleNotFoundError as fault:
        extra = _EXTRA_OF.get((fault.name or "").partition(".")[0])
        if extra is None:
            raise
        print(f'error: this needs {fault.name}; install it with: pip install "edgeslim[{extra}]"', file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted; long work resumes when called again with the same arguments", file=sys.stderr)
        sys.exit(130)


def _layers(recipe: Path | None) -> tuple[LayerRecipe, ...] | None:
    """Return the settings of single linears that the [prune] step of the recipe in the file `recipe` holds."""
    if recipe is None:
        return None
    step = read_recipe(recipe).prune
    if step is None or not step.layers:
        raise RecipeError(f"{recipe}: no [[prune.layers]]; expected at least one")
    return step.layers


def _integers(name: str, text: str | None) -> tuple[int, ...] | None:
    """Return the integers in `text`, which commas part."""
    try:
        return None if text is None else tuple(int(part) for part in text.split(","))
    except ValueError:
        raise RecipeError(f"{name}: expected integers parted by commas, got {text!r}") from None


def _repeat(bundles: list[Path], count: int, options: dict[str, Any], beside: dict[str, Any], *, as_json: bool) -> None:
    """Profile one bundle `count` times and print it; end with exit status 3 where the profiles differ too much.
    `beside` holds what else was asked for, which none of it goes with."""
    with _reporting() as progress:
        if len(bundles) != 1:
            raise RecipeError(f"repeat profiles one bundle, got {len(bundles)}")
        if beside:
            raise RecipeError(f"repeat only measures, got --{next(iter(beside))} too: leave one of them out")
        if len(devices := options.pop("device", ["local"])) != 1:
            raise RecipeError(f"repeat measures this machine only, got {len(devices)} devices")
        options["device"] = devices[0]
        found = api.repeat_profile(bundles[0], count, progress=progress, **options)
    if as_json:
        _print_json(found.to_json())
    else:
        from edgeslim.tables import print_repeated

        print_repeated(found, str(bundles[0]))
    if not found.steady:
        from edgeslim.runtime.repeat import EXIT_UNSTEADY

        print(f"not repeatable: {found.cause}", file=sys.stderr)
        sys.exit(EXIT_UNSTEADY)


def _print_profiles(profiles: list[dict[str, Any]]) -> None:
    from edgeslim.device_tables import print_estimate
    from edgeslim.tables import print_profile

    for profile in profiles:
        if profile["measured"]:
            print_profile(profile, str(profile["bundle"]))
        else:
            print_estimate(profile)


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, indent=1))
