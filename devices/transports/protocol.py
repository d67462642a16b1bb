"""What every way to a device offers: run a program there, put a file, read one, list a folder, remove a path."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from edgeslim.devices.transports.process import Output

OnBytes = Callable[[int], None]
"""Called with the bytes of a file that have been sent so far."""

QUICK_S = 60.0
"""Seconds that a command may take which has next to nothing to do."""


class Transport(Protocol):
    """One device that answers. Every method raises DeviceError, one clear line, where it no longer does."""

    @property
    def name(self) -> str:
        """The device as the user wrote it, such as ``ssh://pi``."""

    @property
    def folder(self) -> str | None:
        """The folder for what edgeslim keeps there; None: the user's cache folder."""

    def run(
        self, argv: Sequence[str], *, timeout: float | None = QUICK_S, on_text: Callable[[str], None] | None = None
    ) -> Output:
        """Run a program there and return how it ended. No shell reads `argv`."""

    def put(self, source: Path, target: str, on_bytes: OnBytes) -> None:
        """Write the file `source` to `target` there. A file that was cut short may be left: the caller checks it."""

    def read(self, path: str) -> bytes:
        """Return what the file at `path` holds there."""

    def list(self, folder: str) -> dict[str, int]:
        """Return the names in `folder` there, hidden ones too, with their bytes; none where there is no such folder."""

    def remove(self, path: str) -> None:
        """Remove the file or folder at `path` there; nothing happens where there is none."""

    def close(self) -> None:
        """Let the device go."""
