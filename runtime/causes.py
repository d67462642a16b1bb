"""Why profiles of one bundle differ: what was measured between the runs of the slowest and of the fastest.

A cause is named where it was measured in both, differs by at least `MATTERS` of the time, and goes with the figure from
run to run (Spearman's rank correlation over all runs of all profiles). Nothing is named that was not measured.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from edgeslim.runtime.settling import RunSeen
from edgeslim.runtime.steadiness import rank_correlation

MATTERS = 0.02
"""Share of the time below which a difference explains nothing."""

GOES_WITH = 0.2
"""Rank correlation below which a condition and a figure have nothing to do with each other."""

_ENOUGH = 12  # runs from which a correlation says something


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What the machine was like during the counted runs of one profile; None where nothing measures it.

    The first five are medians of the samples between runs (`edgeslim.runtime.conditions.Sample`); `waited` is, for each
    figure, the median share of its time for which threads were ready without a CPU; `programs` and `stolen` of `cores`
    are CPUs that other programs and a hypervisor's other machines took; `throttling` as in the profile; `virtual` where
    there is a hypervisor; `left_out` counts runs that the profile's figures leave out.
    """

    core_gb_per_s: float
    products_g_per_s: float | None
    memory_gb_per_s: float | None
    clock_mhz: float | None
    temperature_c: float | None
    waited: dict[str, float] | None
    programs: float
    stolen: float
    cores: int
    throttling: str | None
    virtual: bool = False
    left_out: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return all of it as a JSON object."""
        return asdict(self)


def explain(figure: str, slow: Conditions, fast: Conditions, lost: float, runs: Sequence[RunSeen] = ()) -> str:
    """Return what the slower of two profiles had that the faster had not; `lost` is the share of `figure` that it lost,
    `runs` those of all profiles."""
    found = sorted(_found(figure, slow, fast, runs), reverse=True)
    if not found:
        return _throughout(slow, fast) or _unexplained(figure, slow, fast)
    said = [text for share, text in found if share >= found[0][0] / 3]
    if all(share < lost / 4 for share, _ in found):
        said.append("which explains a part of it only")
    return "; ".join(said)


def _found(figure: str, slow: Conditions, fast: Conditions, runs: Sequence[RunSeen]) -> list[tuple[float, str]]:
    """Return each cause, after the share of the time that it may have cost."""
    found = []
    if slow.throttling not in (None, "none", fast.throttling):
        found.append((1.0, f"throttled in the slowest: {slow.throttling}{_heat(slow)}"))
    rates = [run.rates[figure] for run in runs]
    for kind in _KINDS:
        share = kind.share(figure, slow, fast)
        if share is None or share < MATTERS:
            continue
        together = _correlation(rates, [kind.of_run(figure, run) for run in runs])
        if together is not None and together * kind.helps < GOES_WITH:
            continue
        seen = "" if together is None else f" [rank correlation {together:.2f} over {len(runs)} runs]"
        found.append((share, kind.said(figure, slow, fast) + seen))
    return found


def _correlation(rates: Sequence[float], values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return rank_correlation(rates, known) if len(known) == len(rates) >= _ENOUGH else None


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """A kind of cause: the share of time it may have cost a figure (None: not measured), its sentence, its value in one
    run, and whether more of it is faster (1) or slower (-1)."""

    share: Callable[[str, Conditions, Conditions], float | None]
    said: Callable[[str, Conditions, Conditions], str]
    of_run: Callable[[str, RunSeen], float | None]
    helps: int


def _speed(name: str, said: Callable[[Conditions, Conditions, float], str]) -> _Kind:
    """Return the kind of a speed among the samples."""

    def share(figure: str, slow: Conditions, fast: Conditions) -> float | None:
        low, high = getattr(slow, name), getattr(fast, name)
        return None if low is None or high is None else 1 - low / high

    return _Kind(
        share=share,
        said=lambda figure, slow, fast: said(slow, fast, share(figure, slow, fast) or 0.0),
        of_run=lambda figure, run: getattr(run.around, name),
        helps=1,
    )


def _waited(figure: str, measured: Conditions | RunSeen) -> float | None:
    return None if measured.waited is None else measured.waited[figure]


def _share_waited(figure: str, slow: Conditions, fast: Conditions) -> float | None:
    low, high = _waited(figure, slow), _waited(figure, fast)
    return None if low is None or high is None else low - high


def _say_waited(figure: str, slow: Conditions, fast: Conditions) -> str:
    low, high = _waited(figure, slow) or 0.0, _waited(figure, fast) or 0.0
    return f"its threads waited for a CPU {low:.0%} of the time in the slowest and {high:.0%} in the fastest"


def _say_programs(slow: Conditions, fast: Conditions) -> str:
    taken = f"{slow.programs:.2f} of {slow.cores} cores in the slowest and {fast.programs:.2f} in the fastest"
    return f"other programs used {taken}"


def _say_stolen(slow: Conditions, fast: Conditions) -> str:
    shares = f"{slow.stolen / slow.cores:.0%} of the CPUs in the slowest and {fast.stolen / fast.cores:.0%}"
    return f"the hypervisor withheld {shares} in the fastest (steal time)"


def _say_core(slow: Conditions, fast: Conditions, share: float) -> str:
    rates = f"{slow.core_gb_per_s:.2f} GB/s hashed in the slowest, {fast.core_gb_per_s:.2f} in the fastest"
    return f"a core ran {share:.0%} slower ({rates}{_heat(slow)})"


def _say_products(slow: Conditions, fast: Conditions, share: float) -> str:
    rates = f"{slow.products_g_per_s:.0f} G/s in the slowest, {fast.products_g_per_s:.0f} in the fastest"
    alone = 1 - slow.core_gb_per_s / fast.core_gb_per_s
    shared = "; one core alone hashed as fast: not its clock, the cores are shared" if alone < MATTERS else ""
    return f"all threads at once multiplied {share:.0%} slower in their caches ({rates}{shared})"


def _say_memory(slow: Conditions, fast: Conditions, share: float) -> str:
    rates = f"{slow.memory_gb_per_s:.1f} GB/s in the slowest, {fast.memory_gb_per_s:.1f} in the fastest"
    return f"memory was read {share:.0%} slower ({rates})"


def _say_clock(slow: Conditions, fast: Conditions, share: float) -> str:
    clocks = f"{slow.clock_mhz:.0f} MHz in the slowest, {fast.clock_mhz:.0f} in the fastest"
    return f"the clock was {share:.0%} lower ({clocks}{_heat(slow)})"


_KINDS = (
    _Kind(share=_share_waited, said=_say_waited, of_run=lambda figure, run: _waited(figure, run), helps=-1),
    _Kind(
        share=lambda figure, slow, fast: (slow.programs - fast.programs) / slow.cores,
        said=lambda figure, slow, fast: _say_programs(slow, fast),
        of_run=lambda figure, run: run.programs_s / run.seconds,
        helps=-1,
    ),
    _Kind(
        share=lambda figure, slow, fast: (slow.stolen - fast.stolen) / slow.cores,
        said=lambda figure, slow, fast: _say_stolen(slow, fast),
        of_run=lambda figure, run: run.stolen_s / run.seconds,
        helps=-1,
    ),
    _speed("clock_mhz", _say_clock),
    _speed("core_gb_per_s", _say_core),
    _speed("products_g_per_s", _say_products),
    _speed("memory_gb_per_s", _say_memory),
)


def _throughout(slow: Conditions, fast: Conditions) -> str | None:
    """Return what disturbed the slower and the faster profile alike: what others take comes and goes within either."""
    said = []
    if min(slow.programs, fast.programs) >= MATTERS * slow.cores:
        said.append(_say_programs(slow, fast))
    if min(slow.stolen, fast.stolen) >= MATTERS * slow.cores:
        said.append(_say_stolen(slow, fast))
    return f"the machine was busy throughout: {'; '.join(said)}" if said else None


def _heat(conditions: Conditions) -> str:
    return "" if conditions.temperature_c is None else f", {conditions.temperature_c:.0f} °C"


def _unexplained(figure: str, slow: Conditions, fast: Conditions) -> str:
    """Return what was measured and did not differ enough, and what was not measured."""
    readings = (
        ("threads waiting for a CPU", _waited(figure, slow), _waited(figure, fast), "{:.1%}"),
        ("clock", slow.clock_mhz, fast.clock_mhz, "{:.0f} MHz"),
        ("one core", slow.core_gb_per_s, fast.core_gb_per_s, "{:.2f} GB/s"),
        ("products on all threads", slow.products_g_per_s, fast.products_g_per_s, "{:.0f} G/s"),
        ("memory", slow.memory_gb_per_s, fast.memory_gb_per_s, "{:.1f} GB/s"),
        ("temperature", slow.temperature_c, fast.temperature_c, "{:.0f} °C"),
    )
    same, missing = [_say_programs(slow, fast), f"steal {slow.stolen:.2f} and {fast.stolen:.2f}"], []
    for name, low, high, form in readings:
        if low is None or high is None:
            missing.append(name)
        else:
            same.append(f"{name} {form.format(low)} and {form.format(high)}")
    not_measured = f"; not measured: {', '.join(missing)}" if missing else ""
    host = "; a virtual machine: what others on its host take of shared cores and caches, no counter here tells"
    return f"cause not found: {', '.join(same)}{not_measured}{host * slow.virtual}"
