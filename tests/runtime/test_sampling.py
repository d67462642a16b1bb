"""Sensors of this machine are read while another process is measured; a Jetson is asked by its own programs."""

import time
from pathlib import Path

import pytest

from edgeslim.devices.sensors import TEGRASTATS, read_sensors
from edgeslim.runtime import sampling
from edgeslim.runtime.profiler import profile_bundle
from edgeslim.runtime.sampling import FileSampler, LineSampler, list_folder, local_plan, read_text

LINE = "RAM 1/2MB CPU [5%@1420,5%@1420] cpu@50.5C tj@52C VDD_IN {mw}mW/9000mW VDD_SOC 3923mW/3515mW"


def test_files_are_read_again_and_again_and_those_that_cannot_be_are_left_out(tmp_path):
    file = tmp_path / "temp"
    file.write_text("41000\n")
    before = time.perf_counter()
    with FileSampler([str(file), str(tmp_path / "none")], interval=0.01) as sampler:
        time.sleep(0.05)
        file.write_text("42000\n")
        time.sleep(0.05)
    texts = [sample["text"] for sample in sampler.samples]
    assert texts[0] == "41000\n" and texts[-1] == "42000\n" and len(texts) > 4
    seconds = [sample["seconds"] for sample in sampler.samples]
    assert before <= seconds[0] and seconds == sorted(seconds)
    assert {sample["path"] for sample in sampler.samples} == {str(file)}


def test_without_files_and_without_a_program_nothing_is_read():
    with FileSampler([]) as files, LineSampler("x", []) as lines:
        pass
    assert files.samples == lines.samples == []


def test_a_program_that_is_not_there_is_passed_over():
    with LineSampler("x", ["/nowhere/tegrastats"]) as lines:
        pass
    assert lines.samples == []


@pytest.fixture
def jetson(tmp_path, monkeypatch) -> Path:
    """A machine whose PATH has tegrastats and nvpmodel, and no file of any sensor."""
    (tmp_path / "tegrastats").write_text(f'#!/bin/sh\nwhile :; do echo "{LINE.format(mw=9500)}"; sleep 0.02; done\n')
    (tmp_path / "nvpmodel").write_text("#!/bin/sh\necho 'NV Power Mode: 15W'\necho 0\n")
    for program in ("tegrastats", "nvpmodel"):
        (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(sampling, "list_folder", lambda folder: [])
    monkeypatch.setattr(sampling, "read_text", lambda path: None)
    return tmp_path


def test_tegrastats_gives_power_and_heat_where_no_file_does(jetson):
    plan, command = local_plan()
    assert plan.energy_source == "tegrastats" and command[0] == str(jetson / "tegrastats")
    assert plan.power_mode == "15W"
    with LineSampler(TEGRASTATS, command) as lines:
        time.sleep(0.2)
    begin, end = lines.samples[0]["seconds"], lines.samples[-1]["seconds"]
    found = read_sensors(plan, [{"phase": "decode", "run": 0, "begin": begin, "end": end}], lines.samples)
    assert found.watts == pytest.approx(9.5) and found.joules == pytest.approx(9.5 * (end - begin))
    assert found.temperature_c == 52.0 and found.clock_mhz == 1420


def test_the_profile_of_such_a_machine_has_its_energy_and_power_mode(jetson, llama):
    profile = profile_bundle(llama.bundle, prompt_tokens=4, new_tokens=100, repeats=2, threads=1)
    assert profile.energy_source == "tegrastats" and profile.power_mode == "15W"
    assert profile.watts == pytest.approx(9.5)
    assert profile.energy_j_per_token is not None and 0 < profile.energy_j_per_token < 9.5


def test_the_file_system_answers_for_what_is_not_there():
    assert list(list_folder("/nowhere")) == [] and read_text("/nowhere/file") is None
