"""Perplexity of integers and sparsity together on the bundled models; a JSON line a case.

`bits` counts values that are not zero, the mask where there is one, and scales, over the weights of all linears;
embedding and head stay as they are. With `--out FILE` the lines also go there, and cases that the file holds are not repeated.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import edgeslim

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


def main() -> None:
    """Run the cases that the arguments leave."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--grids", nargs="+", default=list(GRIDS))
    parser.add_argument("--patterns", nargs="+", choices=PATTERNS, default=list(PATTERNS))
    parser.add_argument("--effort", default="best", help="of the joint search: fast or best")
    parser.add_argument("--text", help="evaluation text (default: the bundled held-out text)")
    parser.add_argument("--calib", help="calibration text (default: the bundled one)")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--seqlen", type=int, default=256)
    parser.add_argument("--out", type=Path, help="file of finished cases")
    args = parser.parse_args()
    done = _finished(args.out)
    for case in _cases(args):
        if json.dumps(case) not in done:
            line = json.dumps({**case, **_measure(case, args)})
            print(line, flush=True)
            if args.out is not None:
                with args.out.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")


def _cases(args: argparse.Namespace) -> Iterator[dict[str, str]]:
    for grid in args.grids:
        for pattern in args.patterns:
            for model in args.models:
                if (grid, pattern) != ("none", "0%"):
                    yield {"model": model, "grid": grid, "pattern": pattern, "effort": args.effort}


def _finished(out: Path | None) -> set[str]:
    if out is None or not out.exists():
        return set()
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    return {json.dumps({key: line[key] for key in ("model", "grid", "pattern", "effort")}) for line in lines}


def _measure(case: dict[str, str], args: argparse.Namespace) -> dict[str, Any]:
    options = {**PATTERNS[case["pattern"]], "effort": args.effort}
    if case["grid"] != "none":
        options["quantize"] = case["grid"]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "pruned"
        report = edgeslim.prune(
            MODELS[case["model"]],
            output,
            calib=args.calib,
            samples=args.samples,
            seqlen=args.seqlen,
            device="cpu",
            **options,
        )
        scored = edgeslim.eval(output, text=args.text, seqlen=args.seqlen, device="cpu")
    return {
        "bits": None if report.bits is None else round(report.bits, 3),
        "perplexity": round(scored.perplexity, 3),
        "relative_error": round(report.relative_error, 5),
        "seconds": round(report.seconds, 1),
    }


if __name__ == "__main__":
    main()
