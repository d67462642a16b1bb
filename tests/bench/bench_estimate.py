"""Estimates beside measurements: bundles of random weights in two shapes, estimated from this machine's probe alone.

``prepare`` writes, under --work, a dense and a half pruned checkpoint of each shape and their bundles; what is there
stays. ``run`` probes the machine and profiles the bundles in fresh processes, micro-runs of the probe and profiles in
turns, as the speed of a shared machine changes from minute to minute; of both the medians count. It prints a JSON line
a bundle, then a Markdown table. The estimate is made from the probe's file; no model goes into it, so every shape is
left out: the run ends where a bundle has a matrix of a size that the probe timed.

    python tests/bench/bench_estimate.py prepare
    python tests/bench/bench_estimate.py run [--engine native] [--passes 3] [--rounds 3] [--others 0.2] [-o FILE]
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgeslim.devices.catalog import ENGINES, Device, load_device
from edgeslim.devices.estimate import Estimate, estimate_bundle
from edgeslim.devices.probe import LARGE, SMALL, probe_machine
from edgeslim.devices.workload import read_workload
from edgeslim.runtime import machine
from edgeslim.runtime.profiler import Profile, profile_bundle
from edgeslim.toml_text import to_toml

SHAPES = ("llama", "mamba2")
FORMS = {
    "int8, 0 %": ("dense", "int8"),
    "int8, 50 %": ("pruned50", "int8"),
    "int4, 50 %": ("pruned50", "int4"),
    "int4, 0 %": ("dense", "int4"),
}
"""Checkpoint and weights of each form."""
LIMIT = 0.25


def main() -> None:
    """Prepare or run, as the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("prepare", "run"))
    parser.add_argument("--work", type=Path, default=Path("/tmp/estimate"))
    parser.add_argument("--shapes", type=lambda text: text.split(","), default=SHAPES)
    parser.add_argument("--forms", type=lambda text: text.split(";"), default=tuple(FORMS))
    parser.add_argument("--passes", type=int, default=3, help="passes of the probe")
    parser.add_argument("--rounds", type=int, default=3, help="profiles of each bundle, meanwhile")
    parser.add_argument("--engine", choices=("auto", *ENGINES), default="auto")
    parser.add_argument("--others", type=float, default=0.2, help="cores of other programs above which to try again")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    if args.verb == "prepare":
        prepare(args.work, args.shapes)
    else:
        run(args)


def prepare(work: Path, shapes: list[str]) -> None:
    """Write checkpoints and bundles."""
    from partners.checkpoints import make_checkpoints  # torch, which a run does not need

    from edgeslim import api

    for shape in shapes:
        make_checkpoints(shape, work / shape, ("pruned50",))
        for name, (checkpoint, weights) in FORMS.items():
            bundle = _bundle(work, shape, name)
            if not bundle.is_dir():
                api.export(work / shape / checkpoint, bundle, weights=weights)


def _bundle(work: Path, shape: str, form: str) -> Path:
    return work / shape / form.replace(", ", "-").replace(" %", "")


def run(args: argparse.Namespace) -> None:
    """Probe the machine, measure all bundles after each pass of it, and print both beside each other."""
    cases = {(s, f): _bundle(args.work, s, f) for s in args.shapes for f in FORMS if f in args.forms}
    for bundle in cases.values():
        refuse_known_sizes(bundle)
    profiles: dict[tuple[str, str], list[Profile]] = {case: [] for case in cases}

    order = list(cases) * args.rounds

    def measure(done: int, total: int) -> None:
        """Profile as many bundles as the probe's progress asks for."""
        while (number := sum(map(len, profiles.values()))) < len(order) * done // total:
            case = order[number]
            profiles[case].append(_undisturbed(cases[case], args))
            rate, others = profiles[case][-1].decode_tok_s_p50, profiles[case][-1].others_cores
            said = f"{done} of {total} micro-runs; {', '.join(case)}: {rate:.1f} tok/s, others {others} cores"
            print(said, file=sys.stderr)

    device = _probe(args, measure)
    rows = []
    for case, bundle in cases.items():
        rows.append(_row(*case, estimate_bundle(bundle, device, engine=args.engine), profiles[case]))
        print(json.dumps(rows[-1]))
    turns = f"{args.passes} passes and {args.rounds} rounds in turns"
    print(f"\n{machine.describe()}, {device.isa}, engine {args.engine}, {turns}, band ±{device.error:.0%}\n")
    print("\n".join(_table(rows)))
    within = sum(abs(row["decode_ratio"] - 1) <= LIMIT for row in rows)
    held = sum(row["band"]["low"] <= row["measured_decode"] <= row["band"]["high"] for row in rows)
    print(f"\nwithin {LIMIT:.0%} of the measured decode rate: {within} of {len(rows)}; within the band: {held}")
    if args.output:
        args.output.write_text(json.dumps({"rows": rows, "device": device.to_json()}, indent=1), encoding="utf-8")


