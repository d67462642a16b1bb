"""How fast and how large a bundle is on this machine, measured in a process of its own."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, Any, Literal

import edgeslim
from edgeslim import errors
from edgeslim.devices.sensors import TEGRASTATS, Readings, read_sensors
from edgeslim.errors import EdgeslimError, RecipeError
from edgeslim.runtime import machine
from edgeslim.runtime.config import RunConfig, read_config
from edgeslim.runtime.engines import require_engine
from edgeslim.runtime.memory import bundle_bytes, weight_bytes
from edgeslim.runtime.sampling import FileSampler, LineSampler, local_plan
from edgeslim.runtime.session import best_engine
from edgeslim.runtime.settling import Settling

MARK = "edgeslim-profiler: "  # begins the worker's lines; an engine may print others


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One bundle measured on one machine; the keys of its JSON are these fields, in this order.

    Percentiles run over all repeats: of each repeat's first-token time and speeds, of every single decode step.
    `isa` is what the products run on: the kernel variant of a bundle with packed matrices, ``function bodies`` where
    its library is missing, else the machine's. `load_s` is the model's load alone, its file as warm as the page cache
    has it; `ttft_ms_*` run from the prompt to the first token chosen; `prefill_tok_s` counts tokens given;
    `base_rss_bytes` is taken before the load, imports included, `pss_bytes` (proportional: pages shared with other
    processes in their parts) after the last run; caches are made for `prompt_tokens` + `new_tokens`; `governor` sets
    the CPU's clock; `energy_j_per_token` is what `energy_source` (rapl: the CPU packages; rails: the module; battery)
    drew per decoded token, `watts` its mean power meanwhile; `temperature_c` the hottest reading of a processor's
    sensor; `throttling` a sentence, or "none" where something would have told. `cold_ttft_ms` and `cold_decode_ms` are
    those of the process' very first run, warm-up or not. `others_cores` is what other programs used of the CPUs during
    the counted runs, `stolen_cores` what a hypervisor withheld of it. All of these are None where nothing gives a
    reading.
    """

    device: str
    engine: str
    isa: str
    threads: int
    prompt_tokens: int
    new_tokens: int
    load_s: float
    ttft_ms_p50: float
    ttft_ms_p90: float
    prefill_tok_s_p50: float
    decode_tok_s_p50: float
    decode_ms_p50: float
    decode_ms_p90: float
    base_rss_bytes: int
    peak_rss_bytes: int
    pss_bytes: int | None = None
    bundle_bytes: int
    weight_bytes: int
    energy_j_per_token: float | None
    temperature_c: float | None
    governor: str | None = None
    power_mode: str | None = None
    throttling: str | None = None
    clock_mhz: float | None = None
    energy_source: str | None = None
    watts: float | None = None
    cold_ttft_ms: float | None = None
    cold_decode_ms: float | None = None
    others_cores: float | None = None
    stolen_cores: float | None = None
    repeats: int
    warmup: int
    measured: bool = True
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the profile as a JSON object."""
        return {**asdict(self), "warnings": list(self.warnings)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Profile":
        """Return the profile a JSON object describes; unknown keys are ignored."""
        known = {f.name: value[f.name] for f in fields(cls) if f.name in value}
        return cls(**{**known, "warnings": tuple(known.get("warnings", ()))})


def profile_bundle(
    bundle: Path,
    *,
    prompt_tokens: int = 128,
    new_tokens: int = 64,
    threads: int | None = None,
    engine: Literal["auto", "genai", "ort", "native"] = "auto",
    repeats: int = 5,
    warmup: int = 1,
    settling: Callable[[int], Settling] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Profile:
    """Return the profile of `bundle` with random tokens, which end at no EOS; a busy machine is said on stderr.

    `threads` None takes the physical cores. `settling`, called with the number of threads once the model is loaded,
    makes what decides after every run whether there are more and which count; the profile then says how many did.
    `on_progress` is called with the runs done and their number at most.
    Raises: RecipeError, BundleError, RuntimeUnavailable; EdgeslimError when the measuring process dies.
    """
    _check(prompt_tokens=(prompt_tokens, 1), new_tokens=(new_tokens, 2), repeats=(repeats, 1), warmup=(warmup, 0))
    _check(threads=(1 if threads is None else threads, 1))
    config = read_config(bundle)
    if engine == "auto":
        engine = best_engine(bundle)
    require_engine(engine)
    job = {
        "bundle": str(bundle),
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "threads": threads or config.session_options.get("intra_op_num_threads") or machine.default_threads(),
        "engine": engine,
        "repeats": repeats,
        "warmup": warmup,
        "settle": settling is not None,
    }
    before = machine.busy_warning(machine.probe_load(), "before the run")
    plan, command = local_plan()
    with FileSampler(plan.paths) as files, LineSampler(TEGRASTATS, command) as lines:
        measured = _measure(job, settling, on_progress or (lambda done, total: None))
    load = machine.Load(**measured.pop("load"))
    readings = read_sensors(plan, measured.pop("phases"), [*files.samples, *lines.samples])
    during = machine.busy_warning(load, "during the run")
    slowed = [f"throttled: {readings.throttling}"] if readings.throttling not in (None, "none") else []
    warnings = tuple(w for w in (before, during, *slowed, *measured.pop("remarks")) if w)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    job = {key: value for key, value in job.items() if key not in ("bundle", "settle")}
    return Profile(
        **{**job, **measured, **_sensed(readings, measured, measured["repeats"] * (new_tokens - 1))},
        others_cores=round(load.others, 3),
        stolen_cores=round(load.stolen, 3),
        device=machine.describe(),
        bundle_bytes=bundle_bytes(bundle),
        weight_bytes=weight_bytes(bundle),
        warnings=warnings,
    )


def _sensed(readings: Readings, measured: dict[str, Any], tokens: int) -> dict[str, Any]:
    """Return the keys of a profile that sensors give. A counter that the measuring process reads at the very ends of
    each stretch (RAPL) is more exact than samples of it, and stays."""
    found = readings.profile_keys(tokens)
    if measured["energy_j_per_token"] is not None:
        found.pop("energy_j_per_token", None)
        found["energy_source"] = "rapl"
    return found


def _check(**limits: tuple[int, int]) -> None:
    for name, (value, least) in limits.items():
        if value < least:
            raise RecipeError(f"{name} must be at least {least}, got {value}")


def check_room(config: RunConfig, tokens: int) -> None:
    """Refuse more tokens of prompt and after it than the model's context holds.

    Raises: RecipeError.
    """
    if config.context_length is not None and tokens > config.context_length:
        raise RecipeError(
            f"prompt_tokens + new_tokens must be at most {config.context_length}, the model's context, got {tokens}"
        )


def _measure(
    job: dict[str, Any], settling: Callable[[int], Settling] | None, on_progress: Callable[[int, int], None]
) -> dict[str, Any]:
    """Return what the worker process measured for `job`."""
    command = [sys.executable, "-P", "-m", "edgeslim.runtime.profiler_worker", json.dumps(job)]
    pipe = subprocess.PIPE
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as stderr:
        worker = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=stderr, env=_environment(), encoding="utf-8")
        with worker:
            assert worker.stdin is not None and worker.stdout is not None
            decides = None
            for message in _messages(worker.stdout):
                if "progress" in message:
                    on_progress(*message["progress"])
                elif "error" in message:
                    raise _as_error(**message["error"])
                elif "result" in message:
                    return dict(message["result"])
                elif "ready" in message and settling is not None:
                    decides = settling(job["threads"])
                    _answer(worker.stdin, {})
                elif decides is not None:
                    answer = decides.answer(message["run"])
                    on_progress(decides.total if answer else decides.done, decides.total)
                    _answer(worker.stdin, answer)
        raise EdgeslimError(f"the measuring process ended with status {worker.returncode}: {_last_line(stderr)}")


def _answer(worker: IO[str], answer: dict[str, Any]) -> None:
    with suppress(BrokenPipeError):  # it died, which its status says
        worker.write(json.dumps(answer) + "\n")
        worker.flush()


def _messages(lines: IO[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        if line.startswith(MARK):
            yield json.loads(line.removeprefix(MARK))


def _environment() -> dict[str, str]:
    """Return an environment in which a fresh interpreter finds this very package."""
    root = str(Path(edgeslim.__file__).parent.parent)
    inherited = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([root, inherited] if inherited else [root])}


def _as_error(kind: str, message: str) -> EdgeslimError:
    error = getattr(errors, kind, EdgeslimError)(message)
    return error if isinstance(error, EdgeslimError) else EdgeslimError(message)


def _last_line(stderr: IO[str]) -> str:
    stderr.seek(0)
    lines = stderr.read().strip().splitlines()
    return lines[-1] if lines else "it said nothing; it may have run out of memory"
