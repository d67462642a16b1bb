"""Sensor files of this machine read every 100 ms by a thread, while another process is measured."""

import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

INTERVAL_S = 0.1


class FileSampler:
    """Reads `paths` from entering the block to leaving it; `samples` then holds {seconds, path, text}, seconds on the
    clock of time.perf_counter, which all processes of a machine share."""

    def __init__(self, paths: Sequence[str], *, interval: float = INTERVAL_S) -> None:
        self.samples: list[dict[str, Any]] = []
        self._paths, self._interval = paths, interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="sensors", daemon=True)

    def __enter__(self) -> "FileSampler":
        if self._paths:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        if self._paths:
            self._thread.join()

    def _watch(self) -> None:
        while True:
            for path in self._paths:
                text = read_text(path)
                if text is not None:
                    self.samples.append({"seconds": time.perf_counter(), "path": path, "text": text})
            if self._stop.wait(self._interval):
                return


def read_text(path: str) -> str | None:
    """Return what the file at `path` holds, None where it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def list_folder(folder: str) -> Iterable[str]:
    """Return the names in `folder`, none where there is no such folder."""
    try:
        return [entry.name for entry in Path(folder).iterdir()]
    except OSError:
        return []