def _undisturbed(bundle: Path, args: argparse.Namespace) -> Profile:
    """Return a profile of `bundle`, made again up to twice where other programs took more than the limit."""
    for _ in range(3):
        profile = profile_bundle(bundle, engine=args.engine, repeats=3)
        if (profile.others_cores or 0) <= args.others:
            break
    return profile


def refuse_known_sizes(bundle: Path) -> None:
    """End the run where the probe has timed a matrix of the bundle's own size."""
    timed = {SMALL, SMALL[::-1], LARGE, LARGE[::-1]}
    sizes = {(p.k, p.n) for p in read_workload(bundle).products}
    if sizes & timed:
        raise SystemExit(f"{bundle}: the probe times matrices of its sizes {sizes & timed}: the shape is not left out")


def _probe(args: argparse.Namespace, after_case: Callable[[int, int], None]) -> Device:
    """Return the probe of this machine as its file holds it."""
    device = probe_machine(name="here", passes=args.passes, others_limit=args.others, after_case=after_case)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "here.toml"
        file.write_text(to_toml(device.to_json()), encoding="utf-8")
        return load_device(str(file))


def _row(shape: str, form: str, estimate: Estimate, profiles: list[Profile]) -> dict[str, Any]:
    """Return the figures of one bundle: its estimate, and the medians over the rounds."""
    decode = [p.decode_tok_s_p50 for p in profiles]
    middle = {
        name: statistics.median(getattr(p, name) for p in profiles)
        for name in ("decode_tok_s_p50", "prefill_tok_s_p50", "load_s", "peak_rss_bytes")
    }
    return {
        "shape": shape,
        "form": form,
        "engine": profiles[0].engine,
        "estimated_decode": round(estimate.decode_tok_s.value, 1),
        "band": asdict(estimate.decode_tok_s),
        "measured_decode": round(middle["decode_tok_s_p50"], 1),
        "rounds": [round(value, 1) for value in decode],
        "others_cores": [p.others_cores for p in profiles],
        "decode_ratio": round(estimate.decode_tok_s.value / middle["decode_tok_s_p50"], 3),
        "estimated_prefill": round(estimate.prefill_tok_s.value),
        "measured_prefill": round(middle["prefill_tok_s_p50"]),
        "estimated_load_s": round(estimate.load_s.value, 3),
        "measured_load_s": round(middle["load_s"], 3),
        "estimated_mb": round(estimate.memory_bytes / 1e6),
        "measured_mb": round(middle["peak_rss_bytes"] / 1e6),
        "parts_ms": dict(estimate.parts_ms),
    }


def _table(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield "| bundle | decode, estimated | measured | ratio | prefill | load s | peak MB |"
    yield "|---|---|---|---|---|---|---|"
    for row in rows:
        cells = [
            f"{row['shape']}, {row['form']}",
            f"{row['estimated_decode']:.0f}",
            f"{row['measured_decode']:.0f}",
            f"{row['decode_ratio']:.2f}",
            f"{row['estimated_prefill']} / {row['measured_prefill']}",
            f"{row['estimated_load_s']:.2f} / {row['measured_load_s']:.2f}",
            f"{row['estimated_mb']} / {row['measured_mb']}",
        ]
        yield f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
