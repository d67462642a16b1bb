"""What is said where profiles differ: what was measured in both and goes with the figure, and nothing else."""

from dataclasses import replace

import numpy as np
import pytest

from edgeslim.runtime.causes import Conditions, explain
from edgeslim.runtime.conditions import Sample
from edgeslim.runtime.settling import RunSeen

CALM = Conditions(
    core_gb_per_s=1.8,
    products_g_per_s=300.0,
    memory_gb_per_s=30.0,
    clock_mhz=3000.0,
    temperature_c=45.0,
    waited={"decode": 0.001, "prefill": 0.002},
    programs=0.02,
    stolen=0.0,
    cores=2,
    throttling="none",
)
STEADY = Sample(core_gb_per_s=1.8, products_g_per_s=300.0, memory_gb_per_s=30.0)
BARE = Conditions(
    core_gb_per_s=1.8,
    products_g_per_s=None,
    memory_gb_per_s=None,
    clock_mhz=None,
    temperature_c=None,
    waited=None,
    programs=0.02,
    stolen=0.0,
    cores=2,
    throttling=None,
)
"""A machine of which nothing is known but a hash and the CPUs' load."""


def run(rate, *, memory=30.0, products=300.0, waited=0.0, figure="decode"):
    """One run of `rate` a second of `figure`, the other figure always alike."""
    return RunSeen(
        rates={"decode": 100.0, "prefill": 5.0, figure: rate},
        waited={"decode": 0.0, "prefill": 0.0, figure: waited},
        seconds=1.0,
        programs_s=0.0,
        stolen_s=0.0,
        around=replace(STEADY, memory_gb_per_s=memory, products_g_per_s=products),
    )


@pytest.mark.parametrize(
    ("slow", "said"),
    [
        ({"programs": 0.9}, "other programs used 0.90 of 2 cores in the slowest and 0.02 in the fastest"),
        ({"stolen": 0.4}, "the hypervisor withheld 20% of the CPUs in the slowest and 0% in the fastest (steal time)"),
        (
            {"waited": {"decode": 0.2, "prefill": 0.0}},
            "its threads waited for a CPU 20% of the time in the slowest and 0% in the fastest",
        ),
        ({"clock_mhz": 2400.0}, "the clock was 20% lower (2400 MHz in the slowest, 3000 in the fastest, 45 °C)"),
        (
            {"core_gb_per_s": 1.35},
            "a core ran 25% slower (1.35 GB/s hashed in the slowest, 1.80 in the fastest, 45 °C)",
        ),
        (
            {"products_g_per_s": 240.0},
            "all threads at once multiplied 20% slower in their caches (240 G/s in the slowest, 300 in the fastest; "
            "one core alone hashed as fast: not its clock, the cores are shared)",
        ),
        ({"memory_gb_per_s": 24.0}, "memory was read 20% slower (24.0 GB/s in the slowest, 30.0 in the fastest)"),
        (
            {"throttling": "2 throttle events", "temperature_c": 97.0},
            "throttled in the slowest: 2 throttle events, 97 °C",
        ),
    ],
    ids=["load", "steal", "waiting", "frequency", "hash", "shared cores", "memory", "throttling"],
)
def test_one_cause_that_was_injected_is_the_one_that_is_named(slow, said):
    assert explain("decode", replace(CALM, **slow), CALM, 0.2) == said


def test_each_figure_has_its_own_waiting():
    slow = replace(CALM, waited={"decode": 0.3, "prefill": 0.0})
    assert "waited for a CPU 30%" in explain("decode", slow, CALM, 0.3)
    assert "cause not found" in explain("prefill", slow, CALM, 0.3)


def test_a_slower_clock_is_not_taken_for_shared_cores():
    said = explain("prefill", replace(CALM, products_g_per_s=240.0, core_gb_per_s=1.44), CALM, 0.2)
    assert "a core ran 20% slower" in said and "multiplied 20% slower" in said and "the cores are shared" not in said


def test_what_weighs_most_comes_first_and_trifles_are_left_out():
    slow = replace(CALM, programs=0.5, core_gb_per_s=1.78, memory_gb_per_s=26.0)
    said = explain("decode", slow, CALM, 0.3)
    assert said.index("other programs") < said.index("memory was read") and "a core ran" not in said


