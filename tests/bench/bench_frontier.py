"""Perplexity of integers and sparsity together on the bundled models; a JSON line a case.

`bits` counts values that are not zero, the mask where there is one, and scales, over the weights of all linears;
embedding and head stay as they are. `--budgets` compares, at equal bits a weight, int3 of one sparsity for all linears
with a form for each linear, as `edgeslim frontier` chooses them. With `--out FILE` the lines also go there, cases that
the file holds are not repeated, and a case that was killed goes on after the last block it pruned.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import edgeslim
from edgeslim.api import calibration_windows
from edgeslim.checkpoint import Checkpoint
from edgeslim.progress import silent
from edgeslim.pruner import REPORT
from edgeslim.quantize.grid import parse_grid
from edgeslim.recipe import PruneRecipe
from edgeslim.search.allocation import Option, allocate
from edgeslim.search.forms import CANDIDATES
from edgeslim.search.sensitivity import measure_options

ROOT = Path(__file__).parents[2]
MODELS = {name: ROOT / "examples" / "models" / name for name in ("tiny-llama", "tiny-mamba2")}
PATTERNS: dict[str, dict[str, Any]] = {
    "0%": {"sparsity": 0.0},
    "50%": {"sparsity": 0.5},
    "40%": {"sparsity": 0.4},
    "60%": {"sparsity": 0.6},
    "2:4": {"pattern": "2:4"},
}
GRIDS = ("int3:64", "int4:64", "int8:64", "int2:64", "none")
UNDER_BUDGETS = ("mixed", "int3:64")


def main() -> None:
    """Run the cases that the arguments leave."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--grids", nargs="+", choices=("mixed", *GRIDS), help="default: all that go with the rest")
    parser.add_argument("--patterns", nargs="+", choices=PATTERNS, default=list(PATTERNS))
    parser.add_argument("--budgets", nargs="+", type=float, help="bits a weight; instead of patterns")
    parser.add_argument("--effort", default="best", help="of the joint search: fast or best")
    parser.add_argument("--text", help="evaluation text (default: the bundled held-out text)")
    parser.add_argument("--calib", help="calibration text (default: the bundled one)")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--seqlen", type=int, default=256)
    parser.add_argument("--out", type=Path, help="file of finished cases")
    parser.add_argument("--most", type=int, help="stop after so many cases")
    args = parser.parse_args()
    done = _finished(args.out)
    for case in islice((case for case in _cases(args) if json.dumps(case) not in done), args.most):
        line = json.dumps({**case, **_measure(case, args)})
        print(line, flush=True)
        if args.out is not None:
            with args.out.open("a", encoding="utf-8") as file:
                file.write(line + "\n")


def _cases(args: argparse.Namespace) -> Iterator[dict[str, str]]:
    if args.budgets:
        for budget in args.budgets:
            for model in args.models:
                for grid in args.grids or UNDER_BUDGETS:
                    yield {"model": model, "grid": grid, "pattern": f"{budget:g} bits", "effort": args.effort}
        return
    for grid in args.grids or GRIDS:
        for pattern in args.patterns:
            for model in args.models:
                if (grid, pattern) != ("none", "0%"):
                    yield {"model": model, "grid": grid, "pattern": pattern, "effort": args.effort}


def _finished(out: Path | None) -> set[str]:
    if out is None or not out.exists():
        return set()
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    return {json.dumps({key: line[key] for key in ("model", "grid", "pattern", "effort")}) for line in lines}


def _form(case: dict[str, str], args: argparse.Namespace) -> dict[str, Any]:
    """Return the options of `prune` that say which form the linears get."""
    pattern, grid = case["pattern"], case["grid"]
    if pattern in PATTERNS:
        return {**PATTERNS[pattern], **({} if grid == "none" else {"quantize": grid})}
    budget = float(pattern.removesuffix(" bits"))
    if grid == "mixed":
        chosen = allocate(*_options(case["model"], args), budget)
        forms = {str(form): form for form in CANDIDATES}
        return {
            "layers": [
                {"match": name, "pattern": forms[option.form].pattern, "quantize": forms[option.form].quantize}
                for name, option in chosen.items()
            ]
        }
    return {"sparsity": 1 - (budget - 1 - 16 / 64) / parse_grid(grid).bits, "quantize": grid}


def _options(model: str, args: argparse.Namespace) -> tuple[dict[str, list[Option]], dict[str, int]]:
    """Return the options of every linear and their sizes, kept beside `--out`."""
    kept = None if args.out is None else args.out.with_suffix(f".{model}.json")
    if kept is None or not kept.exists():
        checkpoint = Checkpoint.open(MODELS[model])
        half = max(1, args.samples // 2)
        recipe = PruneRecipe(calib=args.calib, samples=half, seqlen=args.seqlen)
        tokens = calibration_windows(recipe, checkpoint).tokens
        with tempfile.TemporaryDirectory() as folder:
            options, sizes = measure_options(checkpoint, tokens, CANDIDATES, Path(folder), "cpu", silent)
        if kept is None:
            return options, sizes
        plain = {name: [asdict(option) for option in found] for name, found in options.items()}
        kept.write_text(json.dumps({"options": plain, "sizes": sizes}), encoding="utf-8")
    record = json.loads(kept.read_text(encoding="utf-8"))
    return {name: [Option(**option) for option in found] for name, found in record["options"].items()}, record["sizes"]


@contextmanager
def _folder(case: dict[str, str], out: Path | None) -> Iterator[Path]:
    """Yield the folder that a case works in, removed when the case ends: beside `out` a killed one finds its own."""
    if out is None:
        with tempfile.TemporaryDirectory() as name:
            yield Path(name)
        return
    folder = out.with_suffix("." + "-".join(case.values()).replace(" ", "").replace(":", "of"))
    folder.mkdir(exist_ok=True)
    yield folder
    shutil.rmtree(folder)


def _measure(case: dict[str, str], args: argparse.Namespace) -> dict[str, Any]:
    with _folder(case, args.out) as folder:
        output = folder / "pruned"
        if not output.exists():  # a case killed while it was scored has its checkpoint
            edgeslim.prune(
                MODELS[case["model"]],
                output,
                calib=args.calib,
                samples=args.samples,
                seqlen=args.seqlen,
                device="cpu",
                effort=args.effort,
                **_form(case, args),
            )
        report = json.loads((output / REPORT).read_text(encoding="utf-8"))
        scored = edgeslim.eval(output, text=args.text, seqlen=args.seqlen, device="cpu")
    return {
        "bits": None if report["bits"] is None else round(report["bits"], 3),
        "perplexity": round(scored.perplexity, 3),
        "relative_error": round(report["relative_error"], 5),
        "seconds": round(report["seconds"], 1),
    }


if __name__ == "__main__":
    main()
