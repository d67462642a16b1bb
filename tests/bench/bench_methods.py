"""Perplexity and relative output error of every method and pattern on the bundled models; a JSON line a case.

`gap_closed` is the share of SparseGPT's perplexity gap to dense that a method closes. The models that recall lists are
calibrated on sequences of their training's kind, of another seed, and scored on answers alone: what lies between is
noise. `accuracy` is the share of answers that are the likeliest token. Mamba mixers run the scan of the training
scripts, which is faster than transformers' own on a CPU and gives the same but for rounding.
"""

import argparse
import json
import math
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import edgeslim

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "examples"))

from train_recall import CHARACTERS, sequence  # noqa: E402
from training_scan import use_fast_mamba_everywhere, use_fast_scans  # noqa: E402

RECALL = ("recall-mamba", "recall-mamba2")
MODELS = {name: ROOT / "examples" / "models" / name for name in ("tiny-llama", "tiny-mamba2", "tiny-mamba", *RECALL)}
LONGEST = 12
"""Items of the longest list, as in training."""
CALIBRATION_SEED, HELDOUT_SEED = 101, 102
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
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["tiny-llama", "tiny-mamba2"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--patterns", nargs="+", choices=PATTERNS, default=list(PATTERNS))
    parser.add_argument("--text", help="evaluation text (default: the bundled held-out text)")
    parser.add_argument("--calib", help="calibration text (default: the bundled one)")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--seqlen", type=int, default=256)
    args = parser.parse_args()
    use_fast_mamba_everywhere()
    for model in args.models:
        dense = _score(model, MODELS[model], args)
        print(json.dumps({"model": model, "method": "dense", **_rounded(dense)}), flush=True)
        for pattern in args.patterns:
            _compare(model, pattern, dense["perplexity"], args)


def _compare(model: str, pattern: str, dense: float, args: argparse.Namespace) -> None:
    sparsegpt: float | None = None
    for method in args.methods:
        options = {**METHODS[method], **PATTERNS[pattern]}
        case = _measure(model, options, args)
        if method == "sparsegpt":
            sparsegpt = case["perplexity"]
        if sparsegpt is not None:
            case["gap_closed"] = (sparsegpt - case["perplexity"]) / (sparsegpt - dense)
        print(json.dumps({"model": model, "pattern": pattern, "method": method, **_rounded(case)}), flush=True)


def _measure(model: str, options: dict[str, Any], args: argparse.Namespace) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        output, calib = Path(folder) / "pruned", args.calib
        if model in RECALL:
            calib = Path(folder) / "calibration.txt"
            calib.write_text("".join(_text(tokens) for tokens in _sequences(CALIBRATION_SEED, 512, args.seqlen)[0]))
        report = edgeslim.prune(
            MODELS[model],
            output,
            calib=None if calib is None else str(calib),
            samples=args.samples,
            seqlen=args.seqlen,
            device="cpu",
            **options,
        )
        scored = _score(model, output, args)
    return {**scored, "relative_error": report.relative_error, "seconds": report.seconds}


def _score(model: str, folder: Path, args: argparse.Namespace) -> dict[str, float]:
    if model not in RECALL:
        return {"perplexity": edgeslim.eval(folder, text=args.text, seqlen=args.seqlen).perplexity}
    tokens, answers = _sequences(HELDOUT_SEED, 512, args.seqlen)
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    use_fast_scans(loaded)
    with torch.no_grad():
        parts = [loaded(input_ids=rows, use_cache=False).logits[:, :-1] for rows in tokens.split(64)]
    logits, said = torch.cat(parts)[answers[:, 1:]], tokens[:, 1:][answers[:, 1:]]
    loss = float(torch.nn.functional.cross_entropy(logits, said))
    return {"perplexity": math.exp(loss), "accuracy": float((logits.argmax(-1) == said).float().mean())}


@cache
def _sequences(seed: int, count: int, length: int) -> tuple[Tensor, Tensor]:
    """Return `count` sequences of `length` tokens as in training, and which of their tokens are answers."""
    rng = np.random.default_rng(seed)
    drawn = [sequence(rng, length - 1, LONGEST) for _ in range(count)]
    tokens, answers = (torch.tensor([pair[part][:length] for pair in drawn]) for part in (0, 1))
    return tokens, answers


def _text(tokens: Tensor) -> str:
    return "".join(CHARACTERS[token] for token in tokens.tolist())


def _rounded(case: dict[str, float]) -> dict[str, float]:
    return {key: round(value, 4) for key, value in case.items()}


if __name__ == "__main__":
    main()
