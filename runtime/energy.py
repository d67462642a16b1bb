"""Energy and temperature from the kernel's own counters. What cannot be read is None, never a guess.

RAPL (Running Average Power Limit): each CPU package has a counter of microjoules that grows and wraps around at
``max_energy_range_uj``. Source: Linux, Documentation/power/powercap/powercap.rst.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_POWERCAP = Path("/sys/class/powercap")
_SYS_CLASS = Path("/sys/class")
_CPU_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu", "x86_pkg_temp", "soc")


@dataclass(frozen=True, kw_only=True)
class RaplDomain:
    """One package's counter: `energy` is its file, `wrap_uj` the value it never reaches."""

    energy: Path
    wrap_uj: int

    def read_uj(self) -> int:
        """Return the counter in microjoules."""
        return int(self.energy.read_text(encoding="ascii"))


def rapl_packages(powercap: Path = _POWERCAP) -> list[RaplDomain]:
    """Return the readable CPU package domains, none where there are none or one cannot be read (root only).

    ``psys`` and the domains inside a package are left out: they count the same energy again.
    """
    domains: list[RaplDomain] = []
    for folder in sorted(powercap.glob("intel-rapl:*")):
        if folder.name.count(":") != 1:
            continue
        try:
            if not (folder / "name").read_text(encoding="ascii").startswith("package"):
                continue
            wrap = int((folder / "max_energy_range_uj").read_text(encoding="ascii")) + 1
            domain = RaplDomain(energy=folder / "energy_uj", wrap_uj=wrap)
            domain.read_uj()
        except (OSError, ValueError):
            return []  # the sum of some packages is not the machine's energy
        domains.append(domain)
    return domains


class EnergyMeter:
    """Sums the energy of chosen stretches of time, each shorter than one wrap (minutes at full power)."""

    def __init__(self, domains: list[RaplDomain] | None = None) -> None:
        self._domains = rapl_packages() if domains is None else domains
        self._from: list[int] = []
        self._total_uj = 0

    def start(self) -> None:
        """Begin a stretch."""
        self._from = [d.read_uj() for d in self._domains]

    def stop(self) -> None:
        """End the stretch begun last."""
        for domain, before in zip(self._domains, self._from, strict=True):
            self._total_uj += (domain.read_uj() - before) % domain.wrap_uj

    def joules(self) -> float | None:
        """Return the joules of all stretches, of everything on the CPU packages; None where nothing can be read."""
        return self._total_uj * 1e-6 if self._domains else None


def cpu_temperature(sys_class: Path = _SYS_CLASS) -> float | None:
    """Return the hottest CPU sensor in degrees Celsius; None where there is none."""
    readings = [*_hwmon(sys_class), *_thermal_zones(sys_class)]
    return max(readings, default=None)


def _hwmon(sys_class: Path) -> Iterator[float]:
    for folder in sys_class.glob("hwmon/hwmon*"):
        if _is_cpu(folder / "name"):
            yield from _celsius(folder.glob("temp*_input"))


def _thermal_zones(sys_class: Path) -> Iterator[float]:
    for folder in sys_class.glob("thermal/thermal_zone*"):
        if _is_cpu(folder / "type"):
            yield from _celsius([folder / "temp"])


def _is_cpu(label: Path) -> bool:
    try:
        return label.read_text(encoding="utf-8").strip().lower().startswith(_CPU_SENSORS)
    except OSError:
        return False


def _celsius(files: Iterator[Path] | list[Path]) -> Iterator[float]:
    for file in files:
        try:
            yield int(file.read_text(encoding="ascii")) / 1000
        except (OSError, ValueError):
            continue  # a sensor that is switched off
