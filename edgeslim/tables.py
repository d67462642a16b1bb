"""Results as tables for people."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeslim.evaluate.reduction_suite import ReductionResult
    from edgeslim.runtime.inspection import Inspection
    from edgeslim.runtime.kernel_bench import KernelReport
    from edgeslim.runtime.repeat import Repeated

_Row = tuple[str, Callable[[Mapping[str, Any]], str]]


def print_profile(profile: Mapping[str, Any], bundle: str) -> None:
    """Print one profile, a figure a line."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{bundle} on {profile['device']}", show_header=False, title_justify="left")
    for label, show in (*_PROFILE_ROWS, *_MACHINE_ROWS):
        table.add_row(label, show(profile))
    console = Console()
    console.print(table)
    if "operators" in profile:
        console.print(_operator_table(profile["operators"]))


def _operator_table(operators: Sequence[Mapping[str, Any]]) -> Any:
    """Return the time of each kind of operator for a prompt and for a decoded token, the dearest first."""
    from rich.table import Table

    table = Table(title="operators, on plain onnxruntime", title_justify="left")
    for heading in ("phase", "operator", "calls", "ms", "share", "constants", "provider"):
        table.add_column(heading, justify="left" if heading in ("phase", "operator", "provider") else "right")
    for each in operators:
        whole = sum(other["ms"] for other in operators if other["phase"] == each["phase"])
        figures = (str(each["calls"]), f"{each['ms']:.3f}", f"{each['ms'] / max(whole, 1e-12):.0%}")
        size = f"{each['weight_bytes'] / 1e6:.1f} MB" if each["weight_bytes"] else ""
        table.add_row(each["phase"], each["op"], *figures, size, each["provider"].removesuffix("ExecutionProvider"))
    return table


def print_repeated(found: "Repeated", bundle: str) -> None:
    """Print profiles in a row, one a line with what the machine was like, and how far apart they are."""
    from rich.table import Table

    title = f"{bundle}: {len(found.profiles)} profiles on {found.profiles[0].device}"
    table = Table(title=title, title_justify="left")
    headings = (
        "decode tok/s,prefill tok/s,runs,left out,waited,others' cores,steal,core GB/s,products G/s,memory GB/s,°C"
    )
    for heading in headings.split(","):
        table.add_column(heading, justify="right")
    for profile, now in zip(found.profiles, found.conditions, strict=True):
        table.add_row(
            f"{profile.decode_tok_s_p50:,.1f}",
            f"{profile.prefill_tok_s_p50:,.0f}",
            str(profile.repeats),
            str(now.left_out),
            _measured("{:.1%}", None if now.waited is None else max(now.waited.values())),
            f"{now.programs:.2f}",
            f"{now.stolen:.2f}",
            f"{now.core_gb_per_s:.2f}",
            _measured("{:.0f}", now.products_g_per_s),
            _measured("{:.1f}", now.memory_gb_per_s),
            _measured("{:.0f}", now.temperature_c),
        )
    console = _wide_console()
    console.print(table)
    spreads = ", ".join(f"{key.removesuffix('_tok_s_p50')} {value:.1%}" for key, value in found.spread.items())
    console.print(f"largest over smallest: {spreads}; at most {found.limit:.0%} is steady", highlight=False)


def _measured(form: str, value: float | None) -> str:
    return "not measured" if value is None else form.format(value)


def print_comparison(report: Mapping[str, Any], output: Path) -> None:
    """Print the models of a `compress` report side by side, with what was generated."""
    from rich.console import Console
    from rich.table import Table

    models = report["models"]
    console = Console()
    table = Table(title=f"{report['recipe']['model']} → {output}", title_justify="left")
    for heading in ("", *models):
        table.add_column(heading, justify="left" if not heading else "right")
    for label, show in (*_EVAL_ROWS, *_PROFILE_ROWS):
        cells = [_cell(show, measured) for measured in models.values()]
        if any(cells):
            table.add_row(label, *cells)
    console.print(table)
    for name, measured in models.items():
        if "run" in measured:
            prompt = report["recipe"]["run"]["prompt"]
            console.print(f"[bold]{name}[/bold]: {prompt}{measured['run']['text']}", highlight=False)


