"""What the machine is, and whether anything else keeps it busy."""

import os
import platform
import re
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import psutil

_CPUINFO = Path("/proc/cpuinfo")
_CPU = Path("/sys/devices/system/cpu")
# The first name whose flags are all there is the machine's: the most useful for 8-bit products stands first.
_ISA = (
    ("avx512-vnni", {"avx512f", "avx512_vnni"}),
    ("avx512", {"avx512f"}),
    ("avx2-vnni", {"avx2", "avx_vnni"}),
    ("avx2", {"avx2"}),
    ("neon-i8mm", {"asimd", "i8mm"}),
    ("neon-dotprod", {"asimd", "asimddp"}),
    ("neon", {"asimd"}),
)
_BUSY = (
    "user",
    "nice",
    "system",
    "irq",
    "softirq",
    "steal",
)  # of psutil's CPU times; the rest is idle or counted within
_TOO_SHORT = 0.2  # seconds: the kernel counts in ticks of 10 ms, several CPUs' make a short reading wrong
_OTHERS_LIMIT = 0.15  # cores: onnxruntime's spinning threads lose far more time than others take


def processor(cpuinfo: Path = _CPUINFO) -> str:
    """Return the processor's name, e.g. ``Intel(R) Xeon(R) Processor``; the architecture's if it has none."""
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.is_file() else ""
    found = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(\S.*)$", text, re.MULTILINE)
    return found[1].strip() if found else (platform.processor() or platform.machine())


def describe(cpuinfo: Path = _CPUINFO) -> str:
    """Return e.g. ``Intel(R) Xeon(R) Processor, 2 cores``: the processor and the logical cores this process may use."""
    return f"{processor(cpuinfo)}, {len(usable_cpus())} cores"


def isa(cpuinfo: Path = _CPUINFO) -> str:
    """Return the instruction set that kernels are chosen by, e.g. ``avx512-vnni``; the bare architecture if unknown."""
    flags = _flags(cpuinfo)
    return next((name for name, needed in _ISA if needed <= flags), platform.machine().lower())


def is_virtual(cpuinfo: Path = _CPUINFO) -> bool:
    """Return whether the processor says that a hypervisor runs this machine (x86; others do not say)."""
    return "hypervisor" in _flags(cpuinfo)


def _flags(cpuinfo: Path) -> set[str]:
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.is_file() else ""
    found = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)
    return set(found[1].split()) if found else set()


def governor(cpu: Path = _CPU) -> str | None:
    """Return what sets the first CPU's clock, e.g. ``schedutil``; None where the kernel does not say."""
    try:
        return (cpu / "cpu0/cpufreq/scaling_governor").read_text(encoding="ascii").strip() or None
    except OSError:
        return None


def usable_cpus() -> list[int]:
    """Return the logical CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(psutil.cpu_count() or 1))


def default_threads() -> int:
    """Return the physical cores this process may use, which is what onnxruntime takes by itself."""
    return min(psutil.cpu_count(logical=False) or 1, len(usable_cpus()))


@dataclass(frozen=True, kw_only=True)
class Load:
    """How busy other programs kept the CPUs this process may use: `others` in cores over `seconds`, of which `stolen`
    is what a hypervisor gave to other machines."""

    seconds: float
    others: float
    load_1min: float
    cores: int
    stolen: float = 0.0


class LoadWatch:
    """Measures what others use of our CPUs from its making on."""

    def __init__(self) -> None:
        self._cpus = usable_cpus()
        self._from = cpu_seconds(self._cpus)

    def read(self) -> Load:
        """Return the load since this watch was made."""
        wall, busy, own, stolen = (
            after - before for after, before in zip(cpu_seconds(self._cpus), self._from, strict=True)
        )
        wall = max(wall, 1e-9)
        return Load(
            seconds=wall,
            others=max(0.0, (busy - own) / wall),
            load_1min=psutil.getloadavg()[0],
            cores=len(self._cpus),
            stolen=max(0.0, stolen / wall),
        )


def cpu_seconds(cpus: Collection[int]) -> tuple[float, float, float, float]:
    """Return seconds: of the clock, of `cpus` being busy, of this process running, of `cpus` taken by a hypervisor."""
    times = [t for number, t in enumerate(psutil.cpu_times(percpu=True)) if number in cpus]
    busy = sum(getattr(t, kind, 0.0) for t in times for kind in _BUSY)
    stolen = sum(getattr(t, "steal", 0.0) for t in times)
    return time.perf_counter(), busy, time.process_time(), stolen


def probe_load(seconds: float = 0.3) -> Load:
    """Return the load over the next `seconds`, spent asleep."""
    watch = LoadWatch()
    time.sleep(seconds)
    return watch.read()


def busy_warning(load: Load, when: str) -> str | None:
    """Return one sentence where `load` makes measured times doubtful; `when` says when it was read."""
    if load.seconds < _TOO_SHORT or load.others <= _OTHERS_LIMIT:
        return None
    return (
        f"busy machine: {when}, other programs used {load.others:.2f} of {load.cores} cores "
        f"(load average {load.load_1min:.2f}); times may be far too long"
    )
