"""Results as tables for people."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_Row = tuple[str, Callable[[Mapping[str, Any]], str]]


def print_profile(profile: Mapping[str, Any], bundle: str) -> None:
    """Print one profile, a figure a line."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{bundle} on {profile['device']}", show_header=False, title_justify="left")
    for label, show in _PROFILE_ROWS:
        table.add_row(label, show(profile))
    Console().print(table)


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


def _cell(show: Callable[[Mapping[str, Any]], str], measured: Mapping[str, Any]) -> str:
    try:
        return show({**measured.get("profile", {}), **measured.get("eval", {})})
    except KeyError:
        return ""


def _optional(key: str, form: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda values: "not measured" if values[key] is None else form.format(values[key])


_EVAL_ROWS: tuple[_Row, ...] = (("perplexity", lambda v: f"{v['perplexity']:.2f}"),)
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
