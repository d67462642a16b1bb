"""A profile that goes on until its medians are known, the machine's state measured between its runs.

The measuring process asks after every run what to do; `Settling` answers. It warms up until two runs are alike, then
counts runs until both medians are known, `MOST_REPEATS` times the runs asked for are done or `MOST_SECONDS` are over.
A run does not count where the machine was measurably not itself: its threads waited for a CPU, a hypervisor withheld
one, or micro-runs before and after it were slower than at its better moments. How many did not is said; where that are
more than three of four, all count, and that is said.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from edgeslim.runtime.conditions import Sample, median_sample, upper_quartile
from edgeslim.runtime.steadiness import MOST_REPEATS, MOST_SECONDS, MOST_WARMUP, is_known, is_warm

TAKEN = 0.03
"""Share of a run's time for which its threads waited, or CPUs were withheld, from which it does not count."""

SLOWER = 0.06
"""How much slower than at the machine's better moments micro-runs around a run may be where it counts."""

FEWEST = 0.25
"""Share of the runs that must have met an undisturbed machine where the others do not count."""

FIGURES = ("decode", "prefill")


@dataclass(frozen=True, kw_only=True)
class RunSeen:
    """One run and what the machine was like: `rates` of each of `FIGURES` per second; `waited` the share of that
    phase's time for which its threads were ready without a CPU (None: not counted here); in `seconds`, `programs_s` and
    `stolen_s` seconds of CPUs that other programs and a hypervisor took (counted in ticks, so the first may be a little
    below 0); `around` the mean of the samples before and after it."""

    rates: dict[str, float]
    waited: dict[str, float] | None
    seconds: float
    programs_s: float
    stolen_s: float
    around: Sample

    def disturbances(self, best: Sample, cores: int) -> list[str]:
        """Return what was not as on a machine of its own, `best` what micro-runs give at its better moments."""
        found = []
        if self.waited is not None and max(self.waited.values()) > TAKEN:
            found.append("waited for a CPU")
        if self.stolen_s > TAKEN * cores * self.seconds:
            found.append("had CPUs withheld")
        for name, said in _SLOWER:
            now, usual = getattr(self.around, name), getattr(best, name)
            if now is not None and usual is not None and now < (1 - SLOWER) * usual:
                found.append(f"met a slower {said}")
        return found


_SLOWER = (("core_gb_per_s", "core"), ("products_g_per_s", "product on all threads"), ("memory_gb_per_s", "memory"))


class Settling:
    """Answers the measuring process of one profile. `best` is what micro-runs gave at the better moments of profiles
    before this one."""

    def __init__(
        self,
        sample: Callable[[], Sample],
        *,
        repeats: int,
        warmup: int,
        cores: int,
        best: Sample | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._sample, self._clock = sample, clock
        self._repeats, self._warmup, self._cores = repeats, warmup, cores
        self._earlier = best
        self._before: list[RunSeen] = []
        self._runs: list[RunSeen] = []
        self._samples = [sample()]
        self._warm = warmup == 0
        self._began = clock()

    @property
    def total(self) -> int:
        """Runs at most."""
        return self._warmup + MOST_WARMUP * bool(self._warmup) + self._repeats * MOST_REPEATS

    @property
    def done(self) -> int:
        """Runs so far."""
        return len(self._before) + len(self._runs)

    @property
    def runs(self) -> tuple[RunSeen, ...]:
        """Every run after the warm-up."""
        return tuple(self._runs)

    @property
    def best(self) -> Sample:
        """What micro-runs give at the machine's better moments, those of earlier profiles included."""
        here = upper_quartile(self._samples)
        if self._earlier is None:
            return here
        return Sample(**{n: _larger(v, getattr(here, n)) for n, v in vars(self._earlier).items()})

    def answer(self, run: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a run: ``{}`` to go on, else the numbers of the `counted` runs and of `warmup` runs."""
        self._samples.append(self._sample())
        seen = _seen(run, self._samples[-2:])
        if not self._warm:
            self._before.append(seen)
            rates, count = [each.rates["decode"] for each in self._before], len(self._before)
            self._warm = count >= self._warmup and (is_warm(rates) or count >= self._warmup + MOST_WARMUP)
            self._began = self._clock()
            return {}
        self._runs.append(seen)
        if not self._settled():
            return {}
        return {"warmup": len(self._before), "counted": [len(self._before) + number for number in self.counted()]}

    def counted(self) -> list[int]:
        """Return the numbers of the runs that count: those that met the machine itself; all where these are too few."""
        calm = [number for number, found in enumerate(self._disturbances()) if not found]
        enough = max(self._repeats, FEWEST * len(self._runs))
        return calm if len(calm) >= enough else list(range(len(self._runs)))

    def remark(self) -> str | None:
        """Return one sentence where runs do not count, or where all do though the machine was not itself."""
        found = [each for each in self._disturbances() if each]
        if not found:
            return None
        reasons = Counter(reason for each in found for reason in each)
        why = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        if len(self.counted()) == len(self._runs):
            calm = len(self._runs) - len(found)
            return f"all {len(self._runs)} runs count: {calm or 'none'} met an undisturbed machine ({why})"
        return f"{len(found)} of {len(self._runs)} runs do not count: {why}"

    def _disturbances(self) -> list[list[str]]:
        best = self.best
        return [run.disturbances(best, self._cores) for run in self._runs]

    def _settled(self) -> bool:
        count = len(self._runs)
        if count < self._repeats:
            return False
        if count >= self._repeats * MOST_REPEATS or self._clock() - self._began >= MOST_SECONDS:
            return True
        calm = [run for run, found in zip(self._runs, self._disturbances(), strict=True) if not found]
        enough = max(self._repeats, FEWEST * count)
        return len(calm) >= enough and all(is_known([run.rates[f] for run in calm]) for f in FIGURES)


def _larger(first: float | None, second: float | None) -> Any:
    return max((each for each in (first, second) if each is not None), default=None)


def _seen(run: dict[str, Any], around: Sequence[Sample]) -> RunSeen:
    """Return a run as the measuring process tells it: seconds of its `prefill` and of `decode`, `steps`, seconds that
    `threads` threads `waited` in both, and in `wall` seconds those of CPUs that were `busy`, its `own` and `stolen`."""
    seconds, waited = {"prefill": run["prefill"], "decode": run["decode"]}, run["waited"]
    return RunSeen(
        rates={"prefill": 1 / run["prefill"], "decode": run["steps"] / run["decode"]},
        waited=None if waited is None else {f: waited[f] / (run["threads"] * seconds[f]) for f in FIGURES},
        seconds=run["wall"],
        programs_s=run["busy"] - run["own"] - run["stolen"],
        stolen_s=run["stolen"],
        around=median_sample(around),
    )
