"""How long a profile goes on, and which of its runs count."""

from dataclasses import replace

import pytest

from edgeslim.runtime.conditions import Sample
from edgeslim.runtime.settling import Settling
from edgeslim.runtime.steadiness import MOST_REPEATS, MOST_SECONDS, MOST_WARMUP

CALM = Sample(core_gb_per_s=1.8, products_g_per_s=300.0, memory_gb_per_s=30.0)


class Machine:
    """A machine whose samples a test sets, and its clock."""

    def __init__(self):
        self.now, self.time = CALM, 0.0

    def settling(self, *, repeats=3, warmup=0, best=None):
        return Settling(lambda: self.now, repeats=repeats, warmup=warmup, cores=2, best=best, clock=lambda: self.time)


def told(decode=0.5, prefill=0.1, *, waited=0.0, stolen=0.0):
    """One run as the measuring process tells it."""
    return {
        "prefill": prefill,
        "decode": decode,
        "steps": 50,
        "threads": 2,
        "waited": {"prefill": waited * 2 * prefill, "decode": waited * 2 * decode},
        "wall": decode + prefill,
        "busy": 2 * (decode + prefill) + stolen,
        "own": 2 * (decode + prefill),
        "stolen": stolen,
    }


def test_equal_runs_settle_after_as_many_as_were_asked_for():
    settling = Machine().settling(repeats=3)
    assert [settling.answer(told()) for _ in range(2)] == [{}, {}]
    assert settling.answer(told()) == {"warmup": 0, "counted": [0, 1, 2]}
    assert settling.remark() is None


def test_a_warm_up_goes_on_until_two_runs_are_alike_and_is_not_counted():
    settling = Machine().settling(repeats=2, warmup=1)
    for decode in (0.9, 0.7, 0.5, 0.5):
        assert settling.answer(told(decode)) == {}
    assert settling.answer(told()) == {}
    assert settling.answer(told()) == {"warmup": 4, "counted": [4, 5]}


def test_a_warm_up_that_never_calms_ends():
    settling = Machine().settling(repeats=2, warmup=1)
    for number in range(1 + MOST_WARMUP):
        assert settling.answer(told(0.5 + number / 10)) == {}
    assert settling.answer(told()) == {}
    assert settling.answer(told())["warmup"] == 1 + MOST_WARMUP


def test_runs_that_scatter_go_on_and_end_at_the_limit_of_runs():
    settling, decode = Machine().settling(repeats=3), (0.4, 0.5, 0.6, 0.7)
    answers = [settling.answer(told(decode[n * 7 % 4])) for n in range(3 * MOST_REPEATS)]
    assert not any(answers[:-1]) and answers[-1]["counted"] == list(range(3 * MOST_REPEATS))
    assert settling.done == settling.total == 3 * MOST_REPEATS


def test_runs_that_scatter_end_at_the_limit_of_time_but_not_before_as_many_as_were_asked_for():
    machine = Machine()
    settling = machine.settling(repeats=3)
    machine.time = MOST_SECONDS + 1
    assert [bool(settling.answer(told(d))) for d in (0.4, 0.7, 0.5)] == [False, False, True]


@pytest.mark.parametrize(
    ("disturbed", "sample", "said"),
    [
        (told(0.6, waited=0.1), CALM, "waited for a CPU"),
        (told(0.6, stolen=0.1), CALM, "had CPUs withheld"),
        (told(0.6), replace(CALM, core_gb_per_s=1.2), "met a slower core"),
        (told(0.6), replace(CALM, products_g_per_s=200.0), "met a slower product on all threads"),
        (told(0.6), replace(CALM, memory_gb_per_s=20.0), "met a slower memory"),
    ],
    ids=["waited", "stolen", "core", "products", "memory"],
)
def test_a_run_that_met_another_machine_does_not_count_and_is_said_not_to(disturbed, sample, said):
    machine = Machine()
    settling = machine.settling(repeats=4)
    settling.answer(told())
    machine.now = sample
    settling.answer(disturbed)
    machine.now = CALM
    if sample is not CALM:
        settling.answer(told(0.6))  # the sample before it is the slow one
    while not (answer := settling.answer(told())):
        pass
    left_out = 1 if sample is CALM else 2
    assert answer["counted"] == [0, *range(1 + left_out, 4 + left_out)]
    assert settling.remark() == f"{left_out} of {4 + left_out} runs do not count: {left_out} {said}"


def test_a_slow_run_beside_nothing_measured_counts():
    settling = Machine().settling(repeats=3)
    settling.answer(told())
    settling.answer(told(0.9))
    while not (answer := settling.answer(told())):
        pass
    assert 1 in answer["counted"] and settling.remark() is None


def test_where_hardly_a_run_met_a_machine_of_its_own_all_count_and_that_is_said():
    settling = Machine().settling(repeats=3)
    for number in range(3 * MOST_REPEATS):
        answer = settling.answer(told(waited=0.0 if number < 2 else 0.2))
    assert answer["counted"] == list(range(60))
    assert settling.remark() == "all 60 runs count: 2 met an undisturbed machine (58 waited for a CPU)"


def test_a_few_undisturbed_runs_among_many_disturbed_ones_do_not_stand_for_them():
    settling = Machine().settling(repeats=3)
    for number in range(3 * MOST_REPEATS):
        answer = settling.answer(told(0.5 + number % 7 / 20, waited=0.0 if number % 6 == 0 else 0.2))
    assert len(answer["counted"]) == 60
    assert settling.remark() == "all 60 runs count: 10 met an undisturbed machine (50 waited for a CPU)"


def test_the_machine_s_better_moments_in_earlier_profiles_are_what_later_ones_are_held_to():
    machine = Machine()
    machine.now = replace(CALM, memory_gb_per_s=26.0)
    alone = machine.settling(repeats=2)
    alone.answer(told())
    assert alone.answer(told())["counted"] == [0, 1], "of itself it knows no better"
    held = machine.settling(repeats=2, best=CALM)
    assert held.best.memory_gb_per_s == 30.0
    held.answer(told())
    machine.now = CALM
    held.answer(told())
    held.answer(told())
    assert (
        held.answer(told())["counted"] == [2, 3] and held.remark() == "2 of 4 runs do not count: 2 met a slower memory"
    )


def test_what_is_not_measured_keeps_no_run_from_counting():
    machine = Machine()
    machine.now = Sample(core_gb_per_s=1.8, products_g_per_s=None, memory_gb_per_s=None)
    settling = machine.settling(repeats=2, best=CALM)
    settling.answer({**told(), "waited": None})
    assert settling.answer({**told(), "waited": None}) == {"warmup": 0, "counted": [0, 1]}
    assert settling.runs[0].waited is None
