"""What token reduction gains in time and memory: dense and reduced bundles of one shape, alternating in one run.

``prepare`` writes, under --work, a checkpoint of random weights, copies with reductions of the prompt by counted FLOPs,
and their bundles; what is there stays. ``run`` measures each bundle in a fresh process, round after round, beginning
with another each time, and prints a JSON line a bundle and a Markdown table: medians, and ratios to the dense bundle.
"""

import argparse
import json
import shutil
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeslim.runtime import machine
from edgeslim.runtime.engines import Engine
from edgeslim.runtime.profiler import Profile, profile_bundle
from edgeslim.runtime.session import OrtSession, best_engine
from edgeslim.tokens.flops import shape_of_config
from edgeslim.tokens.plan import ReductionPlan, plan_of_config
from edgeslim.tokens.schedule import scheduled

METRICS = {"mamba2": "clip", "llama": "attention"}


@dataclass(frozen=True, kw_only=True)
class Result:
    """Medians of one bundle; ratios are to the dense bundle of the same run. States are those after the prompt."""

    bundle: str
    prefill_ms: float
    decode_ms: float
    peak_rss_bytes: int
    base_rss_bytes: int
    state_bytes: int
    planned_cut: float | None
    prefill_speedup: float
    decode_ratio: float
    rounds: int


def main() -> None:
    """Prepare or run, as the arguments say."""
    args = _parser().parse_args()
    work = args.work or Path("/tmp/partners") / args.shape
    if args.verb == "prepare":
        prepare(args.shape, work, args.cuts, args.prompt_tokens, args.weights)
        return
    bundles = [work / name for name in _names(args.cuts, args.weights)]
    if missing := [bundle for bundle in bundles if not bundle.is_dir()]:
        sys.exit(f"error: {missing[0]}: not there; run prepare first")
    results = run(bundles, args)
    about = {"shape": args.shape, "prompt_tokens": args.prompt_tokens, "threads": args.threads}
    for result in results:
        print(json.dumps({**about, "device": machine.describe(), **asdict(result)}))
    print(markdown(results))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("prepare", "run"))
    parser.add_argument("--shape", choices=sorted(METRICS), required=True)
    parser.add_argument("--work", type=Path, help="folder of the prepared files (default: /tmp/partners/SHAPE)")
    parser.add_argument("--cuts", type=_cuts, default=(0.1, 0.2, 0.3), help="comma-separated (default: 0.1,0.2,0.3)")
    parser.add_argument("--weights", default="int8", help="form of the weights in the bundles (default: int8)")
    parser.add_argument("--prompt-tokens", type=int, default=1024)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--engine", choices=("native", "genai", "ort"), help="default: the first that runs all of them")
    return parser


