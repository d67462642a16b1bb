"""Sensors of this machine read every 100 ms by a thread, while another process is measured."""

import shutil
import subprocess
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from edgeslim.devices.jetson import parse_nvpmodel
from edgeslim.devices.sensor_plan import SensorPlan, find_sensors
from edgeslim.devices.sensors import TEGRASTATS

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


class LineSampler:
    """Reads the lines that a program prints from entering the block to leaving it, as samples of the path `name`; none
    where `command` is empty."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.samples: list[dict[str, Any]] = []
        self._name, self._command = name, command
        self._program: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._watch, name=name, daemon=True)

    def __enter__(self) -> "LineSampler":
        if self._command:
            with suppress(OSError):
                self._program = subprocess.Popen(
                    self._command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, errors="replace"
                )
                self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, at: TracebackType | None) -> None:
        if self._program is not None:
            self._program.terminate()
            self._program.wait()
            self._thread.join()

    def _watch(self) -> None:
        assert self._program is not None and self._program.stdout is not None
        with self._program.stdout as lines:
            for line in lines:
                self.samples.append({"seconds": time.perf_counter(), "path": self._name, "text": line})


def local_plan() -> tuple[SensorPlan, list[str]]:
    """Return what to read on this machine, and the command of a program to read beside it: tegrastats, on a Jetson
    whose rails cannot be read as files."""
    plan = find_sensors(list_folder, read_text)
    tegrastats, nvpmodel = shutil.which(TEGRASTATS), shutil.which("nvpmodel")
    command: list[str] = []
    if plan.energy_source is None and tegrastats is not None:
        command = [tegrastats, "--interval", str(round(INTERVAL_S * 1e3))]
        plan = replace(plan, energy_source="tegrastats")
    if nvpmodel is not None and (mode := _power_mode(nvpmodel)) is not None:
        plan = replace(plan, power_mode=mode)
    return plan, command


def _power_mode(nvpmodel: str) -> str | None:
    try:
        done = subprocess.run([nvpmodel, "-q"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return parse_nvpmodel(done.stdout)


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
