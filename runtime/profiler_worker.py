"""The measuring process of `edgeslim.runtime.profiler`: one JSON job as its argument, marked JSON lines on stdout."""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeslim.errors import BundleError, EdgeslimError, RecipeError
from edgeslim.runtime import machine
from edgeslim.runtime.bundle_library import BODIES
from edgeslim.runtime.config import read_config
from edgeslim.runtime.energy import EnergyMeter, cpu_temperature
from edgeslim.runtime.engines import engine_version, import_engine
from edgeslim.runtime.library import KernelLibrary
from edgeslim.runtime.machine import LoadWatch
from edgeslim.runtime.memory import current_pss, current_rss, peak_rss, reset_peak
from edgeslim.runtime.native_session import NativeSession
from edgeslim.runtime.profiler import MARK
from edgeslim.runtime.providers import CPU, describe_placement, placement_warning
from edgeslim.runtime.session import GenaiSession, OrtSession, Session, Tokens, open_session
from edgeslim.runtime.steadiness import MOST_REPEATS, MOST_WARMUP, is_known, is_warm

SEED = 0


@dataclass(frozen=True, kw_only=True)
class Run:
    """The times of one generation, in seconds: until the first token, of the prompt alone, of each later token; and on
    the machine's clock where the prompt began, where decoding did, and where it ended."""

    first: float
    prefill: float
    steps: list[float]
    at: tuple[float, float, float] = (0.0, 0.0, 0.0)


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
    base = current_rss()
    reset_peak()
    started = time.perf_counter()
    session = open_session(Path(bundle), engine, threads, max_length=_room(Path(bundle), prompt_tokens + new_tokens))
    load_s = time.perf_counter() - started
    prompt = random_prompt(_vocab_size(Path(bundle)), prompt_tokens)
    more = (MOST_WARMUP * bool(warmup), MOST_REPEATS) if settle else (0, 1)
    total = warmup + more[0] + repeats * more[1]
    meter, done = EnergyMeter(), 0

    def run(into: list[Run]) -> None:
        nonlocal done
        into.append(run_once(session, prompt, new_tokens, meter))
        done += 1
        report(progress=[done, total])

    before: list[Run] = []
    while len(before) < warmup or (len(before) < warmup + more[0] and not is_warm(_rates(before)[0])):
        run(before)
    watch, meter, runs = LoadWatch(), EnergyMeter(), list[Run]()
    while len(runs) < repeats or (len(runs) < repeats * more[1] and not all(map(is_known, _rates(runs)))):
        run(runs)
    if done < total:
        report(progress=[total, total])
    peak, pss, load = peak_rss(), current_pss(), asdict(watch.read())
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
        "energy_j_per_token": _per_token(meter.joules(), len(runs) * (new_tokens - 1)),
        "temperature_c": cpu_temperature(),
        "governor": machine.governor(),
        "phases": phases(runs),
        "base_rss_bytes": base,
        "peak_rss_bytes": peak,
        "pss_bytes": pss,
        "load": load,
        "remarks": remarks(session, placed),
    }


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
    begin = time.perf_counter()
    session.reset()
    ready = time.perf_counter()
    token = session.feed(prompt).argmax()
    first = time.perf_counter()
    meter.start()
    decoding = time.perf_counter()
    steps = list(_timed_steps(session, int(token), new_tokens - 1))
    ended = time.perf_counter()
    meter.stop()
    return Run(first=first - begin, prefill=first - ready, steps=steps, at=(ready, decoding, ended))


def _rates(runs: list[Run]) -> tuple[list[float], list[float]]:
    """Return how many steps a second each run decoded, and how many prompts a second it would have taken."""
    return [len(run.steps) / sum(run.steps) for run in runs], [1 / run.prefill for run in runs]


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


def _per_token(joules: float | None, tokens: int) -> float | None:
    return None if joules is None else joules / tokens


def _vocab_size(bundle: Path) -> int:
    size = read_config(bundle).vocab_size
    if size is None:
        raise BundleError(f"{bundle}: neither genai_config.json nor config.json says vocab_size")
    return size


def _room(bundle: Path, needed: int) -> int:
    """Return `needed`, the tokens that caches are made for, where the model's context holds them."""
    limit = read_config(bundle).context_length
    if limit is not None and needed > limit:
        raise RecipeError(f"prompt_tokens + new_tokens must be at most {limit}, the model's context, got {needed}")
    return needed


if __name__ == "__main__":
    main(sys.argv[1])
