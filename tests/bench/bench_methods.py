"""Perplexity and relative output error of every method and pattern on the bundled models; a JSON line a case.

`gap_closed` is the share of SparseGPT's perplexity gap to dense that a method closes.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import edgeslim

ROOT = Path(__file__).parents[2]
MODELS = {name: ROOT / "examples" / "models" / name for name in ("tiny-llama", "tiny-mamba2")}
METHODS: dict[str, dict[str, Any]] = {
    "magnitude": {"method": "magnitude"},
    "wanda": {"method": "wanda"},
    "sparsegpt": {"method": "sparsegpt"},
    "mrp s-mask": {"method": "mrp", "mask_rule": "s", "solver": "cholesky", "target": "pruned", "sequential": False},
    "mrp fast": {"method": "mrp", "effort": "fast"},
    "mrp best": {"method": "mrp", "effort": "best"},
}
PATTERNS: dict[str, dict[str, Any]] = {
    "50%": {"sparsity": 0.5},
    "60%": {"sparsity": 0.6},
    "70%": {"sparsity": 0.7},
    "2:4": {"pattern": "2:4"},
}


def main() -> None:
    """Run the cases that the arguments leave."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--patterns", nargs="+", choices=PATTERNS, default=list(PATTERNS))
    parser.add_argument("--text", help="evaluation text (default: the bundled held-out text)")
    parser.add_argument("--calib", help="calibration text (default: the bundled one)")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--seqlen", type=int, default=256)
    args = parser.parse_args()
    for model in args.models:
        dense = edgeslim.eval(MODELS[model], text=args.text, seqlen=args.seqlen).perplexity
        print(json.dumps({"model": model, "method": "dense", "perplexity": round(dense, 3)}), flush=True)
        for pattern in args.patterns:
            _compare(model, pattern, dense, args)


def _compare(model: str, pattern: str, dense: float, args: argparse.Namespace) -> None:
    sparsegpt: float | None = None
    for method in args.methods:
        options = {**METHODS[method], **PATTERNS[pattern]}
        case = _measure(MODELS[model], options, args)
        if method == "sparsegpt":
            sparsegpt = case["perplexity"]
        if sparsegpt is not None:
            case["gap_closed"] = (sparsegpt - case["perplexity"]) / (sparsegpt - dense)
        rounded = {key: round(value, 4) for key, value in case.items()}
        print(json.dumps({"model": model, "pattern": pattern, "method": method, **rounded}), flush=True)


def _measure(model: Path, options: dict[str, Any], args: argparse.Namespace) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "pruned"
        report = edgeslim.prune(
            model, output, calib=args.calib, samples=args.samples, seqlen=args.seqlen, device="cpu", **options
        )
        scored = edgeslim.eval(output, text=args.text, seqlen=args.seqlen)
    return {"perplexity": scored.perplexity, "relative_error": report.relative_error, "seconds": report.seconds}


if __name__ == "__main__":
    main()