def test_a_condition_that_goes_with_the_figure_is_named_with_its_correlation():
    rng = np.random.default_rng(0)
    memory = rng.normal(28.0, 2.0, 40)
    runs = [run(rate=4.0 * m + e, memory=m) for m, e in zip(memory, rng.normal(0.0, 1.0, 40), strict=True)]
    said = explain("decode", replace(CALM, memory_gb_per_s=26.0), CALM, 0.13, runs)
    assert said.startswith("memory was read 13% slower") and said.endswith("over 40 runs]")
    assert float(said.split("rank correlation ")[1].split()[0]) > 0.9


def test_a_condition_that_the_figure_does_not_follow_is_no_cause():
    rng = np.random.default_rng(0)
    faster_beside_slow_memory = [run(rate=100.0 - m, memory=m) for m in rng.normal(28.0, 2.0, 40)]
    said = explain("decode", replace(CALM, memory_gb_per_s=26.0), CALM, 0.13, faster_beside_slow_memory)
    assert said.startswith("cause not found") and "memory 26.0 GB/s and 30.0 GB/s" in said
    beside_nothing = [run(rate=100.0 + n % 2, memory=m) for n, m in enumerate(np.repeat(rng.normal(28.0, 2.0, 20), 2))]
    assert "cause not found" in explain("decode", replace(CALM, memory_gb_per_s=26.0), CALM, 0.13, beside_nothing)


def test_few_runs_say_nothing_of_what_goes_with_what():
    runs = [run(rate=100.0 - m, memory=m) for m in (26.0, 28.0, 30.0)]
    assert explain("decode", replace(CALM, memory_gb_per_s=26.0), CALM, 0.13, runs).startswith("memory was read 13%")


def test_the_figures_are_correlated_apart():
    waits = np.linspace(0.0, 0.3, 20)
    runs = [run(rate=5.0 * (1 - w), waited=float(w), figure="prefill") for w in waits]
    slow = replace(CALM, waited={"decode": 0.3, "prefill": 0.3})
    assert "[rank correlation -1.00 over 20 runs]" in explain("prefill", slow, CALM, 0.3, runs)
    assert "rank correlation" not in explain("decode", slow, CALM, 0.3, runs), "decode did not vary there"


def test_what_disturbed_all_profiles_alike_is_said():
    busy = replace(CALM, programs=1.5, stolen=0.1)
    assert explain("decode", busy, busy, 0.2) == (
        "the machine was busy throughout: other programs used 1.50 of 2 cores in the slowest and 1.50 in the fastest; "
        "the hypervisor withheld 5% of the CPUs in the slowest and 5% in the fastest (steal time)"
    )


def test_a_cause_too_small_for_the_loss_is_said_to_be_one():
    assert "which explains a part of it only" in explain("decode", replace(CALM, memory_gb_per_s=28.0), CALM, 0.5)


def test_nothing_that_was_not_measured_is_named_as_a_cause_or_as_equal():
    said = explain("decode", replace(BARE, virtual=True), BARE, 0.2)
    assert said == (
        "cause not found: other programs used 0.02 of 2 cores in the slowest and 0.02 in the fastest, "
        "steal 0.00 and 0.00, one core 1.80 GB/s and 1.80 GB/s; not measured: threads waiting for a CPU, clock, "
        "products on all threads, memory, temperature; a virtual machine: what others on its host take of shared cores "
        "and caches, no counter here tells"
    )
    measured_once = replace(BARE, memory_gb_per_s=10.0)
    assert "memory was read" not in explain("decode", measured_once, replace(BARE, temperature_c=90.0), 0.2)


def test_where_all_was_measured_and_nothing_differs_that_is_said_with_the_readings():
    said = explain("prefill", CALM, CALM, 0.2)
    assert said.startswith("cause not found: ") and "not measured" not in said and "virtual" not in said
    assert "threads waiting for a CPU 0.2% and 0.2%" in said and "products on all threads 300 G/s and 300 G/s" in said