def print_frontier(report: Mapping[str, Any], output: Path) -> None:
    """Print the forms that were tried, one a line, and which to take."""
    from rich.table import Table

    from edgeslim.search.report import HEADINGS, advice, legend, rows, title

    table = Table(title=f"{title(report)} → {output}", title_justify="left")
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading == "form" else "right")
    for name, *figures in rows(report):
        table.add_row(f"{name} *" if name in report["frontier"] else name, *figures)
    console = _wide_console()
    console.print(table)
    for line in (legend(report), *advice(report, "*", f"{output}/trials/{{name}}/recipe.toml")):
        console.print(line, highlight=False, markup=False)


def print_inspection(inspection: "Inspection") -> None:
    """Print a bundle's layers, one a line, and what runs them here."""
    from rich.table import Table

    manifest, console = inspection.manifest, _wide_console()
    table = Table(title=f"{inspection.bundle}: {manifest.weights} weights", title_justify="left")
    for heading in ("layer", "shape", "zeros", "form", "stored", "bytes", "bits", "runs on"):
        table.add_column(heading, justify="left" if heading in ("layer", "form", "runs on") else "right", no_wrap=True)
    for layer in manifest.layers:
        shape, bits = f"{layer.shape[0]} x {layer.shape[1]}", 8 * layer.bytes / max(layer.shape[0] * layer.shape[1], 1)
        numbers = (f"{layer.stored:.1%}", f"{layer.bytes:,}", f"{bits:.2f}")
        table.add_row(layer.name, shape, f"{layer.sparsity:.1%}", layer.form, *numbers, inspection.runs_on(layer))
    console.print(table)
    for (form, reason), count in Counter((layer.form, layer.reason) for layer in manifest.layers).items():
        if reason:
            console.print(f"{count} x {form}: {reason}", highlight=False)
    console.print(f"lowering {manifest.lowering}: {manifest.reason}", highlight=False)
    console.print(f"operators of ours run on: {inspection.kernels or 'there are none'}", highlight=False)
    reason = f"; not native: {inspection.engine_reason}" if inspection.engine_reason else ", without ONNX Runtime"
    console.print(f"engine: {inspection.engine or 'none'}{reason}", highlight=False, markup=False)
    if manifest.providers:
        console.print(f"made for {', '.join(manifest.providers)}, in this order; else the CPU", highlight=False)
    size = f"{manifest.weight_bytes / 1e6:.1f} MB of weights, {manifest.bundle_bytes / 1e6:.1f} MB in all"
    console.print(f"{size}; all {len(manifest.files)} files have their checksums", highlight=False)
    for warning in inspection.warnings:
        console.print(f"warning: {warning}", highlight=False)


def print_reduction(result: "ReductionResult", model: str) -> None:
    """Print what a reduction costs, each figure beside the unreduced model's."""
    from rich.table import Table

    console = _wide_console()
    if result.suffix_perplexity is not None:
        table = Table(title=f"{model}: text, {result.windows} windows of {result.seqlen}", title_justify="left")
        for heading in ("", "reduced", "dense"):
            table.add_column(heading, justify="right" if heading else "left")
        for label, name, form in _TEXT_FIGURES:
            table.add_row(label, *(form.format(getattr(result, prefix + name)) for prefix in ("", "dense_")))
        console.print(table)
        low, high = result.suffix_ratio_interval or (0.0, 0.0)
        console.print(
            f"suffix perplexity over dense: {result.suffix_ratio:.4f} ({low:.4f} to {high:.4f})", highlight=False
        )
    if result.recall:
        table = Table(title="recall: answers right", title_justify="left")
        for heading in ("task", "items", "distance", "reduced", "dense", "chance"):
            table.add_column(heading, justify="left" if heading == "task" else "right")
        for reduced, dense in zip(result.recall, result.dense_recall, strict=True):
            shares = (f"{each.accuracy:.1%} ({each.low:.0%} to {each.high:.0%})" for each in (reduced, dense))
            table.add_row(reduced.kind, str(reduced.items), str(reduced.distance), *shares, f"{reduced.chance:.1%}")
        console.print(table)


_TEXT_FIGURES = (
    ("suffix perplexity", "suffix_perplexity", "{:.2f}"),
    ("kept-token perplexity", "kept_perplexity", "{:.2f}"),
    ("coverage", "coverage", "{:.1%}"),
)


