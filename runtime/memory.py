"""How many bytes: of this process, now and at its peak, and of a bundle on disk."""

import re
import sys
from pathlib import Path

import psutil

from edgeslim.runtime.config import bundle_file
from edgeslim.runtime.manifest import DATA, MANIFEST, Manifest

_PROC_SELF = Path("/proc/self")


def current_rss() -> int:
    """Return this process's resident bytes (mapped files in memory included)."""
    return int(psutil.Process().memory_info().rss)


def current_pss(proc: Path = _PROC_SELF) -> int | None:
    """Return this process's proportional set size: resident bytes, those shared with other processes in their parts;
    None where the kernel does not say."""
    try:
        return parse_pss((proc / "smaps_rollup").read_text(encoding="utf-8"))
    except OSError:
        return None


def parse_pss(rollup: str) -> int | None:
    """Return the bytes of the ``Pss`` line of a Linux /proc/PID/smaps_rollup text; None where there is none."""
    found = re.search(r"^Pss:\s+(\d+) kB$", rollup, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def reset_peak(proc: Path = _PROC_SELF) -> bool:
    """Set the peak back to the present where the kernel permits it; return whether it did."""
    try:
        (proc / "clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_rss(proc: Path = _PROC_SELF) -> int:
    """Return the most bytes this process has had resident since its start or the last `reset_peak`."""
    status = proc / "status"
    if status.is_file() and (peak := parse_vm_hwm(status.read_text(encoding="utf-8"))) is not None:
        return peak
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, the others KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def parse_vm_hwm(status: str) -> int | None:
    """Return the bytes of the ``VmHWM`` line of a Linux /proc/PID/status text; None where there is none."""
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def bundle_bytes(bundle: Path) -> int:
    """Return the bytes of all files in `bundle`."""
    return sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())


def weight_bytes(bundle: Path) -> int:
    """Return the bytes of the weights: what the manifest says, else the size of the weight file, else of the graph.

    Raises: BundleError when there is none of these.
    """
    if (bundle / MANIFEST).is_file():
        return Manifest.read(bundle).weight_bytes
    weights = bundle / DATA
    return (weights if weights.is_file() else bundle_file(bundle)).stat().st_size
