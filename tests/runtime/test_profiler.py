"""A profile has the agreed keys, comes from a process of its own, and says when the machine was busy."""

import json
import math

import pytest

from edgeslim.errors import BundleError, EdgeslimError, RecipeError, RuntimeUnavailable
from edgeslim.runtime import engines, machine, profiler
from edgeslim.runtime.profiler import Profile, profile_bundle
from edgeslim.runtime.profiler_worker import Run, random_prompt, summarise

CONTRACT = [
    "device",
    "engine",
    "isa",
    "threads",
    "prompt_tokens",
    "new_tokens",
    "load_s",
    "ttft_ms_p50",
    "ttft_ms_p90",
    "prefill_tok_s_p50",
    "decode_tok_s_p50",
    "decode_ms_p50",
    "decode_ms_p90",
    "base_rss_bytes",
    "peak_rss_bytes",
    "pss_bytes",
    "bundle_bytes",
    "weight_bytes",
    "energy_j_per_token",
    "temperature_c",
    "governor",
    "power_mode",
    "throttling",
    "clock_mhz",
    "energy_source",
    "watts",
    "cold_ttft_ms",
    "cold_decode_ms",
    "others_cores",
    "stolen_cores",
    "repeats",
    "warmup",
    "measured",
]
IDLE = machine.Load(seconds=1.0, others=0.01, load_1min=0.1, cores=2)
BUSY = machine.Load(seconds=1.0, others=1.25, load_1min=3.5, cores=2)


@pytest.fixture(autouse=True)
def idle(monkeypatch):
    """Let the machine look idle before a run; what happens during it is real."""
    monkeypatch.setattr(machine, "probe_load", lambda: IDLE)


@pytest.mark.parametrize("engine", ["genai", "ort"])
def test_a_profile_has_exactly_the_keys_of_the_contract_and_warnings(exported, engine):
    profile = profile_bundle(
        exported.bundle, prompt_tokens=9, new_tokens=4, threads=1, engine=engine, repeats=2, warmup=1
    )
    value = json.loads(json.dumps(profile.to_json()))
    assert list(value) == [*CONTRACT, "warnings"]
    assert Profile.from_json(value) == profile
    assert value["engine"].startswith({"genai": "onnxruntime-genai 0.", "ort": "onnxruntime 1."}[engine])
    assert (value["threads"], value["prompt_tokens"], value["new_tokens"]) == (1, 9, 4)
    assert (value["repeats"], value["warmup"], value["measured"]) == (2, 1, True)
    assert value["weight_bytes"] < value["bundle_bytes"] < value["base_rss_bytes"] < value["peak_rss_bytes"]
    assert value["ttft_ms_p50"] <= value["ttft_ms_p90"] and value["decode_ms_p50"] <= value["decode_ms_p90"]
    assert all(value[key] > 0 for key in CONTRACT if key.endswith(("_s", "_p50", "_p90")))


def test_progress_counts_warm_up_and_repeats(llama):
    seen = []
    profile_bundle(
        llama.bundle, prompt_tokens=2, new_tokens=2, repeats=2, warmup=1, on_progress=lambda *step: seen.append(step)
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_busy_machine_is_said_on_stderr_and_in_the_profile(llama, monkeypatch, capsys):
    monkeypatch.setattr(machine, "probe_load", lambda: BUSY)
    profile = profile_bundle(llama.bundle, prompt_tokens=2, new_tokens=2, repeats=1)
    said = (
        "busy machine: before the run, other programs used 1.25 of 2 cores (load average 3.50); "
        "times may be far too long"
    )
    assert profile.warnings[0] == said
    assert f"warning: {said}\n" in capsys.readouterr().err


def test_speeds_are_percentiles_over_repeats_and_steps():
    runs = [Run(first=0.2 * i, prefill=0.1 * i, steps=[0.01 * i, 0.03 * i]) for i in (1, 2, 3)]
    keys = summarise(runs, prompt_tokens=10)
    assert math.isclose(keys["ttft_ms_p50"], 400)
    assert math.isclose(keys["ttft_ms_p90"], 560)
    assert math.isclose(keys["prefill_tok_s_p50"], 50)
    assert math.isclose(keys["decode_tok_s_p50"], 25)
    assert math.isclose(keys["decode_ms_p50"], 30)  # of 10 20 30 30 60 90
    assert math.isclose(keys["decode_ms_p90"], 75)


def test_random_prompts_are_seeded_and_within_the_vocabulary():
    prompt = random_prompt(7, 100)
    assert prompt.shape == (1, 100)
    assert set(prompt[0]) == set(range(7))
    assert (prompt == random_prompt(7, 100)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt_tokens": 0}, "prompt_tokens must be at least 1, got 0"),
        ({"new_tokens": 1}, "new_tokens must be at least 2, got 1"),
        ({"repeats": 0}, "repeats must be at least 1, got 0"),
        ({"warmup": -1}, "warmup must be at least 0, got -1"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"engine": "ortt"}, "unknown engine 'ortt'; did you mean 'ort'"),
    ],
)
def test_numbers_that_cannot_be_meant_are_refused_before_anything_starts(llama, options, message):
    with pytest.raises(RecipeError, match=message):
        profile_bundle(llama.bundle, **options)


def test_a_fault_in_the_measuring_process_arrives_as_the_same_error(bundle_copy):
    (bundle_copy / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(BundleError, match="does not load"):
        profile_bundle(bundle_copy)


def test_more_tokens_than_the_context_are_refused(llama):
    with pytest.raises(RecipeError, match=r"prompt_tokens \+ new_tokens must be at most 256, .* got 264"):
        profile_bundle(llama.bundle, prompt_tokens=200, new_tokens=64)


def test_a_measuring_process_that_dies_is_reported(llama, monkeypatch):
    monkeypatch.setattr(profiler, "MARK", "never printed: ")
    with pytest.raises(EdgeslimError, match="the measuring process ended with status 0"):
        profile_bundle(llama.bundle, prompt_tokens=2, new_tokens=2, repeats=1)


def test_a_missing_engine_is_said_before_anything_starts(llama, monkeypatch):
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    with pytest.raises(RuntimeUnavailable, match=r'pip install "edgeslim\[cpu\]"'):
        profile_bundle(llama.bundle, engine="genai")
