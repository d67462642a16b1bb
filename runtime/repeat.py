"""The same profile again and again: whether the machine gives the same figures, and what was different where not.

Each profile is a process of its own that goes on until its medians are known. Before and after it the machine's own
state is measured: how fast one core computes in its cache, how fast memory is read, how hot it is. Where profiles
differ by more than `LIMIT`, the slowest and the fastest of them are compared by these and by what others took of the
CPUs meanwhile; the cause that weighs most is said.
"""

import hashlib
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeslim.errors import RecipeError, RuntimeUnavailable
from edgeslim.runtime import machine
from edgeslim.runtime.energy import cpu_temperature
from edgeslim.runtime.kernel_bench import read_bandwidth
from edgeslim.runtime.library import kernel_library
from edgeslim.runtime.profiler import Profile, profile_bundle

LIMIT = 0.05
"""How far apart the medians of profiles may be, over the smallest of them."""

EXIT_UNSTEADY = 3
"""Exit status of `edgeslim profile --repeat` where they are further apart."""

KEYS = ("decode_tok_s_p50", "prefill_tok_s_p50")
"""What is compared."""

_BLOCK = bytes(1 << 18)  # within the second cache of any core
_MATTERS = 0.02  # a share of the time below which a difference explains nothing
_HASHES = 24


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What the machine was like around one profile.

    `core_gb_per_s`: bytes hashed by one core in its cache, which follows its clock; `memory_gb_per_s`: bytes read from
    memory by all threads (None without a kernel library); `programs` and `stolen` of `cores`: CPUs that other programs
    and a hypervisor's other machines took while the profile ran; `throttling` as in the profile; `virtual` where there
    is a hypervisor.
    """

    core_gb_per_s: float
    memory_gb_per_s: float | None
    programs: float
    stolen: float
    cores: int
    temperature_c: float | None
    throttling: str | None
    virtual: bool = False


@dataclass(frozen=True, kw_only=True)
class Repeated:
    """Profiles of one bundle in a row. `spread` is (largest - smallest) / smallest of each of `KEYS`; `cause` one
    sentence, None where all are within `limit`."""

    profiles: tuple[Profile, ...]
    conditions: tuple[Conditions, ...]
    spread: dict[str, float]
    limit: float
    steady: bool
    cause: str | None

    def to_json(self) -> dict[str, Any]:
        """Return all of it as a JSON object."""
        return {
            "kind": "repeated",
            "steady": self.steady,
            "limit": self.limit,
            "spread": self.spread,
            "cause": self.cause,
            "conditions": [asdict(c) for c in self.conditions],
            "profiles": [p.to_json() for p in self.profiles],
        }


def repeat_profile(
    bundle: Path,
    count: int,
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    **options: Any,
) -> Repeated:
    """Return `count` settled profiles of `bundle`, made by `profile_bundle` with `options`, and whether they agree.

    Raises: RecipeError for a count below 2; what `profile_bundle` raises.
    """
    if count < 2:
        raise RecipeError(f"repeat must be at least 2, got {count}")
    profiles, conditions = [], []
    for number in range(count):

        def step(done: int, total: int, number: int = number) -> None:
            on_progress(number * total + done, count * total)

        first = _state()
        profile = profile_bundle(bundle, **options, settle=True, on_progress=step)
        profiles.append(profile)
        conditions.append(_conditions(profile, first, _state()))
    return judge(profiles, conditions)


def judge(profiles: Sequence[Profile], conditions: Sequence[Conditions], limit: float = LIMIT) -> Repeated:
    """Return whether `profiles` agree within `limit`, and what was different where they do not."""
    spread = {key: _spread([getattr(profile, key) for profile in profiles]) for key in KEYS}
    unsteady = sorted((key for key in KEYS if spread[key] > limit), key=lambda key: -spread[key])
    causes = [_cause(key, profiles, conditions, limit) for key in unsteady]
    return Repeated(
        profiles=tuple(profiles),
        conditions=tuple(conditions),
        spread={key: round(value, 4) for key, value in spread.items()},
        limit=limit,
        steady=not unsteady,
        cause="; ".join(causes) or None,
    )


def _cause(key: str, profiles: Sequence[Profile], conditions: Sequence[Conditions], limit: float) -> str:
    """Return by how much `key` differs, and what was different where it was smallest and largest."""
    speeds = [getattr(profile, key) for profile in profiles]
    slow, fast = speeds.index(min(speeds)), speeds.index(max(speeds))
    reason = explain(conditions[slow], conditions[fast], 1 - speeds[slow] / speeds[fast])
    name = key.removesuffix("_tok_s_p50")
    return f"{name} differs by {_spread(speeds):.0%} (at most {limit:.0%} is steady): {reason}"


def explain(slow: Conditions, fast: Conditions, lost: float) -> str:
    """Return what the slower of two profiles had that the faster had not; `lost` is the share of speed it lost."""
    causes = sorted(_causes(slow, fast), reverse=True)
    if not causes:
        return _throughout(slow, fast) or _unexplained(slow, fast)
    said = [text for share, text in causes if share >= max(_MATTERS, causes[0][0] / 3)]
    if all(share < lost / 4 for share, _ in causes) and slow.programs - fast.programs < _MATTERS * slow.cores:
        said.append("which explains a part of it only")  # an engine's spinning threads lose more than others take
    return "; ".join(said)


def _causes(slow: Conditions, fast: Conditions) -> list[tuple[float, str]]:
    """Return what differed, with the share of the time that it may have cost."""
    found = []
    if slow.throttling not in (None, "none", fast.throttling):
        found.append((1.0, f"throttled in the slowest: {slow.throttling}{_heat(slow)}"))
    programs = max(0.0, slow.programs - fast.programs) / slow.cores
    if programs >= _MATTERS:
        taken = f"{slow.programs:.2f} of {slow.cores} cores in the slowest and {fast.programs:.2f} in the fastest"
        found.append((programs, f"other programs used {taken}"))
    stolen = max(0.0, slow.stolen - fast.stolen) / slow.cores
    if stolen >= _MATTERS:
        shares = f"{slow.stolen / slow.cores:.0%} of the CPUs in the slowest and {fast.stolen / fast.cores:.0%}"
        found.append((stolen, f"the hypervisor withheld {shares} in the fastest (steal time)"))
    core = 1 - slow.core_gb_per_s / fast.core_gb_per_s
    if core >= _MATTERS:
        clocks = f"{slow.core_gb_per_s:.2f} GB/s hashed in the slowest, {fast.core_gb_per_s:.2f} in the fastest"
        found.append((core, f"a core ran {core:.0%} slower ({clocks}{_heat(slow)})"))
    if slow.memory_gb_per_s is not None and fast.memory_gb_per_s is not None:
        memory = 1 - slow.memory_gb_per_s / fast.memory_gb_per_s
        if memory >= _MATTERS:
            rates = f"{slow.memory_gb_per_s:.1f} GB/s in the slowest, {fast.memory_gb_per_s:.1f} in the fastest"
            found.append((memory, f"memory was read {memory:.0%} slower ({rates}; others share it)"))
    return found


def _throughout(slow: Conditions, fast: Conditions) -> str | None:
    """Return what disturbed the slower and the faster profile alike: what others take comes and goes within either."""
    said = []
    if min(slow.programs, fast.programs) >= _MATTERS * slow.cores:
        taken = f"{slow.programs:.2f} of {slow.cores} cores in the slowest and {fast.programs:.2f} in the fastest"
        said.append(f"other programs used {taken}")
    if min(slow.stolen, fast.stolen) >= _MATTERS * slow.cores:
        shares = f"{slow.stolen / slow.cores:.0%} of the CPUs in the slowest and {fast.stolen / fast.cores:.0%}"
        said.append(f"the hypervisor withheld {shares} in the fastest (steal time)")
    return f"the machine was busy throughout: {'; '.join(said)}" if said else None


def _heat(conditions: Conditions) -> str:
    return "" if conditions.temperature_c is None else f", {conditions.temperature_c:.0f} °C"


def _unexplained(slow: Conditions, fast: Conditions) -> str:
    heat = "temperature not measured" if slow.temperature_c is None else f"{slow.temperature_c:.0f} °C"
    host = "; a virtual machine: what others on its host take of shared cores and caches, no counter here tells"
    return (
        f"cause not found: other programs used {slow.programs:.2f} of {slow.cores} cores in the slowest and "
        f"{fast.programs:.2f} in the fastest, steal {slow.stolen:.2f}, core and memory as fast, {heat}"
        f"{host * slow.virtual}"
    )


def _spread(values: Sequence[float]) -> float:
    return (max(values) - min(values)) / min(values)


def _state() -> tuple[float, float | None, float | None]:
    """Return what one core hashes and what all threads read, in GB/s, and degrees."""
    memory = None
    with suppress(RuntimeUnavailable):  # a library that does not load is said by what needs it
        library = kernel_library()
        memory = None if library is None else read_bandwidth(library, machine.default_threads())
    return core_speed(), memory, cpu_temperature()


def core_speed() -> float:
    """Return how many GB/s one core hashes of what lies in its cache: the median of some milliseconds' runs."""
    taken = []
    for _ in range(_HASHES):
        begin = time.perf_counter()
        for _ in range(8):
            hashlib.sha256(_BLOCK).digest()
        taken.append(time.perf_counter() - begin)
    return 8 * len(_BLOCK) / statistics.median(taken) / 1e9


def _conditions(
    profile: Profile,
    before: tuple[float, float | None, float | None],
    after: tuple[float, float | None, float | None],
) -> Conditions:
    stolen = profile.stolen_cores or 0.0
    memory = [rate for rate in (before[1], after[1]) if rate is not None]
    heat = [degrees for degrees in (before[2], after[2], profile.temperature_c) if degrees is not None]
    return Conditions(
        core_gb_per_s=(before[0] + after[0]) / 2,
        memory_gb_per_s=statistics.mean(memory) if memory else None,
        programs=max(0.0, (profile.others_cores or 0.0) - stolen),
        stolen=stolen,
        cores=len(machine.usable_cpus()),
        temperature_c=max(heat, default=None),
        throttling=profile.throttling,
        virtual=machine.is_virtual(),
    )
