"""What a frontier found, for people: a Markdown table and a plot."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgeslim.errors import RecipeError
from edgeslim.search.trials import LITTLE, Result

HEADINGS = ("form", "bits a weight", "perplexity", "MB", "decode tok/s", "prefill tok/s")


def markdown(report: Mapping[str, Any]) -> str:
    """Return the table of `report` (what frontier.json has), those forms that no other beats in bytes and perplexity
    bold; below it, the form to take and how to make it."""
    lines = [f"# {title(report)}", "", legend(report), "", f"| {' | '.join(HEADINGS)} |", "|---|---|---|---|---|---|"]
    for name, *figures in rows(report):
        lines.append(f"| {' | '.join((f'**{name}**' if name in report['frontier'] else name, *figures))} |")
    return "\n".join([*lines, "", *advice(report, "Bold", "trials/{name}/recipe.toml")]) + "\n"


def title(report: Mapping[str, Any]) -> str:
    """Return whose forms were tried."""
    return f"{Path(report['model']).name}: forms tried"


def legend(report: Mapping[str, Any]) -> str:
    """Return what to compare with, and what names and columns mean."""
    return (
        f"Dense perplexity {report['dense_perplexity']:.2f}. 0.5-int3: half of the weights pruned, the rest in 3 bits; "
        "mixed-2.75: a form for each linear, 2.75 bits in all. Bits: values, mask and scales of the linears. MB: all "
        "weights as packed, embedding and head included."
    )


def rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the cells under `HEADINGS` of every trial, bits ascending."""
    return [
        (
            trial["name"],
            f"{trial['bits']:.3f}",
            f"{trial['perplexity']:.2f}",
            f"{trial['weight_bytes'] / 1e6:.2f}",
            *(_rate(trial[key], doubtful=trial.get("doubtful", False)) for key in ("decode_tok_s", "prefill_tok_s")),
        )
        for trial in sorted(report["trials"], key=lambda trial: (trial["bits"], trial["perplexity"]))
    ]


def advice(report: Mapping[str, Any], mark: str, recipe: str) -> list[str]:
    """Return lines that say which forms have the `mark`, which one is best, and how to make it; `recipe` is where the
    recipe of the form {name} lies."""
    named = report["best"]
    recipe = recipe.format(name=named or "NAME")
    doubtful = any(trial.get("doubtful") for trial in report["trials"])
    return [
        *["~: measured with a warning, such as of a busy machine; profile such forms again."] * doubtful,
        f"{mark}: no other form tried has fewer bytes and less perplexity.",
        f"{_asked(report)}: {named or 'none'}.",
        f"`edgeslim compress {recipe} -o DIR` makes {'it' if named else 'a form'} again.",
    ]


def _asked(report: Mapping[str, Any]) -> str:
    """Return what the best form is best at."""
    limits = report["recipe"]
    asked = [
        f"at most {limits['max_bytes'] / 1e6:.2f} MB" if limits["max_bytes"] else "",
        f"at least {limits['min_tok_s']:g} tokens a second" if limits["min_tok_s"] else "",
    ]
    if any(asked):
        return f"Best with {' and '.join(filter(None, asked))}"
    return f"Smallest within {LITTLE:.0%} of the dense perplexity"


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
    axes.margins(x=0.08)  # room for the name of the last form
    axes.legend()
    figure.savefig(path, format="svg", metadata={"Date": None})


def require_matplotlib() -> None:
    """Raise RecipeError where matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise RecipeError(
            "plot needs matplotlib, which is not installed; install the extra 'edgeslim[plot]' or give --no-plot"
        )


def _rate(value: float | None, *, doubtful: bool) -> str:
    return "" if value is None else f"{'~' if doubtful else ''}{value:.0f}"
