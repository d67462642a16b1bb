"""This machine as a device."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from edgeslim.devices.transports.process import Output, TimedOut, run_program
from edgeslim.devices.transports.protocol import QUICK_S, OnBytes
from edgeslim.errors import DeviceError


class LocalTransport:
    """Programs and files of this machine."""

    name = "local"
    folder: str | None = None

    def run(
        self, argv: Sequence[str], *, timeout: float | None = QUICK_S, on_text: Callable[[str], None] | None = None
    ) -> Output:
        """See `Transport`."""
        try:
            return run_program(argv, timeout=timeout, on_text=on_text)
        except TimedOut as fault:
            raise DeviceError(f"{self.name}: {fault}") from None

    def put(self, source: Path, target: str, on_bytes: OnBytes) -> None:
        """See `Transport`."""
        try:
            shutil.copyfile(source, target)
        except OSError as fault:
            raise DeviceError(f"{self.name}: {target}: {fault.strerror}") from None
        on_bytes(source.stat().st_size)

    def read(self, path: str) -> bytes:
        """See `Transport`."""
        try:
            return Path(path).read_bytes()
        except OSError as fault:
            raise DeviceError(f"{self.name}: {path}: {fault.strerror}") from None

    def list(self, folder: str) -> dict[str, int]:
        """See `Transport`."""
        found = Path(folder)
        return {entry.name: entry.stat().st_size for entry in found.iterdir()} if found.is_dir() else {}

    def remove(self, path: str) -> None:
        """See `Transport`."""
        entry = Path(path)
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)

    def close(self) -> None:
        """See `Transport`."""
