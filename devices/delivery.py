"""Files on a device: each copied once, kept under its hash, and linked into a folder that lives as long as one run.

ROOT/blobs/HASH             a file, whole and checked
ROOT/blobs/.HASH.OWNER.part a file on its way; OWNER is host, process and time of who copies it
ROOT/runs/OWNER/            what one run needs, by hard links; by copies where a system permits none (Android: its shell
                            may make no hard links, and the runtime follows no symbolic one out of a bundle)

A blob gets its name only after the device has hashed it. What a killed copy or run has left behind bears its owner: the
next run removes it where that owner is no longer alive.
"""

import hashlib
import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

from edgeslim.devices.transports.protocol import Transport
from edgeslim.devices.transports.shell import script
from edgeslim.errors import DeviceError
from edgeslim.progress import Progress

_FULL = re.compile(r"no space left|quota exceeded", re.IGNORECASE)
_OWNER = re.compile(r"(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-(?P<time>\d+)")
_DAY = 86_400
_HASHING_S = 600.0  # seconds that a slow card may take to read a large file
_PIECE = 1 << 20

_ACCEPT = """
if command -v sha256sum >/dev/null 2>&1; then
  got=$(sha256sum < "$1")
else
  chmod 700 "$4" && got=$("$4" --sha256 "$1")
fi
if [ "${got%% *}" != "$2" ]; then rm -f -- "$1"; echo "its hash is ${got:-not known}"; exit 1; fi
chmod 700 "$1" && mv -f "$1" "$3"
"""
_ASSEMBLE = """
blobs=$1 run=$2; shift 2
mkdir -p "$run" || exit
while [ $# -gt 1 ]; do
  case $2 in */*) mkdir -p "$run/${2%/*}" || exit;; esac
  ln "$blobs/$1" "$run/$2" 2>/dev/null || cp "$blobs/$1" "$run/$2" || exit
  shift 2
done
"""


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """A file that a run needs: where it is here, its path in the run's folder there, its bytes and its SHA-256."""

    source: Path
    name: str
    bytes: int
    sha256: str

    @classmethod
    def of(cls, source: Path, name: str, on_bytes: Callable[[int], None] = lambda count: None) -> "Parcel":
        """Return the parcel of `source`; `on_bytes` is called with the bytes of each piece that was hashed."""
        digest, size = hashlib.sha256(), 0
        with source.open("rb") as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
                size += len(piece)
                on_bytes(len(piece))
        return cls(source=source, name=name, bytes=size, sha256=digest.hexdigest())


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """What a delivery did: files and bytes copied, files that were there already, leftovers removed."""

    copied: int
    bytes: int
    kept: int
    removed: int