def _wide_console() -> Any:
    """Return a console that cuts no table when its output goes to a file."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=200)


def print_kernels(report: "KernelReport") -> None:
    """Print the speeds of kernels, one a line."""
    from rich.table import Table

    console = _wide_console()
    title = f"{report.machine}: reads {report.read_gb_per_s:.1f} GB/s"
    table = Table(title=title, title_justify="left")
    for heading in ("isa", "form", "stored", "tokens", "Gweights/s", "GB/s", "of bandwidth"):
        table.add_column(heading, justify="left" if heading in ("isa", "form") else "right")
    for speed in report.speeds:
        figures = (f"{speed.gweights_per_s:.1f}", f"{speed.gb_per_s:.1f}", f"{speed.of_bandwidth:.0%}")
        bound = figures if speed.tokens == 1 else (*figures[:2], "")
        table.add_row(speed.isa, speed.form, f"{speed.density:.0%}", str(speed.tokens), *bound)
    console.print(table)
    for warning in report.warnings:
        console.print(f"warning: {warning}", highlight=False)
    if report.costs:
        console.print(f"`auto` decides by these from now on: {report.costs}", highlight=False)


def _cell(show: Callable[[Mapping[str, Any]], str], measured: Mapping[str, Any]) -> str:
    try:
        return show({**measured.get("profile", {}), **measured.get("eval", {})})
    except KeyError:
        return ""


def _optional(key: str, form: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda values: "not measured" if values.get(key) is None else form.format(values[key])


def _beside_dense(key: str, form: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda v: "" if v[key] is None else f"{form.format(v[key])} (dense {form.format(v[f'dense_{key}'])})"


def _recalled(values: Mapping[str, Any]) -> str:
    """Return the mean accuracy of the recall tasks beside the unreduced model's."""
    shares = [
        sum(task["accuracy"] for task in values[key]) / max(len(values[key]), 1) for key in ("recall", "dense_recall")
    ]
    return f"{shares[0]:.1%} (dense {shares[1]:.1%})" if values["recall"] else ""


_EVAL_ROWS: tuple[_Row, ...] = (
    ("perplexity", lambda v: f"{v['perplexity']:.2f}"),
    ("suffix perplexity", _beside_dense("suffix_perplexity", "{:.2f}")),
    ("recall", _recalled),
)
_PROFILE_ROWS: tuple[_Row, ...] = (
    ("bundle", lambda v: f"{v['bundle_bytes'] / 1e6:.1f} MB"),
    ("weights", lambda v: f"{v['weight_bytes'] / 1e6:.1f} MB"),
    ("load", lambda v: f"{v['load_s']:.3f} s"),
    ("first token, p50", lambda v: f"{v['ttft_ms_p50']:.1f} ms"),
    ("prefill, p50", lambda v: f"{v['prefill_tok_s_p50']:,.0f} tok/s"),
    ("decode, p50", lambda v: f"{v['decode_tok_s_p50']:,.0f} tok/s"),
    ("decode, p90", lambda v: f"{v['decode_ms_p90']:.2f} ms/token"),
    ("peak memory", lambda v: f"{v['peak_rss_bytes'] / 1e6:.0f} MB"),
    ("energy", _optional("energy_j_per_token", "{:.3f} J/token")),
    ("engine", lambda v: f"{v['engine']}, {v['threads']} threads, {v['isa']}"),
)
_MACHINE_ROWS: tuple[_Row, ...] = (
    ("first run", lambda v: _first_run(v)),
    ("power", _optional("watts", "{:.2f} W")),
    ("temperature", _optional("temperature_c", "{:.0f} °C")),
    ("throttling", _optional("throttling", "{}")),
    ("clock", lambda v: _clock(v)),
)
"""What a profile says of the machine meanwhile, beside the figures that are compared."""


def _first_run(values: Mapping[str, Any]) -> str:
    if values.get("cold_ttft_ms") is None:
        return "not measured"
    return f"{values['cold_ttft_ms']:.1f} ms to the first token, then {values['cold_decode_ms']:.2f} ms/token"


def _clock(values: Mapping[str, Any]) -> str:
    clock = "not measured" if values.get("clock_mhz") is None else f"{values['clock_mhz']:.0f} MHz"
    named = [str(values[key]) for key in ("governor", "power_mode") if values.get(key) is not None]
    return f"{clock} ({', '.join(named)})" if named else clock
