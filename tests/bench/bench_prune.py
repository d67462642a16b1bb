"""Time, excess error and peak memory of pruning one layer, each beside SparseGPT's in the same run.

    python tests/bench/bench_prune.py [--shapes 2048x2048 4864x896 896x4864] [--sparsity 0.5] [--no-memory]

One JSON line a case: `ratio` is the median time over that of our SparseGPT, `ratio_plain` over that of SparseGPT as its
paper writes it, all timed in turns in one process; `error` the relative output error; `excess` (solver only) how far
the objective lies above that of a far finer solve; `peak_bytes` what a fresh process needs on top of its inputs.
Nothing is asserted here. Times are wall clock: other load on the machine widens them.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from edgeslim.memory import release_free_memory
from edgeslim.pruning.methods import PruneConfig, prune_matrix, relative_error
from edgeslim.pruning.patterns import Unstructured
from edgeslim.pruning.solve import objective, solve_cg
from edgeslim.pruning.sparsegpt import sweep
from edgeslim.pruning.statistics import InputStatistics, factor
from edgeslim.runtime.memory import current_rss, peak_rss, reset_peak

SHAPES = ["2048x2048", "4864x896", "896x4864"]
CASES = ["sparsegpt", "sparsegpt_plain", "solve_cg", "fast", "best"]


def layer(shape: str, tokens_per_input: int = 4) -> tuple[Tensor, InputStatistics]:
    """A weight [out, in] and inputs as in trained models: variances that fall as 1/k, uneven scales of the inputs."""
    rows, inputs = (int(part) for part in shape.split("x"))
    g = torch.Generator().manual_seed(0)
    mix = torch.linalg.qr(torch.randn(inputs, inputs, generator=g))[0]
    spectrum = torch.arange(1, inputs + 1) ** -0.5
    scales = torch.exp(0.5 * torch.randn(inputs, generator=g))
    stats = InputStatistics(inputs)
    for _ in range(tokens_per_input):
        stats.add(torch.randn(inputs, inputs, generator=g) * spectrum @ mix * scales)
    return torch.randn(rows, inputs, generator=g) / inputs**0.5, stats


def plain_sparsegpt(w: Tensor, h: Tensor, sparsity: float, block: int = 128) -> Tensor:
    """SparseGPT as its paper writes it, column after column of [out, in]: the partner that most users have."""
    h = h + 0.01 * h.diagonal().mean() * torch.eye(h.shape[0])
    u = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    w = w.clone()
    for start in range(0, w.shape[1], block):
        part, corner = w[:, start : start + block].clone(), u[start : start + block, start : start + block]
        scores = part.square() / corner.diagonal().square()
        prune = scores <= scores.flatten().sort().values[int(scores.numel() * sparsity) - 1]
        errors = torch.zeros_like(part)
        for j in range(part.shape[1]):
            kept = part[:, j] * ~prune[:, j]
            errors[:, j] = (part[:, j] - kept) / corner[j, j]
            part[:, j:] -= torch.outer(errors[:, j], corner[j, j:])
            part[:, j] = kept
        w[:, start : start + block] = part
        w[:, start + block :] -= errors @ u[start : start + block, start + block :]
    return w


def config_of(case: str, sparsity: float) -> PruneConfig:
    pattern = Unstructured(sparsity=sparsity)
    if case == "sparsegpt":
        return PruneConfig(method="sparsegpt", pattern=pattern)
    return PruneConfig(effort="fast" if case == "fast" else "best", pattern=pattern)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def bench(shape: str, sparsity: float, cases: list[str], repeats: int) -> list[dict[str, Any]]:
    """Every case of one layer, in turns."""
    w, stats = layer(shape)
    system = factor(stats.h)
    swept, keep = sweep(w, system.u, Unstructured(sparsity=sparsity))
    seconds: dict[str, list[float]] = {case: [] for case in cases}
    errors: dict[str, dict[str, float]] = {}
    for _ in range(repeats):
        for case in cases:
            if case == "solve_cg":
                spent, solved = timed(lambda: solve_cg(w, system.h, keep, swept))
                errors[case] = {"excess": excess(solved, w, system.h, keep)} if case not in errors else errors[case]
            elif case == "sparsegpt_plain":
                spent, solved = timed(lambda: plain_sparsegpt(w, stats.h, sparsity))
                errors[case] = {"error": relative_error(w, solved, stats.h)}
            else:
                config = config_of(case, sparsity)
                spent, pruned = timed(lambda config=config: prune_matrix(w, stats, config))  # type: ignore[misc]
                errors[case] = {"error": pruned.relative_error}
            seconds[case].append(spent)
    medians = {case: statistics.median(seconds[case]) for case in cases}
    plain = medians.get("sparsegpt_plain", math.nan)
    return [
        {
            "shape": shape,
            "case": case,
            "sparsity": sparsity,
            "seconds": round(medians[case], 4),
            "ratio": round(medians[case] / medians["sparsegpt"], 2),
            "ratio_plain": round(medians[case] / plain, 2),
            **errors[case],
        }
        for case in cases
    ]


def excess(solved: Tensor, target: Tensor, h: Tensor, keep: Tensor) -> float:
    """How far the objective lies above that of a solve in float64 to a tolerance of 1e-9."""
    best = solve_cg(target.double(), h.double(), keep, solved.double(), tolerance=1e-9)
    reached, least = (float(objective(w.double(), target.double(), h.double()).sum()) for w in (solved, best))
    return reached / least - 1


def peak_bytes(shape: str, case: str, sparsity: float) -> int:
    """Peak resident bytes of one case in a fresh process, above what it holds before."""
    command = [sys.executable, __file__, "--shapes", shape, "--sparsity", str(sparsity), "--peak-of", case]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def own_peak(shape: str, case: str, sparsity: float) -> int:
    w, stats = layer(shape)
    torch.randn(512, 512) @ torch.randn(512, 512)  # the library's own buffers
    release_free_memory()
    reset_peak()
    before = current_rss()
    if case == "solve_cg":
        solve_cg(w, stats.h + 0.01 * stats.h.diagonal().mean() * torch.eye(w.shape[1]), w > 0)
    elif case == "sparsegpt_plain":
        plain_sparsegpt(w, stats.h, sparsity)
    else:
        prune_matrix(w, stats, config_of(case, sparsity))
    return peak_rss() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="OUTxIN")
    parser.add_argument("--cases", nargs="+", default=CASES, choices=CASES)
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of torch; all cores by default")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--peak-of", choices=CASES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.peak_of:
        print(own_peak(args.shapes[0], args.peak_of, args.sparsity))
        return
    cases = ["sparsegpt", *(case for case in args.cases if case != "sparsegpt")]
    for shape in args.shapes:
        for line in bench(shape, args.sparsity, cases, args.repeats):
            if not args.no_memory:
                line["peak_bytes"] = peak_bytes(shape, line["case"], args.sparsity)
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
