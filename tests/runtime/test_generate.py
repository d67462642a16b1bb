"""Generation picks the tokens transformers picks, stops where it should and draws by the stated rules."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeslim.errors import RecipeError
from edgeslim.runtime.generate import GREEDY, Sampling, choose, generate, keep_top_k, keep_top_p, softmax
from edgeslim.runtime.native_library import is_available
from edgeslim.runtime.session import open_session

ENGINES = ["ort", "genai", *(["native"] if is_available() else [])]
PROMPT = [5, 60, 7, 200, 11, 9]


class Counting:
    """A session whose next token is always the last one fed plus one."""

    def __init__(self, vocab: int = 10, context: int | None = None) -> None:
        self.vocab, self.context_length, self.position = vocab, context, 0

    def reset(self, batch: int = 1) -> None:
        self.position = 0

    def feed(self, tokens: np.ndarray) -> np.ndarray:
        self.position += tokens.shape[1]
        return np.eye(self.vocab, dtype=np.float32)[[(tokens[0, -1] + 1) % self.vocab]]


@pytest.fixture(scope="module")
def greedy(exported):
    """Sixteen tokens by transformers' own greedy generation."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(exported.checkpoint).eval()
    tokens = model.generate(torch.tensor([PROMPT]), max_new_tokens=16, do_sample=False, eos_token_id=None)
    return tokens[0, len(PROMPT) :].tolist()


@pytest.mark.parametrize("engine", ENGINES)
def test_greedy_tokens_equal_those_of_transformers(exported, greedy, engine):
    assert list(generate(open_session(exported.bundle, engine), PROMPT, 16)) == greedy


def test_generation_ends_before_any_of_several_end_tokens():
    assert list(generate(Counting(), [1], 9, eos_ids=[9, 5])) == [2, 3, 4]
    assert list(generate(Counting(), [1], 9, eos_ids={7})) == [2, 3, 4, 5, 6]


def test_the_end_tokens_of_a_bundle_come_from_its_generation_config(bundle_copy):
    from edgeslim.runtime.config import read_config

    (bundle_copy / "generation_config.json").write_text('{"eos_token_id": [2, 7, 9]}')
    assert read_config(bundle_copy).eos_ids == {2, 7, 9}
    (bundle_copy / "generation_config.json").write_text("{}")
    assert read_config(bundle_copy).eos_ids == {2}


def test_no_more_tokens_come_than_asked_for():
    session = Counting()
    assert list(generate(session, [1], 3)) == [2, 3, 4]
    assert session.position == 3  # the last token is not fed: nobody asked what follows it
    assert list(generate(session, [1], 0)) == []


def test_generation_ends_where_the_context_is_full():
    assert list(generate(Counting(context=4), [1, 1], 9)) == [2, 3, 4]


def test_tokens_stream_one_by_one():
    stream = generate(Counting(), [1], 9)
    assert isinstance(stream, Iterator)
    assert next(stream) == 2


def test_every_generation_starts_from_an_empty_session():
    session = Counting()
    assert list(generate(session, [1], 2)) == list(generate(session, [1], 2))


def test_an_empty_prompt_is_refused():
    with pytest.raises(RecipeError, match="the prompt has no tokens"):
        next(generate(Counting(), [], 1))


def test_the_same_seed_draws_the_same_tokens_and_another_seed_others(llama):
    session = open_session(llama.bundle)
    one, again, other = (
        list(generate(session, PROMPT, 20, Sampling(temperature=3.0, seed=seed))) for seed in (1, 1, 2)
    )
    assert one == again != other


def test_temperature_zero_takes_the_largest_logit():
    assert choose(np.array([0.0, 3.0, 1.0], np.float32), GREEDY, np.random.default_rng(0)) == 1


def test_top_k_keeps_exactly_the_largest():
    assert np.isfinite(keep_top_k(np.array([0.0, 3.0, 1.0, 2.0]), 2)).tolist() == [False, True, False, True]


def test_top_p_keeps_the_fewest_that_hold_the_probability():
    logits = np.log([0.5, 0.3, 0.15, 0.05])
    for p, kept in ((0.4, 1), (0.49, 1), (0.51, 2), (0.79, 2), (0.81, 3), (1.0, 4)):
        assert np.isfinite(keep_top_p(logits, p)).sum() == kept, p


@given(st.lists(st.floats(-20, 20), min_size=1, max_size=30), st.floats(0.01, 1.0))
def test_top_p_is_the_smallest_prefix_by_probability(values, p):
    logits = np.array(values)
    kept = np.isfinite(keep_top_p(logits, p))
    probabilities = softmax(logits)
    assert probabilities[kept].sum() >= p - 1e-9
    assert probabilities[kept].sum() - probabilities[kept].min() < p + 1e-9
    assert probabilities[kept].min() >= probabilities[~kept].max(initial=0.0)


def test_draws_follow_the_tempered_distribution():
    logits = np.log(np.array([0.7, 0.2, 0.1], np.float32))
    rng = np.random.default_rng(0)
    drawn = np.bincount([choose(logits, Sampling(temperature=2.0), rng) for _ in range(4000)], minlength=3) / 4000
    expected = np.sqrt([0.7, 0.2, 0.1]) / np.sqrt([0.7, 0.2, 0.1]).sum()
    np.testing.assert_allclose(drawn, expected, atol=0.03)  # four standard errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature must be at least 0, got -1.0"),
        ({"temperature": float("nan")}, "temperature must be at least 0, got nan"),
        ({"top_k": -1}, "top_k must be at least 0, got -1"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
    ],
)
def test_sampling_that_cannot_be_meant_is_refused(options, message):
    with pytest.raises(RecipeError, match=message):
        Sampling(**options)
