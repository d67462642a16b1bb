"""What the sensors of a machine said while a bundle was measured.

`find_sensors` (see `edgeslim.devices.sensor_plan`) says which files to read. Whoever measures reads them every 100 ms
and notes when each phase began and ended; `read_sensors` makes joules, watts, degrees and throttling of both. What no
sensor gives is None: not measured.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgeslim.devices import android, jetson, raspberry_pi
from edgeslim.devices.sensor_plan import Counter, Rail, SensorPlan, find_sensors

__all__ = ["Readings", "SensorPlan", "Series", "find_sensors", "read_sensors"]

TEGRASTATS = "tegrastats"
"""What stands for a path in samples that are lines of tegrastats."""

_CLOCK_FELL = 0.9


@dataclass(frozen=True, kw_only=True)
class Readings:
    """What the sensors said while a bundle was measured.

    `joules` and `watts` over the decode phases, of what `energy_source` covers; `temperature_c` the hottest reading of
    all phases; `clock_mhz` the mean of the fastest core while decoding. `throttling` is a sentence, ``none`` where
    something would have told and did not, None where nothing tells.
    """

    energy_source: str | None = None
    joules: float | None = None
    watts: float | None = None
    temperature_c: float | None = None
    clock_mhz: float | None = None
    throttling: str | None = None
    governor: str | None = None
    power_mode: str | None = None
    notes: tuple[str, ...] = ()

    def profile_keys(self, tokens: int) -> dict[str, Any]:
        """Return the keys of a profile of `tokens` decoded tokens that were read; what was not is left out."""
        keys = {
            "energy_j_per_token": None if self.joules is None else self.joules / tokens,
            "energy_source": self.energy_source,
            "watts": self.watts,
            "temperature_c": self.temperature_c,
            "clock_mhz": self.clock_mhz,
            "throttling": self.throttling,
            "governor": self.governor,
            "power_mode": self.power_mode,
        }
        return {key: value for key, value in keys.items() if value is not None}


@dataclass(frozen=True)
class Series:
    """Numbers of one file over time."""

    at: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def value(self, seconds: float) -> float:
        """Return the number at `seconds`, between two readings in a straight line, beyond them the nearest."""
        right = bisect_left(self.at, seconds)
        if right == 0:
            return self.values[0]
        if right == len(self.at):
            return self.values[-1]
        before, after = self.at[right - 1], self.at[right]
        share = (seconds - before) / (after - before) if after > before else 0.0
        return self.values[right - 1] + share * (self.values[right] - self.values[right - 1])

    def integral(self, begin: float, end: float) -> float:
        """Return the area under the numbers from `begin` to `end`."""
        at = [begin, *(t for t in self.at if begin < t < end), end]
        heights = [self.value(t) for t in at]
        return sum((b - a) * (x + y) / 2 for a, b, x, y in zip(at, at[1:], heights, heights[1:], strict=False))

    def within(self, begin: float, end: float) -> list[float]:
        """Return the readings taken from `begin` to `end`, the nearest one where there is none."""
        found = [v for t, v in zip(self.at, self.values, strict=True) if begin <= t <= end]
        return found or [self.value((begin + end) / 2)]


def read_sensors(
    plan: SensorPlan, phases: Sequence[Mapping[str, Any]], samples: Sequence[Mapping[str, Any]]
) -> Readings:
    """Return what `samples` ({seconds, path, text}) say of the `phases` ({phase, run, begin, end}, same clock).

    Phases named ``decode`` count for energy. All that are given count: leave out those of warm-up runs.
    """
    series = _series(samples)
    decode = [(float(p["begin"]), float(p["end"])) for p in phases if p["phase"] == "decode"]
    every = [(float(p["begin"]), float(p["end"])) for p in phases]
    seconds = sum(end - begin for begin, end in decode)
    joules = _joules(plan, series, decode)
    return Readings(
        energy_source=plan.energy_source if joules is not None else None,
        joules=joules,
        watts=joules / seconds if joules is not None and seconds > 0 else None,
        temperature_c=_hottest(plan, series, every),
        clock_mhz=_clock(plan, series, decode),
        throttling=_throttling(plan, series, every, decode),
        governor=plan.governor,
        power_mode=plan.power_mode,
        notes=plan.unmeasured,
    )


def _series(samples: Sequence[Mapping[str, Any]]) -> dict[str, Series]:
    found: dict[str, Series] = {}
    for sample in samples:
        for name, number in _numbers(str(sample["path"]), str(sample["text"])):
            series = found.setdefault(name, Series())
            series.at.append(float(sample["seconds"]))
            series.values.append(number)
    return found


def _numbers(path: str, text: str) -> Iterator[tuple[str, float]]:
    """Yield the numbers that a reading holds, by the path or, in a line of tegrastats, by what they are."""
    if path != TEGRASTATS:
        if (number := _parse(path, text)) is not None:
            yield path, number
        return
    line = jetson.parse_tegrastats(text)
    if line.total_mw is not None:
        yield _TEGRA_POWER, line.total_mw * 1e-3
    if line.temperatures_c:
        yield _TEGRA_HEAT, max(line.temperatures_c.values())
    if line.cpu_mhz:
        yield _TEGRA_CLOCK, max(line.cpu_mhz) * 1e3


_TEGRA_POWER, _TEGRA_HEAT, _TEGRA_CLOCK = (f"{TEGRASTATS} {what}" for what in ("watts", "degrees", "kHz"))


def _parse(path: str, text: str) -> float | None:
    """Return the number that a sensor's file holds; None where it is switched off."""
    if path == raspberry_pi.PATH:
        bits = raspberry_pi.parse_get_throttled(text)
        return None if bits is None else float(bits)
    try:
        return float(text.strip("\0 \n\t"))
    except ValueError:
        return None


