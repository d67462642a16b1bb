"""The measuring process of `edgeslim.runtime.profiler`: one JSON job as its argument, marked JSON lines on stdout."""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from edgeslim.errors import BundleError, EdgeslimError
from edgeslim.runtime import machine
from edgeslim.runtime.bundle_library import BODIES
from edgeslim.runtime.conditions import waited_seconds
from edgeslim.runtime.config import read_config
from edgeslim.runtime.energy import EnergyMeter, cpu_temperature
from edgeslim.runtime.engines import engine_version, import_engine
from edgeslim.runtime.library import KernelLibrary
from edgeslim.runtime.machine import Load, LoadWatch
from edgeslim.runtime.memory import current_pss, current_rss, peak_rss, reset_peak
from edgeslim.runtime.native_session import NativeSession
from edgeslim.runtime.profiler import MARK, check_room
from edgeslim.runtime.providers import CPU, describe_placement, placement_warning
from edgeslim.runtime.session import GenaiSession, OrtSession, Session, Tokens, open_session

SEED = 0


@dataclass(frozen=True, kw_only=True)
class Run:
    """The times of one generation, in seconds: until the first token, of the prompt alone, of each later token; and on
    the machine's clock where the prompt began, where decoding did, and where it ended; the seconds for which threads
    were ready without a CPU in each phase, and the joules of decoding, None where nothing counts them."""

    first: float
    prefill: float
    steps: list[float]
    at: tuple[float, float, float] = (0.0, 0.0, 0.0)
    waited: dict[str, float] | None = None
    joules: float | None = None


def main(argument: str) -> None:
    """Measure the job in `argument` and report; an expected fault is reported, not raised."""
    try:
        report(result=measure(**json.loads(argument)))
    except EdgeslimError as error:
        report(error={"kind": type(error).__name__, "message": str(error)})


def measure(
    bundle: str,
    prompt_tokens: int,
    new_tokens: int,
    threads: int,
    engine: Any,
    repeats: int,
    warmup: int,
    settle: bool = False,
) -> dict[str, Any]:
    """Return the measured keys of a profile, and the load of the machine meanwhile."""
    import_engine(engine)
    check_room(read_config(Path(bundle)), prompt_tokens + new_tokens)
    base = current_rss()
    reset_peak()
    started = time.perf_counter()
    session = open_session(Path(bundle), engine, threads, max_length=prompt_tokens + new_tokens)
    load_s = time.perf_counter() - started
    prompt = random_prompt(_vocab_size(Path(bundle)), prompt_tokens)
    if settle:
        before, runs, load = measure_settled(session, prompt, new_tokens, threads)
    else:
        before, runs, load = measure_some(session, prompt, new_tokens, repeats, warmup)
    peak, pss = peak_rss(), current_pss()
    placed = placed_nodes(session, Path(bundle), threads)
    return {
        "engine": engine_version(engine),
        "isa": describe_placement(placed) if placed else _isa(session),
        "load_s": load_s,
        "repeats": len(runs),
        "warmup": len(before),
        **summarise(runs, prompt_tokens),
        "cold_ttft_ms": [*before, *runs][0].first * 1e3,
        "cold_decode_ms": _percentile([s * 1e3 for s in [*before, *runs][0].steps], 50),
        "energy_j_per_token": _per_token(runs, new_tokens - 1),
        "temperature_c": cpu_temperature(),
        "governor": machine.governor(),
        "phases": phases(runs),
        "base_rss_bytes": base,
        "peak_rss_bytes": peak,
        "pss_bytes": pss,
        "load": asdict(load),
        "remarks": remarks(session, placed),
    }


def measure_some(
    session: Session, prompt: Tokens, new_tokens: int, repeats: int, warmup: int
) -> tuple[list[Run], list[Run], Load]:
    """Return `warmup` runs, `repeats` counted ones, and the load of the machine during the latter."""
    runs, watch = list[Run](), LoadWatch()
    for number in range(warmup + repeats):
        if number == warmup:
            watch = LoadWatch()
        runs.append(run_once(session, prompt, new_tokens, EnergyMeter()))
        report(progress=[number + 1, warmup + repeats])
    return runs[:warmup], runs[warmup:], watch.read()


def measure_settled(
    session: Session, prompt: Tokens, new_tokens: int, threads: int
) -> tuple[list[Run], list[Run], Load]:
    """Return warm-up runs, counted runs, and the load during the latter; the parent, which measures the machine between
    runs, says which are which (`edgeslim.runtime.settling`)."""
    runs, windows, cpus = list[Run](), list[tuple[float, ...]](), machine.usable_cpus()
    reply = ask(ready=True)
    while "counted" not in reply:
        session.reset()
        session.feed(prompt[:, :1])  # the caches hold again what they did before the parent's micro-runs
        begin = machine.cpu_seconds(cpus)
        runs.append(run_once(session, prompt, new_tokens, EnergyMeter()))
        window = tuple(after - before for after, before in zip(machine.cpu_seconds(cpus), begin, strict=True))
        windows.append(window)
        reply = ask(run=told(runs[-1], window, threads))
    counted = reply["counted"]
    wall, busy, own, stolen = (sum(windows[n][each] for n in counted) for each in range(4))
    load = Load(
        seconds=wall,
        others=max(0.0, (busy - own) / wall),
        load_1min=psutil.getloadavg()[0],
        cores=len(cpus),
        stolen=stolen / wall,
    )
    return runs[: reply["warmup"]], [runs[n] for n in counted], load


