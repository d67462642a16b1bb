"""Micro-runs between runs, and how long threads waited for a CPU."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgeslim.runtime import conditions, machine
from edgeslim.runtime.conditions import (
    MicroRuns,
    Sample,
    median_sample,
    slowest_clock,
    small_pages,
    upper_quartile,
    waited_seconds,
)


def test_a_sample_knows_a_core_products_and_memory():
    found = MicroRuns(len(machine.usable_cpus())).sample()
    assert 0.05 < found.core_gb_per_s < 20
    assert found.products_g_per_s is not None and 0.1 < found.products_g_per_s < 1e5
    assert found.memory_gb_per_s is not None and 0.1 < found.memory_gb_per_s < 5000


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the kernel does not say which pages memory has")
def test_memory_is_read_in_pages_as_mapped_weights_have_them():
    found = small_pages(8 << 20)
    assert found.nbytes == 8 << 20 and found.min() == found.max() == 1
    regions = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE)
    ours = next(r for r in regions if r and _holds(r, found.ctypes.data))
    assert re.findall(r"^(?:AnonHuge|ShmemPmdMapped)\w*:\s+(\d+) kB", ours, re.MULTILINE) in (["0"], ["0", "0"])


def _holds(region, address):
    begin, end = (int(each, 16) for each in region.split(" ", 1)[0].split("-"))
    return begin <= address < end


def test_without_a_kernel_library_products_and_memory_are_not_measured(monkeypatch):
    monkeypatch.setattr(conditions, "kernel_library", lambda: None)
    found = MicroRuns(2).sample()
    assert found.products_g_per_s is None and found.memory_gb_per_s is None and found.core_gb_per_s > 0


def test_both_threads_are_waited_for():
    assert MicroRuns(2)._together([lambda: time.sleep(0.05), lambda: None]) >= 0.05


def test_medians_and_quartiles_leave_out_what_was_not_measured():
    samples = [
        Sample(core_gb_per_s=1.0, products_g_per_s=None, memory_gb_per_s=10.0),
        Sample(core_gb_per_s=2.0, products_g_per_s=None, memory_gb_per_s=None),
        Sample(core_gb_per_s=4.0, products_g_per_s=None, memory_gb_per_s=30.0),
    ]
    assert median_sample(samples) == Sample(core_gb_per_s=2.0, products_g_per_s=None, memory_gb_per_s=20.0)
    assert upper_quartile(samples) == Sample(core_gb_per_s=3.0, products_g_per_s=None, memory_gb_per_s=25.0)


def test_the_slowest_clock_is_what_the_kernel_says(tmp_path):
    assert slowest_clock(tmp_path) is None
    for number, khz in enumerate(("2400000\n", "1800000\n", "<unknown>\n")):
        folder = tmp_path / f"cpu{number}/cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_cur_freq").write_text(khz)
    assert slowest_clock(tmp_path) == 1800.0


def test_the_threads_waits_are_added(tmp_path):
    assert waited_seconds(tmp_path) is None
    for thread, text in (("7", "100 1500000000 3\n"), ("8", "100 500000000 3\n"), ("9", "")):
        (tmp_path / thread).mkdir()
        (tmp_path / thread / "schedstat").write_text(text)
    assert waited_seconds(tmp_path) == 2.0


@pytest.mark.skipif(waited_seconds() is None, reason="the kernel does not count how long threads wait")
def test_a_thread_beside_another_on_its_core_waits():
    code = (
        "import os, time; from edgeslim.runtime.conditions import waited_seconds; os.sched_setaffinity(0, {CPU});"
        "begin, end = waited_seconds(), time.perf_counter() + 1;\nwhile time.perf_counter() < end: pass\n"
        "print(waited_seconds() - begin)"
    ).replace("CPU", str(machine.usable_cpus()[0]))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    pair = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    waits = [float(process.communicate()[0]) for process in pair]
    assert max(waits) > 0.1
