"""What a frontier found, for people: a Markdown table and a plot."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from edgeslim.errors import RecipeError
from edgeslim.search.trials import Result, undominated


def markdown(model: str, dense: float, results: Sequence[Result], picks: Sequence[str]) -> str:
    """Return the table of `results`, bits ascending; those that no other beats in bytes and perplexity are bold."""
    front = {result.name for result in undominated(results)}
    lines = [
        f"# {model}: forms tried",
        "",
        f"Dense perplexity {dense:.2f}. Bits: values, mask and scales of the linears. MB: all weights as packed.",
        "",
        "| form | bits a weight | perplexity | MB | decode tok/s | prefill tok/s |",
        "|---|---|---|---|---|---|",
    ]
    for result in sorted(results, key=lambda result: (result.bits, result.perplexity)):
        name = f"**{result.name}**" if result.name in front else result.name
        cells = (f"{result.bits:.3f}", f"{result.perplexity:.2f}", f"{result.weight_bytes / 1e6:.2f}")
        lines.append(f"| {name} | {' | '.join(cells)} | {_rate(result.decode_tok_s)} | {_rate(result.prefill_tok_s)} |")
    return "\n".join([*lines, "", "Bold: no other form tried has fewer bytes and less perplexity.", *picks]) + "\n"


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
