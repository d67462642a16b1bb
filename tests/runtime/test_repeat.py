"""Profiles in a row agree, or the measured cause is said: what others took, steal time, clock, memory, heat."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from edgeslim.cli import app
from edgeslim.errors import RecipeError
from edgeslim.runtime import machine, repeat
from edgeslim.runtime.profiler import profile_bundle
from edgeslim.runtime.repeat import Conditions, core_speed, judge, repeat_profile
from edgeslim.runtime.steadiness import MOST_REPEATS, MOST_WARMUP

CALM = Conditions(
    core_gb_per_s=1.8,
    memory_gb_per_s=30.0,
    programs=0.02,
    stolen=0.0,
    cores=2,
    temperature_c=45.0,
    throttling="none",
)
SPIN = "while True: pass"


@pytest.fixture(scope="module")
def measured(llama):
    """One real profile."""
    return profile_bundle(llama.bundle, prompt_tokens=4, new_tokens=4, repeats=1, threads=1)


def speeds(profile, *decode):
    return [replace(profile, decode_tok_s_p50=d, prefill_tok_s_p50=1000.0) for d in decode]


def test_profiles_within_five_percent_are_steady_and_need_no_cause(measured):
    found = judge(speeds(measured, 100, 104.9, 101), [CALM] * 3)
    assert found.steady and found.cause is None
    assert found.spread == {"decode_tok_s_p50": pytest.approx(0.049), "prefill_tok_s_p50": 0.0}


@pytest.mark.parametrize(
    ("slow", "said"),
    [
        ({"programs": 0.9}, "other programs used 0.90 of 2 cores in the slowest and 0.02 in the fastest"),
        ({"stolen": 0.4}, "the hypervisor withheld 20% of the CPUs in the slowest and 0% in the fastest (steal time)"),
        (
            {"core_gb_per_s": 1.35},
            "a core ran 25% slower (1.35 GB/s hashed in the slowest, 1.80 in the fastest, 45 °C)",
        ),
        ({"memory_gb_per_s": 24.0}, "memory was read 20% slower (24.0 GB/s in the slowest, 30.0 in the fastest"),
        (
            {"throttling": "2 throttle events", "temperature_c": 97.0},
            "throttled in the slowest: 2 throttle events, 97 °C",
        ),
        ({}, "cause not found: other programs used 0.02 of 2 cores"),
    ],
    ids=["load", "steal", "clock", "memory", "throttling", "unknown"],
)
def test_the_cause_is_what_the_slowest_had_and_the_fastest_had_not(measured, slow, said):
    found = judge(speeds(measured, 100, 80, 99), [CALM, replace(CALM, **slow), CALM])
    assert not found.steady and found.cause is not None
    assert found.cause.startswith("decode differs by 25% (at most 5% is steady): ")
    assert said in found.cause and "\n" not in found.cause


def test_what_weighs_most_comes_first_and_trifles_are_left_out(measured):
    slow = replace(CALM, programs=0.5, core_gb_per_s=1.78, memory_gb_per_s=26.0)
    found = judge(speeds(measured, 100, 70), [CALM, slow])
    assert found.cause is not None
    assert (
        found.cause.index("other programs") < found.cause.index("memory was read") and "a core ran" not in found.cause
    )


def test_what_disturbed_all_profiles_alike_is_said(measured):
    busy = replace(CALM, programs=1.5, stolen=0.1)
    found = judge(speeds(measured, 100, 80), [busy, busy])
    assert found.cause is not None and found.cause.endswith(
        "the machine was busy throughout: other programs used 1.50 of 2 cores in the slowest and 1.50 in the fastest; "
        "the hypervisor withheld 5% of the CPUs in the slowest and 5% in the fastest (steal time)"
    )


def test_a_cause_too_small_for_the_loss_is_said_to_be_one(measured):
    found = judge(speeds(measured, 100, 50), [CALM, replace(CALM, memory_gb_per_s=28.0)])
    assert found.cause is not None and "which explains a part of it only" in found.cause


def test_each_figure_that_differs_has_its_own_cause_the_worst_first(measured):
    profiles = [
        replace(measured, decode_tok_s_p50=100.0, prefill_tok_s_p50=500.0),
        replace(measured, decode_tok_s_p50=80.0, prefill_tok_s_p50=550.0),
    ]
    found = judge(profiles, [CALM, replace(CALM, memory_gb_per_s=24.0)])
    decode, prefill = (
        "decode differs by 25% (at most 5% is steady): memory was read 20% slower",
        "prefill differs by 10%",
    )
    assert found.cause is not None and found.cause.startswith(decode)
    assert found.cause.index(prefill) > found.cause.index("memory was read")
    assert found.cause[found.cause.index(prefill) :].count("memory was read") == 0, "it was faster beside slow memory"


def test_where_nothing_measured_differs_a_virtual_machine_is_said_to_be_one(measured):
    found = judge(speeds(measured, 100, 80), [replace(CALM, virtual=True)] * 2)
    assert found.cause is not None and "cause not found" in found.cause
    assert found.cause.endswith(
        "; a virtual machine: what others on its host take of shared cores and caches, no counter here tells"
    )


def test_core_speed_is_that_of_a_hash():
    assert 0.05 < core_speed() < 20


def test_fewer_than_two_profiles_cannot_agree(llama):
    with pytest.raises(RecipeError, match="repeat must be at least 2, got 1"):
        repeat_profile(llama.bundle, 1)


def test_progress_counts_all_profiles(llama):
    seen = []
    options = {"prompt_tokens": 2, "new_tokens": 2, "repeats": 1, "warmup": 1, "threads": 1}
    found = repeat_profile(llama.bundle, 2, **options, on_progress=lambda *step: seen.append(step))
    whole = 2 * (1 + MOST_WARMUP + MOST_REPEATS)
    assert seen == sorted(seen) and {total for _, total in seen} == {whole} and seen[-1][0] == whole
    assert (whole // 2, whole) in seen, "the first profile is half of it, however many runs it took"
    value = json.loads(json.dumps(found.to_json()))
    assert len(value["profiles"]) == len(value["conditions"]) == 2 and value["kind"] == "repeated"


def test_profiles_in_a_row_go_on_until_their_medians_are_known_and_say_how_many_runs_they_took(llama):
    options = {"prompt_tokens": 8, "new_tokens": 40, "repeats": 2, "warmup": 1, "threads": 1}
    for profile in repeat_profile(llama.bundle, 2, **options).profiles:
        assert 2 <= profile.repeats <= 2 * MOST_REPEATS
        assert 2 <= profile.warmup <= 1 + MOST_WARMUP
    alone = profile_bundle(llama.bundle, **options)
    assert (alone.repeats, alone.warmup) == (2, 1), "one profile takes what it was asked for"


def test_a_steady_machine_ends_with_status_0(llama, measured, monkeypatch):
    monkeypatch.setattr(repeat, "profile_bundle", lambda bundle, **options: measured)
    result = CliRunner().invoke(app, ["profile", str(llama.bundle), "--repeat", "5"])
    assert result.exit_code == 0 and "at most 5% is steady" in result.stdout


def test_a_busy_process_is_the_measured_cause_and_the_status_is_3(llama, monkeypatch):
    """The second of three profiles runs beside real processes that take every core."""
    number = 0

    def beside(bundle, **options):
        nonlocal number
        number += 1
        busy = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(2 * len(machine.usable_cpus()))]
        try:
            if number % 3 != 2:
                _end(busy)
            return profile_bundle(bundle, **options)
        finally:
            _end(busy)

    monkeypatch.setattr(repeat, "profile_bundle", beside)
    options = ["--prompt-tokens", "16", "--new-tokens", "100", "--repeats", "8", "--threads", "1"]
    for _ in range(3):  # where the machine is busy anyway, one of the other two may happen to be the slowest
        number = 0
        result = CliRunner().invoke(app, ["profile", str(llama.bundle), "--repeat", "3", *options])
        if "other programs used" in result.stderr:
            break
    assert result.exit_code == 3
    said = [line for line in result.stderr.splitlines() if line.startswith("not repeatable: ")]
    assert len(said) == 1 and "other programs used" in said[0]


def _end(processes):
    for process in processes:
        process.kill()
        process.wait()