def _cuts(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def _names(cuts: Sequence[float], weights: str) -> list[str]:
    return [f"speed-{weights}-dense", *(f"speed-{weights}-cut{round(100 * cut)}" for cut in cuts)]


def prepare(shape: str, work: Path, cuts: Sequence[float], prompt_tokens: int, weights: str) -> None:
    """Write checkpoint, reduced copies and bundles of `shape` into `work`."""
    from partners.checkpoints import make_checkpoints  # torch, which a run does not need

    from edgeslim import export

    make_checkpoints(shape, work)
    for name, cut in zip(_names(cuts, weights), (None, *cuts), strict=True):
        if (work / name).is_dir():
            continue
        source = work / "dense"
        if cut is not None:
            source = _reduced_copy(source, work / f"reduced{round(100 * cut)}", cut, prompt_tokens, METRICS[shape])
        print(f"exporting {name}", file=sys.stderr)
        export(source, work / name, weights=weights)


def _reduced_copy(source: Path, target: Path, cut: float, prompt_tokens: int, metric: str) -> Path:
    """Return `target`, a copy of the checkpoint `source` that shares its weights and reduces prompts by `cut`."""
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    plan = scheduled(shape_of_config(config), ReductionPlan(metric=metric), cut, prompt_tokens)
    target.mkdir(exist_ok=True)
    for file in source.iterdir():
        if file.suffix == ".safetensors":
            (target / file.name).unlink(missing_ok=True)
            (target / file.name).hardlink_to(file)
        else:
            shutil.copyfile(file, target / file.name)
    config["edgeslim"] = {"reduction": plan.to_json()}
    (target / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return target


def run(bundles: Sequence[Path], args: argparse.Namespace) -> list[Result]:
    """Return the medians of each bundle over `args.rounds` rounds; the first bundle is the dense one."""
    engine = args.engine or _engine_of_all(bundles)
    found: dict[Path, list[Profile]] = {bundle: [] for bundle in bundles}
    for number in range(args.rounds):
        first = number % len(bundles)
        for bundle in [*bundles[first:], *bundles[:first]]:
            profile = profile_bundle(
                bundle,
                prompt_tokens=args.prompt_tokens,
                new_tokens=args.new_tokens,
                threads=args.threads,
                engine=engine,
                repeats=2,
                warmup=1,
            )
            found[bundle].append(profile)
            prefill = args.prompt_tokens / profile.prefill_tok_s_p50 * 1e3
            print(f"{bundle.name}: {prefill:.0f} ms, {profile.decode_ms_p50:.2f} ms a token", file=sys.stderr)
    dense = _medians(found[bundles[0]], args.prompt_tokens)
    return [_result(bundle, found[bundle], dense, args) for bundle in bundles]


def _engine_of_all(bundles: Sequence[Path]) -> Engine:
    """Return the engine that ``auto`` means for every bundle, plain onnxruntime where it differs."""
    engines = {best_engine(bundle) for bundle in bundles}
    return engines.pop() if len(engines) == 1 else "ort"


def _medians(profiles: list[Profile], prompt_tokens: int) -> tuple[float, float]:
    prefill = statistics.median(prompt_tokens / profile.prefill_tok_s_p50 * 1e3 for profile in profiles)
    return prefill, statistics.median(profile.decode_ms_p50 for profile in profiles)


def _result(bundle: Path, profiles: list[Profile], dense: tuple[float, float], args: argparse.Namespace) -> Result:
    prefill, decode = _medians(profiles, args.prompt_tokens)
    plan = plan_of_config(json.loads((bundle / "config.json").read_text(encoding="utf-8")))
    return Result(
        bundle=bundle.name,
        prefill_ms=round(prefill, 1),
        decode_ms=round(decode, 3),
        peak_rss_bytes=int(statistics.median(profile.peak_rss_bytes for profile in profiles)),
        base_rss_bytes=int(statistics.median(profile.base_rss_bytes for profile in profiles)),
        state_bytes=state_bytes(bundle, args.prompt_tokens),
        planned_cut=None if plan is None else plan.flops_cut_counted,
        prefill_speedup=round(dense[0] / prefill, 3),
        decode_ratio=round(decode / dense[1], 3),
        rounds=len(profiles),
    )


def state_bytes(bundle: Path, prompt_tokens: int) -> int:
    """Return the bytes of all caches and states after a prompt."""
    session = OrtSession(bundle, threads=1)
    vocabulary = session.config.vocab_size or 2
    session.feed(np.random.default_rng(0).integers(0, vocabulary, (1, prompt_tokens), dtype=np.int64))
    return session.state_bytes


def markdown(results: Sequence[Result]) -> str:
    """Return the results as a table."""
    lines = [
        "| bundle | counted cut | prefill ms | speed-up | decode ms a token | to dense | peak RSS MB | state MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [_row(result) for result in results]
    return "\n".join(lines)


def _row(result: Result) -> str:
    cells: list[Any] = [
        result.bundle,
        "-" if result.planned_cut is None else f"{result.planned_cut:.3f}",
        f"{result.prefill_ms:.0f}",
        f"{result.prefill_speedup:.2f}x",
        f"{result.decode_ms:.2f}",
        f"{result.decode_ratio:.3f}",
        f"{result.peak_rss_bytes / 1e6:.0f}",
        f"{result.state_bytes / 1e6:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
