"""Speed, memory and bytes of what stock onnxruntime-genai and llama.cpp make of a shape, and of bundles beside them.

``prepare`` writes, under --work, checkpoints of random weights (dense, pruned50, pruned70), stock bundles and GGUF
files; what is there stays. ``run`` measures each case in a fresh process, round after round over all cases, and prints
a JSON line a case (medians over the undisturbed rounds and their spread), then a Markdown table. A measurement during
which another program ran is repeated, and counted as disturbed where it does not get better.

llama.cpp is llama-cpp-python in an environment of its own, build/llama-venv; without it its cases are left out:

    python3 -m venv build/llama-venv
    CMAKE_ARGS=-DGGML_NATIVE=ON build/llama-venv/bin/pip install llama-cpp-python gguf
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from partners.cases import LLAMA_FORMS, LLAMA_PYTHON, Case, Job, Sample, find_cases
from partners.checkpoints import SHAPES, make_checkpoints
from partners.tables import markdown, summarise

from edgeslim.runtime import machine

_GGUF_WRITER = Path(__file__).parent / "partners" / "gguf_files.py"


def main() -> None:
    """Prepare or run, as the arguments say."""
    args = _parser().parse_args()
    work = args.work or Path("/tmp/partners") / args.shape
    if args.verb == "prepare":
        prepare(args.shape, work)
    else:
        job = Job(
            prompt_tokens=args.prompt_tokens, new_tokens=args.new_tokens, threads=args.threads, repeats=args.repeats
        )
        cases = find_cases(work, args.bundle, args.cases)
        report(args.shape, job, run(cases, job, args.rounds, args.retries, args.wait), args.output)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("prepare", "run"))
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--work", type=Path, help="folder of the prepared files (default: /tmp/partners/SHAPE)")
    parser.add_argument("--cases", type=lambda text: text.split(","), help="comma-separated (default: all prepared)")
    parser.add_argument("--bundle", action="append", default=[], metavar="NAME=PATH", help="also measure this bundle")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--retries", type=int, default=2, help="how often a disturbed measurement is repeated")
    parser.add_argument("--wait", type=float, default=60, help="seconds that a measurement waits for an idle machine")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="generations in each process")
    parser.add_argument("-o", "--output", type=Path, help="JSON file for the summaries and every sample")
    return parser


def prepare(shape: str, work: Path) -> None:
    """Write checkpoints, stock bundles and llama.cpp's files of `shape` into `work`."""
    from partners.stock import make_bundles  # the exporter, which a run does not need

    work.mkdir(parents=True, exist_ok=True)
    make_checkpoints(shape, work)
    make_bundles(work)
    if not LLAMA_PYTHON.exists():
        print(f"{LLAMA_PYTHON}: not there, so no llama.cpp files are written", file=sys.stderr)
        return
    for form in LLAMA_FORMS:
        file = work / f"llama.cpp-{form}.gguf"
        if not file.exists():
            subprocess.run([LLAMA_PYTHON, _GGUF_WRITER, work / "dense", file, form], check=True)


def run(cases: list[Case], job: Job, rounds: int, retries: int, wait: float) -> dict[str, list[Sample]]:
    """Return `rounds` samples of each case; every round measures all cases, each time beginning with another."""
    samples: dict[str, list[Sample]] = {case.name: [] for case in cases}
    for number in range(rounds):
        first = number % len(cases)
        for case in cases[first:] + cases[:first]:
            sample = _undisturbed(case, job, retries, wait)
            samples[case.name].append(sample)
            speeds = f"decode {sample.decode_tok_s:.1f}, prefill {sample.prefill_tok_s:.0f} tok/s"
            print(f"round {number + 1} {case.name}: {speeds}{', busy' * sample.busy}", file=sys.stderr, flush=True)
    return samples


def _undisturbed(case: Case, job: Job, retries: int, wait: float) -> Sample:
    """Return a sample of `case`, measured again up to `retries` times where the machine was busy."""
    for _ in range(retries + 1):
        _wait_for_idle(wait)
        sample = case.measure(job)
        if not sample.busy:
            break
    return sample


def _wait_for_idle(seconds: float) -> None:
    """Return when nothing else uses the machine, or after `seconds`."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and machine.busy_warning(machine.probe_load(), ""):
        time.sleep(1)


def report(shape: str, job: Job, samples: dict[str, list[Sample]], output: Path | None) -> None:
    """Print a JSON line a case, the table and the machine; write all of it with every sample to `output`."""
    cases = [summarise(name, found) for name, found in samples.items()]
    about: dict[str, Any] = {"shape": shape, **asdict(job), "device": machine.describe(), "isa": machine.isa()}
    for case in cases:
        print(json.dumps({**about, **case}))
    busy = sum(case["busy_rounds"] for case in cases)
    print(f"\n{shape}, {about['device']}, {about['isa']}, {job.threads} threads, prompt {job.prompt_tokens},")
    print(f"{job.new_tokens} new tokens; machine busy in {busy} of {sum(map(len, samples.values()))} measurements\n")
    print(markdown(cases))
    if output:
        every = {name: [asdict(sample) for sample in found] for name, found in samples.items()}
        output.write_text(json.dumps({**about, "cases": cases, "samples": every}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
