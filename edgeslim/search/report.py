"""What a frontier found, for people: a Markdown table and a plot."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgeslim.errors import RecipeError
from edgeslim.search.trials import Result

_LITTLE = 0.01
"""The part of the dense perplexity that a form may cost and still be named where no budget is given."""


def markdown(report: Mapping[str, Any], results: Sequence[Result]) -> str:
    """Return the table of `results`, bits ascending, those that no other beats in bytes and perplexity bold; below it,
    the form to take and how to make it. `report`: what frontier.json has."""
    dense = report["dense_perplexity"]
    lines = [
        f"# {Path(report['model']).name}: forms tried",
        "",
        f"Dense perplexity {dense:.2f}. Bits: values, mask and scales of the linears. MB: all weights as packed.",
        "",
        "| form | bits a weight | perplexity | MB | decode tok/s | prefill tok/s |",
        "|---|---|---|---|---|---|",
    ]
    for result in sorted(results, key=lambda result: (result.bits, result.perplexity)):
        name = f"**{result.name}**" if result.name in report["frontier"] else result.name
        cells = (f"{result.bits:.3f}", f"{result.perplexity:.2f}", f"{result.weight_bytes / 1e6:.2f}")
        lines.append(f"| {name} | {' | '.join(cells)} | {_rate(result.decode_tok_s)} | {_rate(result.prefill_tok_s)} |")
    lines += ["", "Bold: no other form tried has fewer bytes and less perplexity.", _pick(report, results)]
    return "\n".join([*lines, "`edgeslim compress trials/NAME/recipe.toml -o DIR` makes a form again."]) + "\n"


def _pick(report: Mapping[str, Any], results: Sequence[Result]) -> str:
    """Return the line that names the best form within the budgets asked for, or the smallest that costs little."""
    limits = report["recipe"]
    asked = [
        f"at most {limits['max_bytes'] / 1e6:.2f} MB" if limits["max_bytes"] else "",
        f"at least {limits['min_tok_s']:g} tokens a second" if limits["min_tok_s"] else "",
    ]
    if any(asked):
        return f"Best with {' and '.join(filter(None, asked))}: {report['best'] or 'none of those tried'}."
    close = [result for result in results if result.perplexity <= (1 + _LITTLE) * report["dense_perplexity"]]
    smallest = min((result.weight_bytes, result.name) for result in close)[1] if close else "none of those tried"
    return f"Smallest within {_LITTLE:.0%} of the dense perplexity: {smallest}."


def plot(path: Path, model: str, dense: float, results: Sequence[Result]) -> None:
    """Draw perplexity over bits a weight, uniform forms and mixed ones apart, to the SVG file `path`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for label, mark, chosen in (
        ("one form for all linears", "o", [result for result in results if result.budget is None]),
        ("a form for each linear", "s", [result for result in results if result.budget is not None]),
    ):
        axes.plot([r.bits for r in chosen], [r.perplexity for r in chosen], mark, label=label)
        for result in chosen:
            place = (result.bits, result.perplexity)
            axes.annotate(result.name, place, fontsize=7, xytext=(3, 3), textcoords="offset points")
    axes.axhline(dense, linestyle=":", color="gray", label="dense")
    axes.set(xlabel="bits a weight", ylabel="perplexity", title=model)
    axes.legend()
    figure.savefig(path, format="svg", metadata={"Date": None})


def require_matplotlib() -> None:
    """Raise RecipeError where matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise RecipeError(
            "plot needs matplotlib, which is not installed; install the extra 'edgeslim[plot]' or give --no-plot"
        )


def _rate(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"
