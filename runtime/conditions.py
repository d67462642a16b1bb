"""What the machine is like between the runs of a profile: micro-runs of some milliseconds, and what the kernel says.

A disturbance is often shorter than a profile: another program, or another virtual machine on the same host, takes a
core, a share of the memory's bandwidth or half of a core's units for a second. So a `Sample` is taken before and after
every run, by a process that is not the measured one, whose memory is measured too. Each kind of micro-run is done
`ROUNDS` times and its median taken, in some 50 ms in all.
"""

import hashlib
import mmap
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeslim.errors import RuntimeUnavailable
from edgeslim.runtime import machine
from edgeslim.runtime.energy import cpu_temperature
from edgeslim.runtime.kernel_bench import random_matrix
from edgeslim.runtime.library import KernelLibrary, kernel_library

ROUNDS = 5

_BLOCK = bytes(1 << 17)  # within the second cache of any core
_HASHES = 6
_TOKENS, _OUTPUTS, _INPUTS = 64, 512, 1024  # half a megabyte of weights for each thread: its second cache, or the third
_PRODUCTS = 10
_READ_BYTES = 128 << 20  # by all threads together: several times the last cache
_CPU = Path("/sys/devices/system/cpu")
_TASKS = Path("/proc/self/task")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The machine at one moment; None where nothing measures it.

    `core_gb_per_s`: bytes that one core hashes in its cache, a chain of instructions that follows its clock;
    `products_g_per_s`: multiplications of int8 products in the caches, all threads at once, by when the last one ends:
    it falls where any core is taken or shared; `memory_gb_per_s`: bytes read from memory by all threads at once;
    `clock_mhz`: what the kernel says of the slowest CPU's clock.
    """

    core_gb_per_s: float
    products_g_per_s: float | None
    memory_gb_per_s: float | None
    clock_mhz: float | None = None
    temperature_c: float | None = None


def median_sample(samples: Sequence[Sample]) -> Sample:
    """Return the median of each reading of `samples`."""
    return Sample(**{f.name: _of_any(statistics.median, (getattr(s, f.name) for s in samples)) for f in fields(Sample)})


def upper_quartile(samples: Sequence[Sample]) -> Sample:
    """Return what the machine does at its better moments: of each reading, three quarters are at most that."""
    return Sample(**{f.name: _of_any(_quartile, (getattr(s, f.name) for s in samples)) for f in fields(Sample)})


def _quartile(values: Sequence[float]) -> float:
    return float(np.percentile(values, 75))


def _of_any(summary: Callable[[Sequence[float]], float], values: Iterable[float | None]) -> Any:
    """Return the summary of those `values` that were measured, None where none was."""
    known = [value for value in values if value is not None]
    return summary(known) if known else None


class MicroRuns:
    """Takes samples with `threads` threads; its matrices and bytes to read are made once."""

    def __init__(self, threads: int) -> None:
        self._cpus = machine.usable_cpus()
        self._library: KernelLibrary | None = None
        with suppress(RuntimeUnavailable):  # a library that does not load is said by what needs it
            self._library = kernel_library()
        if self._library is None:
            return
        form = partial(random_matrix, "dense_int8", _OUTPUTS, _INPUTS, 1.0)
        self._matrices = [form(seed) for seed in range(threads)]
        self._x = np.random.default_rng(0).standard_normal((_TOKENS, _INPUTS)).astype(np.float32)
        self._bytes = np.array_split(small_pages(_READ_BYTES), threads)

    def sample(self) -> Sample:
        """Return what the machine is like now."""
        core, products, memory = [], [], []
        for _ in range(ROUNDS):
            core.append(core_speed())
            if self._library is not None:
                memory.append(self._memory(self._library))
                products.append(self._products(self._library))
        return Sample(
            core_gb_per_s=statistics.median(core),
            products_g_per_s=statistics.median(products) if products else None,
            memory_gb_per_s=statistics.median(memory) if memory else None,
            clock_mhz=slowest_clock(),
            temperature_c=cpu_temperature(),
        )

    def _products(self, library: KernelLibrary) -> float:
        tasks = [partial(library.linear, *matrix, self._x, repeats=_PRODUCTS) for matrix in self._matrices]
        count = len(tasks) * _PRODUCTS * _TOKENS * _OUTPUTS * _INPUTS
        return count / self._together(tasks) / 1e9

    def _memory(self, library: KernelLibrary) -> float:
        tasks = [partial(library.read, part) for part in self._bytes]
        return _READ_BYTES / self._together(tasks) / 1e9

    def _together(self, tasks: Sequence[Callable[[], object]]) -> float:
        """Return the seconds from when the first of `tasks` begins until the last one ends, all let go at once, each on
        a CPU of its own where there are as many."""
        barrier, times = threading.Barrier(len(tasks)), [(0.0, 0.0)] * len(tasks)

        def run(number: int, task: Callable[[], object]) -> None:
            if hasattr(os, "sched_setaffinity") and len(tasks) <= len(self._cpus):
                os.sched_setaffinity(0, {self._cpus[number]})  # of this thread alone
            barrier.wait()
            begin = time.perf_counter()
            task()
            times[number] = (begin, time.perf_counter())

        threads = [threading.Thread(target=run, args=each) for each in enumerate(tasks)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return max(end for _, end in times) - min(begin for begin, _ in times)


def small_pages(size: int) -> npt.NDArray[np.uint8]:
    """Return `size` bytes in pages of the size that mapped weights have. The kernel gives numpy's own memory huge ones
    where it finds some, sooner or later, and these are read at nearly twice the speed."""
    pages = mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with suppress(OSError):  # a kernel without huge pages
            pages.madvise(mmap.MADV_NOHUGEPAGE)
    found = np.frombuffer(pages, np.uint8)
    found[:] = 1
    return found


def core_speed() -> float:
    """Return how many GB/s one core hashes of what lies in its cache."""
    begin = time.perf_counter()
    for _ in range(_HASHES):
        hashlib.sha256(_BLOCK).digest()
    return _HASHES * len(_BLOCK) / (time.perf_counter() - begin) / 1e9


def slowest_clock(cpu: Path = _CPU) -> float | None:
    """Return the lowest clock that the kernel says of a CPU, in MHz; None where it says none."""
    found = []
    for file in cpu.glob("cpu[0-9]*/cpufreq/scaling_cur_freq"):
        with suppress(OSError, ValueError):
            found.append(int(file.read_text(encoding="ascii")) / 1e3)
    return min(found, default=None)


def waited_seconds(tasks: Path = _TASKS) -> float | None:
    """Return how long the threads of this process have been ready to run without a CPU, in all; None where the kernel
    does not count it.

    Source: Linux, Documentation/scheduler/sched-stats.rst, /proc/<pid>/schedstat: the second number, in nanoseconds.
    """
    found = []
    for file in tasks.glob("*/schedstat"):
        with suppress(OSError, ValueError, IndexError):  # a thread may have ended
            found.append(int(file.read_text(encoding="ascii").split()[1]))
    return sum(found) / 1e9 if found else None
