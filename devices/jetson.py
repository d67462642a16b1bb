"""What a Jetson says of itself: lines of tegrastats, the power mode of nvpmodel, and which rails make the whole.

Formats: NVIDIA Jetson Linux Developer Guide, "Tegrastats Utility" and "Power Monitor", of L4T 28, 32 (JetPack 4), 35
(JetPack 5), 36 (JetPack 6) and 38 (JetPack 7, Thor).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

_TOTALS = ("VIN", "VDD_IN", "POM_5V_IN")
"""Rails that feed the whole module: Thor; TX2, Xavier NX, Orin Nano and NX; Nano."""

_WITHIN = ("VDDQ_VDD2_1V8AO",)
"""Rails fed by another one that is measured too (AGX Orin: VIN_SYS_5V0)."""


@dataclass(frozen=True, kw_only=True)
class Tegrastats:
    """One line of tegrastats. `power_mw` by rail, `temperatures_c` by sensor, `cpu_mhz` of the cores that are on; None
    where a line does not say."""

    ram_used_mb: int | None = None
    ram_total_mb: int | None = None
    gpu_load: int | None = None
    gpu_mhz: int | None = None
    memory_mhz: int | None = None
    cpu_mhz: tuple[int, ...] = ()
    power_mw: Mapping[str, float] = field(default_factory=dict)
    temperatures_c: Mapping[str, float] = field(default_factory=dict)

    @property
    def total_mw(self) -> float | None:
        """What the whole module draws, None where no rail is given."""
        return whole(self.power_mw)


def parse_tegrastats(line: str) -> Tegrastats:
    """Return what a line of tegrastats says; what is not there is None or empty.

    Rails are ``NAME 1234mW/1200mW`` (JetPack 5 and later) or ``NAME 1234/1200`` (before): now, and the average.
    """
    ram = re.search(r"\bRAM (\d+)/(\d+)MB", line)
    gpu = re.search(r"\bGR3D(?:_FREQ)? (\d+)%(?:@\[?(\d+))?", line)
    memory = re.search(r"\bEMC(?:_FREQ)? \d+%@(\d+)", line)
    cpus = re.search(r"\bCPU \[([^\]]*)\](?:@(\d+))?", line)
    return Tegrastats(
        ram_used_mb=int(ram[1]) if ram else None,
        ram_total_mb=int(ram[2]) if ram else None,
        gpu_load=int(gpu[1]) if gpu else None,
        gpu_mhz=int(gpu[2]) if gpu and gpu[2] else None,
        memory_mhz=int(memory[1]) if memory else None,
        cpu_mhz=_clocks(cpus[1], cpus[2]) if cpus else (),
        power_mw={
            name: float(now)
            for name, now in re.findall(r"\b([A-Z][A-Z0-9_]*) (-?\d+)(?:mW)?/-?\d+(?:mW)?(?= |$)", line)
        },
        temperatures_c=_temperatures(line),
    )


def _clocks(cores: str, shared: str | None) -> tuple[int, ...]:
    """Return MHz of each core that is on: ``5%@1420,off`` or, all at one clock, ``5%,off]@1420``."""
    each = re.findall(r"%@(\d+)", cores)
    if each or shared is None:
        return tuple(int(mhz) for mhz in each)
    return (int(shared),) * cores.count("%")


def _temperatures(line: str) -> dict[str, float]:
    """Return degrees by sensor, its name in lower case; a sensor that is off reads about -256."""
    found = re.findall(r"\b([A-Za-z][\w-]*)@(-?\d+(?:\.\d+)?)C\b", line)
    return {name.lower(): float(value) for name, value in found if float(value) > -100 and name != "PMIC"}


def whole(power: Mapping[str, float]) -> float | None:
    """Return what the module draws of its rails' powers: the rail that feeds all, else the sum of those that feed one
    another not; None where there is none."""
    for name in _TOTALS:
        if name in power:
            return power[name]
    parts = [value for name, value in power.items() if name not in _WITHIN]
    return sum(parts) if parts else None


def whole_rails(names: set[str]) -> set[str]:
    """Return those of the rails `names` whose sum is what the module draws."""
    total = next((name for name in _TOTALS if name in names), None)
    return {total} if total is not None else names - set(_WITHIN)


def parse_nvpmodel(text: str) -> str | None:
    """Return the power mode of ``nvpmodel -q``, such as ``MAXN`` or ``25W``; None where it does not say."""
    found = re.search(r"^NV Power Mode:\s*(\S+)", text, re.MULTILINE)
    return found[1] if found else None


def parse_nvpmodel_status(text: str, conf: str = "") -> str | None:
    """Return the power mode in /var/lib/nvpmodel/status (``pmode:0002``) by its name in `conf`, the text of
    /etc/nvpmodel.conf (``< POWER_MODEL ID=2 NAME=MAXN >``), else as ``mode 2``; None without one."""
    found = re.search(r"\bpmode:(\d+)", text)
    if found is None:
        return None
    number = int(found[1])
    names: dict[int, str] = {
        int(n): name for n, name in re.findall(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+?)\s*>", conf)
    }
    return names.get(number, f"mode {number}")
