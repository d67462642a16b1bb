"""What can be measured: a bundle on the engine that `auto` means, a file in llama.cpp; each in a fresh process."""

import json
import resource
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeslim.runtime.machine import Load, LoadWatch, busy_warning, probe_load
from edgeslim.runtime.profiler import profile_bundle

LLAMA_PYTHON = Path(__file__).parents[3] / "build" / "llama-venv" / "bin" / "python"
LLAMA_FORMS = ("q8_0", "q4_0", "q4_K", "q3_K", "q2_K")
_WORKER = Path(__file__).with_name("llama_worker.py")


@dataclass(frozen=True, kw_only=True)
class Job:
    """What each process is asked for; its figures are medians of `repeats` runs after `warmup` unmeasured ones."""

    prompt_tokens: int
    new_tokens: int
    threads: int
    repeats: int
    warmup: int = 1


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The figures of one process. `busy` says that another program took part of the machine meanwhile."""

    engine: str
    decode_tok_s: float
    prefill_tok_s: float
    load_s: float
    base_rss_bytes: int
    peak_rss_bytes: int
    file_bytes: int
    busy: bool


@dataclass(frozen=True, kw_only=True)
class Case:
    """A name, and the bundle folder or GGUF file that it stands for."""

    name: str
    path: Path

    def measure(self, job: Job) -> Sample:
        """Return the figures of one fresh process."""
        return _measure_gguf(self.path, job) if self.path.suffix == ".gguf" else _measure_bundle(self.path, job)


def find_cases(work: Path, bundles: Sequence[str], wanted: Sequence[str] | None) -> list[Case]:
    """Return the prepared stock bundles and llama.cpp files in `work`, then the `bundles` given as NAME=PATH.

    Raises: SystemExit naming a case that is `wanted` and not there.
    """
    stock = {path.name: path for path in sorted(work.glob("ort-*"))}
    files = {f"llama.cpp-{form}": work / f"llama.cpp-{form}.gguf" for form in LLAMA_FORMS if LLAMA_PYTHON.exists()}
    given = {name: Path(path) for name, _, path in (bundle.partition("=") for bundle in bundles)}
    found = {name: path for name, path in {**stock, **files, **given}.items() if path.exists()}
    names = [*wanted, *given] if wanted is not None else [*found]
    for name in [*names, *given]:
        if name not in found:
            raise SystemExit(f"case {name!r} is not there; there are {', '.join(found) or 'none'}")
    return [Case(name=name, path=found[name]) for name in dict.fromkeys(names)]


def _measure_bundle(bundle: Path, job: Job) -> Sample:
    found = profile_bundle(bundle, engine="auto", **vars(job))  # genai where it has other operators than ours
    return _sample(found.to_json(), file_bytes=found.bundle_bytes, busy=bool(found.warnings))


def _measure_gguf(file: Path, job: Job) -> Sample:
    before = probe_load()
    watch, spent = LoadWatch(), _children_seconds()
    command = [str(LLAMA_PYTHON), str(_WORKER), str(file), json.dumps(vars(job))]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    during = _without(watch.read(), _children_seconds() - spent)
    busy = any(busy_warning(load, "") for load in (before, during))
    return _sample(json.loads(output), file_bytes=file.stat().st_size, busy=busy)


def _sample(found: Mapping[str, Any], *, file_bytes: int, busy: bool) -> Sample:
    """Return the sample with the figures `found`, whose keys are those of a profile."""
    return Sample(
        engine=found["engine"],
        decode_tok_s=found["decode_tok_s_p50"],
        prefill_tok_s=found["prefill_tok_s_p50"],
        load_s=found["load_s"],
        base_rss_bytes=found["base_rss_bytes"],
        peak_rss_bytes=found["peak_rss_bytes"],
        file_bytes=file_bytes,
        busy=busy,
    )


def _children_seconds() -> float:
    """Return the CPU seconds of this process's ended children."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _without(load: Load, seconds: float) -> Load:
    """Return `load` less the CPU `seconds` that were our own child's."""
    return replace(load, others=max(0.0, load.others - seconds / max(load.seconds, 1e-9)))