class Store:
    """edgeslim's folder on a device."""

    def __init__(self, transport: Transport, root: str) -> None:
        """Make the folder `root` on the device.

        Raises: DeviceError where it cannot be made.
        """
        self._transport = transport
        self.root, self.blobs, self.runs = root, f"{root}/blobs", f"{root}/runs"
        done = transport.run(script('umask 077; mkdir -p -- "$1" "$2"', self.blobs, self.runs))
        if done.status != 0:
            raise self._fault(f"{root}: {done.last_line}")

    def deliver(self, parcels: Sequence[Parcel], *, hasher: Parcel, progress: Progress) -> Delivery:
        """Copy what is not there yet, the program `hasher` first, and check it there.

        `hasher` is what hashes files on a device without sha256sum.
        Raises: DeviceError where the device is gone or full, or a file arrives otherwise than it left.
        """
        there = self._transport.list(self.blobs)
        removed = self._remove_leftovers(there)
        wanted = {parcel.sha256: parcel for parcel in (hasher, *parcels)}
        missing = [parcel for key, parcel in wanted.items() if there.get(key) != parcel.bytes]
        total = sum(parcel.bytes for parcel in missing)
        self._check_room(total, sum(there.values()))
        sent = 0
        for parcel in missing:
            self._send(parcel, hasher, _from(sent, total, f"copying to {self._transport.name}, kB", progress))
            sent += parcel.bytes
        return Delivery(copied=len(missing), bytes=total, kept=len(wanted) - len(missing), removed=removed)

    @contextmanager
    def run_folder(self, parcels: Sequence[Parcel]) -> Iterator[str]:
        """Yield a folder on the device that holds `parcels` by their names; it is removed afterwards.

        Raises: DeviceError where it cannot be made.
        """
        folder = f"{self.runs}/{owner()}"
        self._transport.remove(folder)
        names = (text for parcel in parcels for text in (parcel.sha256, parcel.name))
        try:
            done = self._transport.run(script(_ASSEMBLE, self.blobs, folder, *names))
            if done.status != 0:
                raise self._fault(f"{folder}: {done.last_line}")
            yield folder
        finally:
            with suppress(DeviceError):
                self._transport.remove(folder)

    def remove_damaged(self, parcels: Sequence[Parcel], program: str) -> list[str]:
        """Return the names of the parcels whose blobs are no longer what they were, and remove those blobs.

        `program` is the path of edgeslim-bench there, which hashes on a device without sha256sum.
        """
        text = 'if command -v sha256sum >/dev/null 2>&1; then sha256sum -- "$@"; else "$0" --sha256 "$@"; fi'
        paths = {f"{self.blobs}/{parcel.sha256}": parcel for parcel in parcels}
        done = self._transport.run(["sh", "-c", text, program, *paths], timeout=_HASHING_S)
        rows = (line.partition("  ") for line in done.text.splitlines())
        found = {path.strip(): digest for digest, _, path in rows}
        damaged = [path for path, parcel in paths.items() if found.get(path, parcel.sha256) != parcel.sha256]
        for path in damaged:
            self._transport.remove(path)
        return [paths[path].name for path in damaged]

    def _send(self, parcel: Parcel, hasher: Parcel, on_bytes: Callable[[int], None]) -> None:
        part = f"{self.blobs}/.{parcel.sha256}.{owner()}.part"
        program = part if parcel.sha256 == hasher.sha256 else f"{self.blobs}/{hasher.sha256}"
        accept = script(_ACCEPT, part, parcel.sha256, f"{self.blobs}/{parcel.sha256}", program)
        try:
            self._transport.put(parcel.source, part, on_bytes)
            done = self._transport.run(accept, timeout=_HASHING_S)
            if done.status != 0:
                raise DeviceError(f"{parcel.name} did not arrive as it left: {done.last_line}")
        except BaseException as fault:
            with suppress(DeviceError):
                self._transport.remove(part)
            if isinstance(fault, DeviceError):
                raise self._fault(str(fault)) from None
            raise

    def _remove_leftovers(self, there: dict[str, int]) -> int:
        """Remove what dead owners have left, also from `there`; return how many."""
        parts = [name for name in there if name.endswith(".part") and is_leftover(name)]
        runs = [name for name in self._transport.list(self.runs) if is_leftover(name)]
        for path in (*(f"{self.blobs}/{name}" for name in parts), *(f"{self.runs}/{name}" for name in runs)):
            self._transport.remove(path)
        for name in parts:
            del there[name]
        return len(parts) + len(runs)

    def _check_room(self, needed: int, kept: int) -> None:
        """Raise DeviceError where the device says that it has no room for `needed` bytes."""
        if not needed:
            return
        free = self._free()
        if free is not None and free < needed:
            raise DeviceError(
                f"{self._transport.name}: its disk is full: {_megabytes(needed)} to copy, {_megabytes(free)} free at "
                f"{self.root}; free some, or remove {self.blobs} ({_megabytes(kept)} of earlier copies)"
            )

    def _free(self) -> int | None:
        """Return the free bytes where the store lies, None where the device does not say."""
        lines = self._transport.run(["df", "-Pk", self.root]).text.strip().splitlines()
        fields = lines[-1].split() if lines else []
        return int(fields[3]) * 1024 if len(fields) >= 6 and fields[3].isdigit() else None

    def _fault(self, said: str) -> DeviceError:
        """Return what to raise for a write that failed, for which the device or the transport `said` something."""
        if _FULL.search(said):
            said = f"its disk is full; free some, or remove {self.blobs}, the copies of earlier runs"
        name = self._transport.name
        return DeviceError(said if said.startswith(f"{name}: ") else f"{name}: {said}")


@cache
def _host() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def owner() -> str:
    """Return the name of this process for what it leaves on a device."""
    return f"{_host()}-{os.getpid()}-{int(psutil.Process().create_time())}"


def is_leftover(name: str) -> bool:
    """Return whether `name` bears an owner that is no longer alive: a dead process of this host, or another host's a
    day ago."""
    found = _OWNER.search(name)
    if found is None:
        return False
    pid, started = int(found["pid"]), int(found["time"])
    if found["host"] != _host():
        return time.time() - started > _DAY
    try:
        return int(psutil.Process(pid).create_time()) != started
    except psutil.Error:
        return True


def _from(sent: int, total: int, label: str, progress: Progress) -> Callable[[int], None]:
    return lambda count: progress((sent + count) // 1000, -(-total // 1000), label)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
