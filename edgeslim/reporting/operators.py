"""Where a profile's time went, by operator."""

from dataclasses import dataclass

from edgeslim.reporting.measurements import Measurement

_MOST = 12  # operators shown; what the others take is summed up


@dataclass(frozen=True, kw_only=True)
class OperatorTime:
    """`calls` of one operator in one `phase`, the `ms` they took, and the `share` of that phase's time."""

    op: str
    phase: str
    calls: int
    ms: float
    share: float


@dataclass(frozen=True, kw_only=True)
class Operators:
    """The operators of one measurement, phase by phase, the dearest first."""

    measurement: Measurement
    entries: tuple[OperatorTime, ...]


def operators(measurement: Measurement) -> Operators | None:
    """Return what the profile says of its operators; None where it was not asked for."""
    given = measurement.values.get("operators")
    found = [each for each in given if isinstance(each, dict)] if isinstance(given, list) else []
    phases = dict.fromkeys(str(each.get("phase", "")) for each in found)
    entries = [entry for phase in phases for entry in _phase(phase, found)]
    return Operators(measurement=measurement, entries=tuple(entries)) if entries else None


def _phase(phase: str, found: list[dict[str, object]]) -> list[OperatorTime]:
    rows = [(str(each.get("op")), _count(each), _ms(each)) for each in found if str(each.get("phase", "")) == phase]
    rows.sort(key=lambda row: -row[2])
    total = sum(ms for _, _, ms in rows) or 1.0
    shown, rest = rows[:_MOST], rows[_MOST:]
    if rest:
        shown.append((f"{len(rest)} others", sum(calls for _, calls, _ in rest), sum(ms for _, _, ms in rest)))
    return [OperatorTime(op=op, phase=phase, calls=calls, ms=ms, share=ms / total) for op, calls, ms in shown]


def _count(entry: dict[str, object]) -> int:
    calls = entry.get("calls", 0)
    return calls if isinstance(calls, int) else 0


def _ms(entry: dict[str, object]) -> float:
    ms = entry.get("ms", 0.0)
    return float(ms) if isinstance(ms, int | float) else 0.0