def _joules(plan: SensorPlan, series: Mapping[str, Series], spans: Sequence[tuple[float, float]]) -> float | None:
    if not spans or plan.energy_source is None:
        return None
    if plan.energy_source == TEGRASTATS:
        power = series.get(_TEGRA_POWER)
        return None if power is None else sum(power.integral(begin, end) for begin, end in spans)
    if plan.counters:
        parts = [_counted(counter, series.get(counter.path), spans) for counter in plan.counters]
    else:
        powers = [_power(rail, series) for rail in plan.rails]
        parts = [None if p is None else sum(p.integral(begin, end) for begin, end in spans) for p in powers]
    known = [part for part in parts if part is not None]
    return sum(known) if parts and len(known) == len(parts) else None


def _counted(counter: Counter, series: Series | None, spans: Sequence[tuple[float, float]]) -> float | None:
    """Return the joules of a counter over `spans`, its wraps undone."""
    if series is None or len(series.at) < 2:
        return None
    straight, turns = Series(), 0
    for at, value in zip(series.at, series.values, strict=True):
        if straight.values and value + turns * counter.wrap < straight.values[-1]:
            turns += 1
        straight.at.append(at)
        straight.values.append(value + turns * counter.wrap)
    return sum(straight.value(end) - straight.value(begin) for begin, end in spans) * 1e-6


def _power(rail: Rail, series: Mapping[str, Series]) -> Series | None:
    """Return watts over time of a rail, at the times of its current's or power's readings."""
    if rail.power is not None:
        power = series.get(rail.power)
        return None if power is None else Series(power.at, [value * rail.power_unit for value in power.values])
    current, voltage = series.get(rail.current or ""), series.get(rail.voltage or "")
    if current is None or voltage is None:
        return None
    watts = []
    for at, value in zip(current.at, current.values, strict=True):
        amperes = value * rail.current_unit if rail.current_unit else android.amperes(value)
        found = voltage.value(at)
        watts.append(amperes * (found * rail.voltage_unit if rail.voltage_unit else android.volts(found)))
    return Series(current.at, watts)


def _hottest(plan: SensorPlan, series: Mapping[str, Series], spans: Sequence[tuple[float, float]]) -> float | None:
    """Return the highest temperature in degrees; files give thousandths, on some phones whole degrees."""
    found = [
        value / (1000 if abs(value) >= 1000 else 1)
        for path in (*plan.temperatures, _TEGRA_HEAT)
        if path in series
        for begin, end in spans
        for value in series[path].within(begin, end)
    ]
    sane = [value for value in found if -50 < value < 200]
    return max(sane, default=None)


def _clock(plan: SensorPlan, series: Mapping[str, Series], spans: Sequence[tuple[float, float]]) -> float | None:
    """Return the mean clock in MHz of the clock domain that ran fastest during `spans`."""
    means = []
    for path in (*plan.clocks, _TEGRA_CLOCK):
        if path in series and spans:
            values = [value for begin, end in spans for value in series[path].within(begin, end)]
            means.append(sum(values) / len(values))
    return max(means) / 1e3 if means else None


def _throttling(
    plan: SensorPlan,
    series: Mapping[str, Series],
    every: Sequence[tuple[float, float]],
    decode: Sequence[tuple[float, float]],
) -> str | None:
    """Return what slowed the processor down, ``none`` where a sensor would have told, None where there is none."""
    if not every:
        return None
    begin, end = min(b for b, _ in every), max(e for _, e in every)
    said, told = [], False
    events = 0.0
    for path in plan.throttle_counters:
        if path in series:
            told = True
            events += max(0.0, series[path].value(end) - series[path].value(begin))
    if events:
        said.append(f"{events:.0f} throttle events")
    if plan.get_throttled in series and plan.get_throttled is not None:
        told = True
        bits = 0
        for value in series[plan.get_throttled].within(begin, end):
            bits |= int(value) & 0xF
        said += raspberry_pi.describe_throttled(bits)
    for path in plan.cooling:
        if path in series:
            told = True
            if (state := max(series[path].within(begin, end))) > 0:
                said.append(f"cooling state {state:.0f} of {path.split('/')[-2]}")
    for path in plan.limits:
        if path in series:
            told = True
            values = series[path].within(begin, end)
            if min(values) < max(values[0], series[path].values[0]):
                said.append(f"clock limited to {min(values) / 1e3:.0f} MHz")
    if (clock := _clock(plan, series, decode)) is not None and plan.max_mhz and plan.governor == "performance":
        told = True
        if clock < _CLOCK_FELL * plan.max_mhz:
            said.append(f"clock {clock:.0f} of {plan.max_mhz:.0f} MHz")
    if said:
        return "; ".join(dict.fromkeys(said))
    return "none" if told else None
