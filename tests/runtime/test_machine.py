"""The machine's description comes from what the kernel says; a busy one is noticed."""

import pytest

from edgeslim.runtime import machine
from edgeslim.runtime.machine import (
    Load,
    LoadWatch,
    busy_warning,
    default_threads,
    describe,
    governor,
    isa,
    probe_load,
    usable_cpus,
)

X86 = "processor : 0\nmodel name\t: Example CPU 7\nflags\t\t: fpu {}\n"


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ("avx2 avx512f avx512_vnni avx_vnni", "avx512-vnni"),
        ("avx2 avx512f", "avx512"),
        ("avx2 avx_vnni", "avx2-vnni"),
        ("avx avx2", "avx2"),
    ],
)
def test_the_instruction_set_is_the_best_the_flags_allow(tmp_path, flags, name):
    (tmp_path / "cpuinfo").write_text(X86.format(flags))
    assert isa(tmp_path / "cpuinfo") == name


@pytest.mark.parametrize(
    ("features", "name"),
    [("fp asimd asimddp i8mm", "neon-i8mm"), ("asimd asimddp", "neon-dotprod"), ("asimd", "neon")],
)
def test_arm_features_are_understood(tmp_path, features, name):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nFeatures\t: {features}\n")
    assert isa(tmp_path / "cpuinfo") == name


def test_unknown_flags_give_the_bare_architecture(tmp_path):
    import platform

    assert isa(tmp_path / "missing") == platform.machine().lower()


def test_the_description_names_processor_and_cores(tmp_path):
    (tmp_path / "cpuinfo").write_text(X86.format("avx"))
    assert describe(tmp_path / "cpuinfo") == f"Example CPU 7, {len(usable_cpus())} cores"
    assert describe(tmp_path / "missing")


def test_default_threads_fit_the_machine():
    assert 1 <= default_threads() <= len(usable_cpus())


def load(**changes: float) -> Load:
    return Load(**{"seconds": 1.0, "others": 0.0, "load_1min": 0.0, "cores": 2, **changes})


def test_an_idle_machine_gives_no_warning():
    assert busy_warning(load(others=0.1, load_1min=4.0), "before the run") is None


def test_others_at_work_give_one():
    warning = busy_warning(load(others=0.5, load_1min=1.5), "during the run")
    assert warning is not None
    assert "during the run, other programs used 0.50 of 2 cores (load average 1.50)" in warning


def test_a_reading_too_short_to_mean_anything_gives_none():
    assert busy_warning(load(others=1.0, seconds=0.05), "during the run") is None


def test_our_own_work_is_not_counted_as_others(monkeypatch):
    # seconds on the clock, of busy CPUs, of this process, of CPUs that were taken away
    readings = iter([(10.0, 5.0, 1.0, 0.0), (12.0, 8.0, 3.5, 0.2)])
    monkeypatch.setattr(machine, "cpu_seconds", lambda cpus: next(readings))
    reading = LoadWatch().read()
    assert reading.seconds == 2.0
    assert reading.others == pytest.approx(0.25) and reading.stolen == pytest.approx(0.1)


def test_the_kernels_counters_can_be_read():
    assert probe_load(0.05).others >= 0


def test_the_governor_is_the_first_cpu_s_or_not_known(tmp_path):
    assert governor(tmp_path) is None
    (tmp_path / "cpu0" / "cpufreq").mkdir(parents=True)
    (tmp_path / "cpu0" / "cpufreq" / "scaling_governor").write_text("schedutil\n")
    assert governor(tmp_path) == "schedutil"
