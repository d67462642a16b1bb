"""Recall prompts hold what they ask for, where the distance says, and nothing that gives it away."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeslim.errors import EvaluationError
from edgeslim.evaluate.recall import RecallTask, RecallVocabulary, recall_prompt, recall_prompts

VOCABULARY = RecallVocabulary(first=5, size=40)


@given(st.integers(1, 12), st.integers(0, 30), st.integers(0, 20), st.integers(0, 1000), st.data())
def test_a_key_value_prompt_asks_for_keys_of_its_list_and_answers_with_their_values(items, distance, extra, seed, data):
    queries = data.draw(st.integers(1, items))
    plain = RecallTask(items=items, distance=distance, queries=queries, vocabulary=VOCABULARY)
    task = RecallTask(
        items=items,
        distance=distance,
        queries=queries,
        vocabulary=VOCABULARY,
        length=plain.least_length + extra,
    )
    made = recall_prompt(task, seed=seed)
    tokens = list(made.tokens)
    start = tokens.index(VOCABULARY.list_marker) + 1
    pairs = dict(zip(tokens[start : start + 2 * items : 2], tokens[start + 1 : start + 2 * items : 2], strict=True))
    assert len(pairs) == len(set(pairs.values())) == items
    assert start == extra + 1
    assert len(made.prompt) == task.length
    assert tokens.index(VOCABULARY.ask_marker) == start + 2 * items + distance
    assert all(tokens[p] == pairs[tokens[p - 1]] and tokens[p - 2] == VOCABULARY.ask_marker for p in made.answers)
    assert len({tokens[p - 1] for p in made.answers}) == queries
    filler = tokens[: start - 1] + tokens[start + 2 * items : start + 2 * items + distance]
    assert all(token in VOCABULARY.filler for token in filler)


@given(st.integers(1, 12), st.integers(0, 30), st.integers(0, 1000))
def test_a_copy_prompt_is_answered_by_its_list(items, distance, seed):
    task = RecallTask(kind="copy", items=items, distance=distance, vocabulary=VOCABULARY)
    made = recall_prompt(task, seed=seed)
    assert made.tokens[0] == VOCABULARY.list_marker
    assert made.tokens[made.answers[0] - 1] == VOCABULARY.copy_marker
    assert tuple(made.tokens[p] for p in made.answers) == made.tokens[1 : 1 + items]
    assert len(made.prompt) == task.least_length == 1 + items + distance + 1


def test_roles_of_the_vocabulary_share_no_id_and_fill_it():
    markers = [VOCABULARY.list_marker, VOCABULARY.ask_marker, VOCABULARY.copy_marker]
    ids = [*markers, *VOCABULARY.keys, *VOCABULARY.values, *VOCABULARY.filler]
    assert sorted(ids) == list(range(5, 45))


def test_prompts_follow_from_seed_and_index_alone():
    task = RecallTask(items=3, distance=10)
    assert list(recall_prompts(task, 4, seed=1))[2] == recall_prompt(task, seed=1, index=2)
    assert recall_prompt(task, seed=1) != recall_prompt(task, seed=2)


def test_chance_is_that_of_knowing_the_list_without_its_order():
    assert RecallTask(items=4).chance == 1 / 4
    assert RecallTask(items=4, queries=2).chance == pytest.approx((1 / 4 + 1 / 3) / 2)
    assert RecallTask(kind="copy", items=2).chance == pytest.approx((1 / 2 + 1) / 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "keyvalues"}, "did you mean 'keyvalue'"),
        ({"items": 99}, r"items must be in \[1, 20\]"),
        ({"distance": -1}, "distance must be at least 0"),
        ({"items": 2, "queries": 3}, "queries must be in"),
        ({"items": 4, "distance": 8, "length": 18}, "length must be at least 19"),
    ],
)
def test_what_cannot_be_meant_is_refused(options, message):
    with pytest.raises(EvaluationError, match=message):
        RecallTask(**options)
