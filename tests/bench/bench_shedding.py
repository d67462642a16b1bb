"""Perplexity against parameters removed, of blocks and of Mamba-2 heads, by every method; a JSON line a case.

Perplexity is that of the first `--windows` windows of the bundled held-out text, in the model that the search has in
memory: what `edgeslim shed` writes is tried against it. Cases that `--output` has already are not repeated.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from edgeslim.api import calibration_windows
from edgeslim.checkpoint import Checkpoint, Skeleton, quiet_transformers
from edgeslim.corpus import standard_library_text
from edgeslim.evaluate.perplexity import cut_windows
from edgeslim.journal import Journal
from edgeslim.progress import silent
from edgeslim.recipe import PruneRecipe
from edgeslim.shedding.model import SheddableModel
from edgeslim.shedding.search import Amount, Search

ROOT = Path(__file__).parents[2]
CASES = {
    "tiny-llama blocks": ("measured", "random", "last", "magnitude"),
    "tiny-mamba2 blocks": ("measured", "random", "last", "magnitude"),
    "tiny-mamba2 heads": ("measured", "random", "magnitude"),
    "tiny-mamba2 heads, not fitted": ("measured", "random", "magnitude"),
}


def main() -> None:
    """Run the cases that the arguments leave and the output lacks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--methods", nargs="+", default=["measured", "random", "last", "magnitude"])
    parser.add_argument("--most", type=int, default=4, help="blocks, or heads of each mixer")
    parser.add_argument("--samples", type=int, default=8, help="calibration windows of 256 tokens")
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("shedding.jsonl"))
    args = parser.parse_args()
    done = [json.loads(line) for line in args.output.read_text().splitlines()] if args.output.exists() else []
    for case in args.cases:
        for method in (each for each in CASES[case] if each in args.methods):
            if any((line["case"], line["method"], line["seed"]) == (case, method, args.seed) for line in done):
                continue
            lines = [
                {"case": case, "method": method, "seed": args.seed, **point} for point in _points(case, method, args)
            ]
            with args.output.open("a") as file:
                for line in lines:
                    print(json.dumps(line), file=file)
                    print(json.dumps(line), flush=True)


@torch.no_grad()
def _points(case: str, method: str, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    checkpoint = Checkpoint.open(ROOT / "examples" / "models" / case.split()[0])
    with quiet_transformers(), tempfile.TemporaryDirectory() as folder:
        recipe = PruneRecipe(samples=args.samples, seqlen=256, seed=0)
        windows = calibration_windows(recipe, checkpoint).tokens
        heldout = _heldout(checkpoint)[: args.windows]
        skeleton = Skeleton(checkpoint, checkpoint.load())
        model, scored = (SheddableModel(skeleton.model, list(skeleton.blocks), tokens) for tokens in (windows, heldout))
        of_heads = "heads" in case
        amount = Amount(heads=args.most) if of_heads else Amount(blocks=args.most)
        journal = Journal.open(Path(folder), {})
        refit = "not fitted" not in case
        search = Search(model, amount, journal, silent, method=method, refit=refit, seed=args.seed)
        total = search.parameters()
        yield {"removed": 0.0, "gone": 0, "perplexity": round(math.exp(scored.loss()), 2)}
        if of_heads:
            for number in range(args.most):
                search.shed_round(number, args.most)
                removed = 1 - search.parameters() / total
                yield {
                    "removed": round(removed, 4),
                    "gone": number + 1,
                    "perplexity": round(math.exp(scored.loss()), 2),
                }
            return
        for count, index in enumerate(search.run().blocks, 1):
            scored.gone.add(index)
            removed = sum(p.numel() for i in scored.gone for p in skeleton.blocks[i].parameters()) / total
            yield {
                "removed": round(removed, 4),
                "gone": count,
                "block": index,
                "perplexity": round(math.exp(scored.loss()), 2),
            }


def _heldout(checkpoint: Checkpoint) -> torch.Tensor:
    """Return the bundled held-out text in windows of 256 tokens."""
    tokens = checkpoint.tokenizer()(standard_library_text("heldout").text, add_special_tokens=False, verbose=False)
    return torch.from_numpy(cut_windows(tokens["input_ids"], 256)).long()


if __name__ == "__main__":
    main()
