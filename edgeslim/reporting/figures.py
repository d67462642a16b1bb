"""The figures of a report: which, in what order, how they read. Every form of the report shows these."""

from collections.abc import Callable
from dataclasses import dataclass

from edgeslim.reporting.measurements import Measurement

NOT_MEASURED = "not measured"
NOT_ESTIMATED = "not estimated"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number of a profile: its `key`, what it is called, its `unit` and how it is printed.

    `p90` is the key of its 90th percentile, where the profile has one.
    """

    key: str
    label: str
    unit: str
    form: Callable[[float], str]
    p90: str | None = None

    @property
    def heading(self) -> str:
        """What heads a column of it: the label and the unit."""
        return f"{self.label}, {self.unit}" if self.unit else self.label

    def show(self, measurement: Measurement) -> str:
        """Return the number with its unit and what stands beside it, or that there is none."""
        if measurement.number(self.key) is None:
            return NOT_MEASURED if measurement.measured else NOT_ESTIMATED
        beside = self.beside(measurement)
        return f"{self.text(measurement)}{self.unit and ' ' + self.unit}{beside and f' ({beside})'}"

    def text(self, measurement: Measurement) -> str:
        """Return the number alone, as text; empty where there is none."""
        value = measurement.number(self.key)
        return "" if value is None else self.form(value)

    def beside(self, measurement: Measurement) -> str:
        """Return what qualifies the number: the 90th percentile, or the range that an estimate gives."""
        if not measurement.measured:
            return self._range(measurement)
        p90 = measurement.number(self.p90) if self.p90 else None
        return "" if p90 is None else f"p90 {self.form(p90)}"

    def _range(self, measurement: Measurement) -> str:
        """Return the range of an estimate, by its own ends or by its error band; empty where it has neither."""
        value, band = measurement.number(self.key), measurement.number("error_band")
        stem = self.key.removesuffix("_p50")
        low, high = measurement.number(f"{stem}_low"), measurement.number(f"{stem}_high")
        if (low is None or high is None) and value is not None and band is not None and self.key in _BANDED:
            low, high = value / (1 + band), value * (1 + band)
        return "" if low is None or high is None else f"{self.form(low)} to {self.form(high)}"


def significant(value: float) -> str:
    """Return `value` with three significant digits and thousands parted, never in powers of ten."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    digits = next((digits for digits, least in ((1, 10), (2, 1), (3, 0.1), (4, 0.01)) if abs(value) >= least), 5)
    return f"{value:.{digits}f}"


def megabytes(value: float) -> str:
    """Return `value` bytes in MB."""
    return significant(value / 1e6)


PERPLEXITY = Figure(key="perplexity", label="perplexity", unit="", form=lambda value: f"{value:.2f}")
WEIGHTS = Figure(key="weight_bytes", label="weights", unit="MB", form=megabytes)
LOAD = Figure(key="load_s", label="load", unit="s", form=significant)
FIRST = Figure(key="ttft_ms_p50", label="first token", unit="ms", form=significant, p90="ttft_ms_p90")
PREFILL = Figure(key="prefill_tok_s_p50", label="prefill", unit="tok/s", form=significant)
DECODE = Figure(key="decode_tok_s_p50", label="decode", unit="tok/s", form=significant)
TOKEN = Figure(key="decode_ms_p50", label="token latency", unit="ms", form=significant, p90="decode_ms_p90")
PEAK = Figure(key="peak_rss_bytes", label="peak memory", unit="MB", form=megabytes)
ENERGY = Figure(key="energy_j_per_token", label="energy a token", unit="J", form=significant)
TEMPERATURE = Figure(key="temperature_c", label="temperature", unit="°C", form=significant)

TABLE = (WEIGHTS, PERPLEXITY, LOAD, FIRST, PREFILL, DECODE, TOKEN, PEAK, ENERGY, TEMPERATURE)
"""The columns of the table of all measurements."""

PHASES = (LOAD, FIRST, PREFILL, DECODE)
"""The phases, each drawn apart: their units differ."""

FURTHER = (
    Figure(key="bundle_bytes", label="bundle on disk", unit="MB", form=megabytes),
    Figure(key="cold_load_s", label="load, files not in memory", unit="s", form=significant),
    Figure(key="cold_ttft_ms", label="first token of the first run", unit="ms", form=significant),
    Figure(key="cold_decode_ms", label="a decoded token of the first run", unit="ms", form=significant),
    Figure(key="base_rss_bytes", label="memory before the load", unit="MB", form=megabytes),
    Figure(key="pss_bytes", label="memory after the runs, shared pages in parts (PSS)", unit="MB", form=megabytes),
    Figure(key="device_memory_bytes", label="peak memory of the accelerator", unit="MB", form=megabytes),
    Figure(key="memory_available_bytes", label="memory that the device has for it", unit="MB", form=megabytes),
    Figure(key="watts", label="power", unit="W", form=significant),
    Figure(key="clock_mhz", label="clock", unit="MHz", form=significant),
    Figure(key="others_cores", label="taken by other programs", unit="cores", form=significant),
    Figure(key="stolen_cores", label="taken by the host", unit="cores", form=significant),
)
"""What is shown for each measurement apart, where it is there."""

_BANDED = ("ttft_ms_p50", "prefill_tok_s_p50", "decode_tok_s_p50", "decode_ms_p50", "peak_rss_bytes")

_SETTINGS = (
    ("engine", "engine"),
    ("provider", "provider"),
    ("isa", "instructions"),
    ("threads", "threads"),
    ("transport", "transport"),
    ("soc", "chip"),
    ("governor", "governor"),
    ("power_mode", "power mode"),
    ("throttling", "throttling"),
    ("runs_on", "estimated for"),
    ("basis", "estimated by"),
    ("energy_source", "energy read from"),
    ("repeats", "repeats"),
    ("warmup", "warm-up runs"),
)


def settings(measurement: Measurement) -> list[tuple[str, str]]:
    """Return name and value of each setting that the profile records."""
    values = measurement.values
    rows = [(label, str(values[key])) for key, label in _SETTINGS if values.get(key) not in (None, "")]
    if isinstance(nodes := values.get("nodes_by_provider"), dict):
        rows.append(("nodes", ", ".join(f"{name} {count}" for name, count in nodes.items())))
    for key, label in (("throttled", "throttled"), ("fits", "fits into the device's memory")):
        if values.get(key) is not None:
            rows.append((label, "yes" if values[key] else "no"))
    return rows


def warnings(measurement: Measurement) -> list[str]:
    """Return what the profile warns of, or the estimate notes."""
    found = [measurement.values.get(key) for key in ("warnings", "notes")]
    return [str(each) for group in found if isinstance(group, list | tuple) for each in group]
