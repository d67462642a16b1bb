"""Profiles in a row agree, or end with status 3 and the measured cause."""

import json
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import psutil
import pytest
from typer.testing import CliRunner

from edgeslim.cli import app
from edgeslim.errors import EdgeslimError, RecipeError
from edgeslim.runtime import machine, repeat
from edgeslim.runtime.causes import Conditions
from edgeslim.runtime.conditions import Sample
from edgeslim.runtime.profiler import profile_bundle
from edgeslim.runtime.repeat import judge, repeat_profile
from edgeslim.runtime.steadiness import MOST_REPEATS, MOST_WARMUP

CALM = Conditions(
    core_gb_per_s=1.8,
    products_g_per_s=300.0,
    memory_gb_per_s=30.0,
    clock_mhz=None,
    temperature_c=45.0,
    waited={"decode": 0.0, "prefill": 0.0},
    programs=0.02,
    stolen=0.0,
    cores=2,
    throttling="none",
)
SAMPLE = Sample(core_gb_per_s=1.8, products_g_per_s=300.0, memory_gb_per_s=30.0)
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


def test_the_cause_stands_after_how_far_the_profiles_are_apart(measured):
    slow = replace(CALM, programs=0.9)
    found = judge(speeds(measured, 100, 80, 99), [CALM, slow, CALM])
    assert not found.steady
    assert found.cause == (
        "decode differs by 25% (at most 5% is steady): "
        "other programs used 0.90 of 2 cores in the slowest and 0.02 in the fastest"
    )


def test_fewer_than_two_profiles_cannot_agree(llama):
    with pytest.raises(RecipeError, match="repeat must be at least 2, got 1"):
        repeat_profile(llama.bundle, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--estimate"], "repeat only measures, got --estimate too: leave one of them out"),
        (["--operators"], "repeat only measures, got --operators too: leave one of them out"),
        (["--text", "x.txt"], "repeat only measures, got --text too: leave one of them out"),
        (["-o", "x.html"], "repeat only measures, got --output too: leave one of them out"),
        (["--device", "local", "--device", "adb"], "repeat measures this machine only, got 2 devices"),
        (["--device", "ssh://pi"], "repeat measures this machine only, got device 'ssh://pi'"),
    ],
)
def test_what_a_repeated_profile_would_not_do_is_refused(llama, options, message):
    result = CliRunner().invoke(app, ["profile", str(llama.bundle), "--repeat", "2", *options])
    assert result.exit_code == 1 and result.stderr == f"error: {message}\n"


def always(threads):
    """A source of samples of a machine that is always the same."""
    return lambda: SAMPLE


def test_progress_counts_all_profiles(llama):
    seen = []
    options = {"prompt_tokens": 2, "new_tokens": 2, "repeats": 1, "warmup": 1, "threads": 1}
    found = repeat_profile(llama.bundle, 2, **options, source=always, on_progress=lambda *step: seen.append(step))
    whole = 2 * (1 + MOST_WARMUP + MOST_REPEATS)
    assert seen == sorted(seen) and {total for _, total in seen} == {whole} and seen[-1][0] == whole
    assert (whole // 2, whole) in seen, "the first profile is half of it, however many runs it took"
    value = json.loads(json.dumps(found.to_json()))
    assert len(value["profiles"]) == len(value["conditions"]) == 2 and value["kind"] == "repeated"


@pytest.mark.parametrize("engine", ["native", "genai", "ort"])
def test_each_engine_is_measured_between_its_runs_and_says_how_many_count(llama, engine):
    taken, made = [], []

    def source(threads):
        made.append(threads)
        return lambda: taken.append(SAMPLE) or SAMPLE

    options = {"prompt_tokens": 8, "new_tokens": 20, "repeats": 2, "warmup": 1, "threads": 1, "engine": engine}
    found = repeat_profile(llama.bundle, 2, source=source, **options)
    assert made == [1], "all profiles are measured by the same micro-runs"
    runs = 0
    for profile, now in zip(found.profiles, found.conditions, strict=True):
        assert 2 <= profile.repeats <= 2 * MOST_REPEATS and 1 <= profile.warmup <= 1 + MOST_WARMUP
        assert now.memory_gb_per_s == 30.0 and now.products_g_per_s == 300.0
        runs += profile.repeats + now.left_out + profile.warmup
    assert len(taken) == runs + 2, "before the first run of each profile, and after every one"
    alone = profile_bundle(llama.bundle, **options)
    assert (alone.repeats, alone.warmup) == (2, 1), "one profile takes what it was asked for"


def test_a_worker_that_dies_while_it_waits_for_an_answer_is_said_to_have(llama):
    def source(threads):
        def kill():
            for child in psutil.Process().children():
                if "profiler_worker" in " ".join(child.cmdline()):
                    child.kill()
            return SAMPLE

        return kill

    with pytest.raises(EdgeslimError, match="the measuring process ended with status -9"):
        repeat_profile(llama.bundle, 2, source=source, prompt_tokens=2, new_tokens=2, threads=1)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, None),
        ({"memory_gb_per_s": 20.0}, "memory was read 33% slower (20.0 GB/s in the slowest, 30.0 in the fastest)"),
        ({"temperature_c": 90.0, "core_gb_per_s": 1.2}, "a core ran 33% slower"),
    ],
    ids=["same", "memory", "clock"],
)
def test_what_a_source_of_conditions_says_is_the_cause_and_the_status(llama, measured, monkeypatch, changed, said):
    """Profiles whose runs are told, not measured: the second is slower where its machine is."""
    number = 0

    def told(bundle, *, settling, **options):
        nonlocal number
        number += 1
        slow = bool(changed) and number == 2
        decides, decode = settling(2), 0.75 if slow else 0.5
        run = {"prefill": 0.1, "decode": decode, "steps": 50, "threads": 2, "waited": None}
        while not decides.answer({**run, "wall": 0.6, "busy": 1.2, "own": 1.2, "stolen": 0.0}):
            pass
        return replace(measured, decode_tok_s_p50=50 / decode, prefill_tok_s_p50=1000.0, temperature_c=None)

    monkeypatch.setattr(repeat, "profile_bundle", told)
    monkeypatch.setattr(
        repeat,
        "MicroRuns",
        lambda threads: SimpleNamespace(sample=lambda: replace(SAMPLE, **changed if number == 2 else {})),
    )
    result = CliRunner().invoke(app, ["profile", str(llama.bundle), "--repeat", "3"])
    assert result.exit_code == (0 if said is None else 3)
    lines = [line for line in result.stderr.splitlines() if line.startswith("not repeatable: ")]
    assert len(lines) == (said is not None)
    if said is not None:
        assert (
            lines[0].startswith("not repeatable: decode differs by 50% (at most 5% is steady): ") and said in lines[0]
        )
    assert "at most 5% is steady" in result.stdout


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
    monkeypatch.setattr(repeat, "MicroRuns", lambda threads: SimpleNamespace(sample=lambda: SAMPLE))
    options = ["--prompt-tokens", "16", "--new-tokens", "100", "--repeats", "2", "--threads", "1"]
    for _ in range(3):  # where the machine is busy anyway, one of the other two may happen to be the slowest
        number = 0
        result = CliRunner().invoke(app, ["profile", str(llama.bundle), "--repeat", "3", *options])
        if "its threads waited for a CPU" in result.stderr:
            break
    assert result.exit_code == 3
    said = [line for line in result.stderr.splitlines() if line.startswith("not repeatable: ")]
    assert len(said) == 1 and ("its threads waited for a CPU" in said[0] or "other programs used" in said[0])


def _end(processes):
    for process in processes:
        process.kill()
        process.wait()
