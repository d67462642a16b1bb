"""The same profile again and again: whether the machine gives the same figures, and what was different where not.

Each profile is a process of its own that goes on until its medians are known, and the machine is measured between all
of its runs (`edgeslim.runtime.settling`). Where profiles differ by more than `LIMIT`, the slowest and the fastest are
compared, figure by figure, by what was measured (`edgeslim.runtime.causes`).
"""

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from edgeslim.errors import RecipeError
from edgeslim.runtime import machine
from edgeslim.runtime.causes import Conditions, explain
from edgeslim.runtime.conditions import MicroRuns, Sample, median_sample
from edgeslim.runtime.profiler import Profile, profile_bundle
from edgeslim.runtime.settling import FIGURES, RunSeen, Settling

LIMIT = 0.05
"""How far apart the medians of profiles may be, over the smallest of them."""

EXIT_UNSTEADY = 3
"""Exit status of `edgeslim profile --repeat` where they are further apart."""

_KEYS = {figure: f"{figure}_tok_s_p50" for figure in FIGURES}  # what is compared

Source = Callable[[int], Callable[[], Sample]]
"""Makes what takes samples, of the number of threads."""


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
            "conditions": [conditions.to_json() for conditions in self.conditions],
            "profiles": [profile.to_json() for profile in self.profiles],
        }


def repeat_profile(
    bundle: Path,
    count: int,
    *,
    source: Source = lambda threads: MicroRuns(threads).sample,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    **options: Any,
) -> Repeated:
    """Return `count` settled profiles of `bundle`, made by `profile_bundle` with `options`, and whether they agree.

    `source` makes what measures the machine between runs.

    Raises: RecipeError for a count below 2; what `profile_bundle` raises.
    """
    if count < 2:
        raise RecipeError(f"repeat must be at least 2, got {count}")
    once = cache(source)  # the same bytes for all profiles: pages that lie elsewhere are read at another speed
    profiles, conditions, runs, best = [], [], list[RunSeen](), None
    for number in range(count):

        def step(done: int, total: int, number: int = number) -> None:
            on_progress(number * total + done, count * total)

        profile, settling = settled_profile(bundle, source=once, best=best, on_progress=step, **options)
        best = settling.best
        profiles.append(profile)
        conditions.append(conditions_of(profile, settling))
        runs += settling.runs
    return judge(profiles, conditions, runs)


def settled_profile(
    bundle: Path,
    *,
    source: Source,
    best: Sample | None,
    on_progress: Callable[[int, int], None],
    repeats: int = 5,
    warmup: int = 1,
    **options: Any,
) -> tuple[Profile, Settling]:
    """Return one profile that went on until its medians were known, and what was seen between its runs."""
    made: list[Settling] = []

    def settling(threads: int) -> Settling:
        cores = len(machine.usable_cpus())
        made.append(Settling(source(threads), repeats=repeats, warmup=warmup, cores=cores, best=best))
        return made[0]

    profile = profile_bundle(
        bundle, repeats=repeats, warmup=warmup, settling=settling, on_progress=on_progress, **options
    )
    if remark := made[0].remark():
        print(f"warning: {remark}", file=sys.stderr)
        profile = replace(profile, warnings=(*profile.warnings, remark))
    return profile, made[0]


def conditions_of(profile: Profile, settling: Settling) -> Conditions:
    """Return what the machine was like during the counted runs of a profile."""
    counted = [settling.runs[number] for number in settling.counted()]
    seconds, waits = sum(run.seconds for run in counted), [run.waited for run in counted if run.waited is not None]
    waited = {f: statistics.median(each[f] for each in waits) for f in FIGURES} if waits else None
    usual = vars(median_sample([run.around for run in counted]))
    return Conditions(
        **{**usual, "temperature_c": usual["temperature_c"] or profile.temperature_c},
        waited=waited,
        programs=max(0.0, sum(run.programs_s for run in counted) / seconds),
        stolen=sum(run.stolen_s for run in counted) / seconds,
        cores=len(machine.usable_cpus()),
        throttling=profile.throttling,
        virtual=machine.is_virtual(),
        left_out=len(settling.runs) - len(counted),
    )


def judge(
    profiles: Sequence[Profile],
    conditions: Sequence[Conditions],
    runs: Sequence[RunSeen] = (),
    limit: float = LIMIT,
) -> Repeated:
    """Return whether `profiles` agree within `limit`, and what was different where they do not; `runs` are those of all
    of them."""
    spread = {key: _spread([getattr(profile, key) for profile in profiles]) for key in _KEYS.values()}
    unsteady = sorted((f for f in FIGURES if spread[_KEYS[f]] > limit), key=lambda f: -spread[_KEYS[f]])
    causes = [_cause(figure, profiles, conditions, runs, limit) for figure in unsteady]
    return Repeated(
        profiles=tuple(profiles),
        conditions=tuple(conditions),
        spread={key: round(value, 4) for key, value in spread.items()},
        limit=limit,
        steady=not unsteady,
        cause="; ".join(causes) or None,
    )


def _cause(
    figure: str, profiles: Sequence[Profile], conditions: Sequence[Conditions], runs: Sequence[RunSeen], limit: float
) -> str:
    """Return by how much `figure` differs, and what was different where it was smallest and largest."""
    speeds = [getattr(profile, _KEYS[figure]) for profile in profiles]
    slow, fast = speeds.index(min(speeds)), speeds.index(max(speeds))
    reason = explain(figure, conditions[slow], conditions[fast], 1 - speeds[slow] / speeds[fast], runs)
    return f"{figure} differs by {_spread(speeds):.0%} (at most {limit:.0%} is steady): {reason}"


def _spread(values: Sequence[float]) -> float:
    return (max(values) - min(values)) / min(values)