def told(run: Run, window: tuple[float, ...], threads: int) -> dict[str, Any]:
    """Return what the parent is told of a run, during which `window` seconds went by: of the clock, of busy CPUs, of
    this process, of CPUs withheld."""
    times = {"prefill": run.prefill, "decode": sum(run.steps), "steps": len(run.steps), "waited": run.waited}
    return {**times, "threads": threads, **dict(zip(("wall", "busy", "own", "stolen"), window, strict=True))}


def ask(**message: Any) -> dict[str, Any]:
    """Print one marked line for the parent and return its answer."""
    report(**message)
    line = sys.stdin.readline()
    if not line:
        raise EdgeslimError("the process that asked for this profile is gone")
    return dict(json.loads(line))


def placed_nodes(session: Session, bundle: Path, threads: int) -> dict[str, int]:
    """Return how many nodes each provider really ran, where the session has others than the CPU's; empty elsewhere."""
    if not isinstance(session, OrtSession) or not set(session.providers) - {CPU}:
        return {}
    from edgeslim.runtime.operators import nodes_by_provider  # builds on the profiler

    return nodes_by_provider(bundle, threads=threads)


def remarks(session: OrtSession | GenaiSession | NativeSession, placed: dict[str, int]) -> list[str]:
    """Return what the user should know of how the bundle ran."""
    fallback = session.provider_warning
    placement = placement_warning(session.config.providers, placed) if fallback is None else None
    return [text for text in (session.library.warning, fallback, placement) if text]


def _isa(session: OrtSession | GenaiSession | NativeSession) -> str:
    """Return what the products run on: the kernels of our library, its operators' function bodies, or the engine's."""
    if not session.library.needed:
        return machine.isa()
    return BODIES if session.library.path is None else KernelLibrary(session.library.path).chosen


def run_once(session: Session, prompt: Tokens, new_tokens: int, meter: EnergyMeter) -> Run:
    """Return the times of greedy generation of `new_tokens` after `prompt` [1, T]; no token ends it."""
    waited = [waited_seconds()]
    begin = time.perf_counter()
    session.reset()
    ready = time.perf_counter()
    token = session.feed(prompt).argmax()
    first = time.perf_counter()
    waited.append(waited_seconds())
    meter.start()
    decoding = time.perf_counter()
    steps = list(_timed_steps(session, int(token), new_tokens - 1))
    ended = time.perf_counter()
    meter.stop()
    waited.append(waited_seconds())
    return Run(
        first=first - begin,
        prefill=first - ready,
        steps=steps,
        at=(ready, decoding, ended),
        waited=_waited(*waited),
        joules=meter.joules(),
    )


def _waited(before: float | None, between: float | None, after: float | None) -> dict[str, float] | None:
    """Return the seconds waited in each phase; a thread that ended takes its own away."""
    if before is None or between is None or after is None:
        return None
    return {"prefill": max(0.0, between - before), "decode": max(0.0, after - between)}


def _timed_steps(session: Session, token: int, count: int) -> Iterator[float]:
    for _ in range(count):
        begin = time.perf_counter()
        token = int(session.feed(np.array([[token]], np.int64)).argmax())
        yield time.perf_counter() - begin


def summarise(runs: list[Run], prompt_tokens: int) -> dict[str, float]:
    """Return the speed keys of a profile: percentiles over `runs`, and over their steps."""
    first = [run.first * 1e3 for run in runs]
    steps = [s * 1e3 for run in runs for s in run.steps]
    return {
        "ttft_ms_p50": _percentile(first, 50),
        "ttft_ms_p90": _percentile(first, 90),
        "prefill_tok_s_p50": _percentile([prompt_tokens / run.prefill for run in runs], 50),
        "decode_tok_s_p50": _percentile([len(run.steps) / sum(run.steps) for run in runs], 50),
        "decode_ms_p50": _percentile(steps, 50),
        "decode_ms_p90": _percentile(steps, 90),
    }


def phases(runs: list[Run]) -> list[dict[str, Any]]:
    """Return begin and end of each run's prompt and of its decoding, on the machine's clock."""
    return [
        {"phase": phase, "run": number, "begin": begin, "end": end}
        for number, run in enumerate(runs)
        for phase, begin, end in (("prefill", *run.at[:2]), ("decode", *run.at[1:]))
    ]


def random_prompt(vocab_size: int, count: int) -> Tokens:
    """Return seeded random token ids [1, count]."""
    return np.random.default_rng(SEED).integers(0, vocab_size, (1, count), dtype=np.int64)


def report(**message: Any) -> None:
    """Print one marked line for the parent."""
    print(MARK + json.dumps(message), flush=True)


def _percentile(values: list[float], percent: int) -> float:
    return float(np.percentile(values, percent))


def _per_token(runs: list[Run], tokens: int) -> float | None:
    """Return the joules of one of the `tokens` that each of `runs` decoded, None where nothing counts them."""
    joules = [run.joules for run in runs if run.joules is not None]
    return sum(joules) / (len(joules) * tokens) if joules else None


def _vocab_size(bundle: Path) -> int:
    size = read_config(bundle).vocab_size
    if size is None:
        raise BundleError(f"{bundle}: neither genai_config.json nor config.json says vocab_size")
    return size


if __name__ == "__main__":
    main(sys.argv[1])
