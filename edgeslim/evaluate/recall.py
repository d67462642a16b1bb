"""Prompts that ask for early context: key-value recall and copying, at chosen distances.

    key-value   filler*  LIST k1 v1 k2 v2 … kn vn  filler*  ASK k3  ->  v3   (ASK k1 -> v1 …)
    copy        filler*  LIST s1 s2 … sn           filler*  COPY    ->  s1 s2 … sn

Keys, values and filler are different ids, so nothing in the filler can be mistaken for an answer. Keys are distinct
and so are values; copied symbols are values. The filler before the list brings a prompt to a fixed length: where the
list lies then depends on the distance alone, which is what tells dropping early tokens from dropping useless ones.

Sources: associative recall as in "Zoology" (arXiv 2312.04927), copying as in "Repeat After Me" (arXiv 2402.01032).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from edgeslim.errors import EvaluationError, did_you_mean

Kind = Literal["keyvalue", "copy"]

_MARKERS = 3


@dataclass(frozen=True, kw_only=True)
class RecallVocabulary:
    """`size` token ids from `first` on: three markers, then keys, values and filler in equal parts."""

    first: int = 0
    size: int = 64

    def __post_init__(self) -> None:
        if self.first < 0:
            raise EvaluationError(f"first must be at least 0, got {self.first}")
        if self.size < _MARKERS + 3:
            raise EvaluationError(f"size must be at least {_MARKERS + 3}, got {self.size}")

    @property
    def list_marker(self) -> int:
        """The token before a list."""
        return self.first

    @property
    def ask_marker(self) -> int:
        """The token before a key that is asked for."""
        return self.first + 1

    @property
    def copy_marker(self) -> int:
        """The token after which the list is to be repeated."""
        return self.first + 2

    @property
    def keys(self) -> range:
        """The ids of keys."""
        start = self.first + _MARKERS
        return range(start, start + self._third)

    @property
    def values(self) -> range:
        """The ids of values, and of what is copied."""
        return range(self.keys.stop, self.keys.stop + self._third)

    @property
    def filler(self) -> range:
        """The ids that mean nothing."""
        return range(self.values.stop, self.first + self.size)

    @property
    def _third(self) -> int:
        return (self.size - _MARKERS) // 3


@dataclass(frozen=True, kw_only=True)
class RecallTask:
    """One kind of prompt: `items` pairs or symbols, `distance` filler tokens between the list and the (first) question.

    `length` is the number of tokens up to the first answer, None: nothing before the list. `queries` keys are asked
    for one after the other (key-value only), different ones.
    """

    kind: Kind = "keyvalue"
    items: int = 4
    distance: int = 0
    length: int | None = None
    queries: int = 1
    vocabulary: RecallVocabulary = field(default_factory=RecallVocabulary)

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise EvaluationError(f"unknown recall task {self.kind!r}{did_you_mean(self.kind, get_args(Kind))}")
        most = len(self.vocabulary.values)
        if not 1 <= self.items <= most:
            raise EvaluationError(f"items must be in [1, {most}], the values of the vocabulary, got {self.items}")
        if self.distance < 0:
            raise EvaluationError(f"distance must be at least 0, got {self.distance}")
        if not 1 <= self.queries <= (self.items if self.kind == "keyvalue" else 1):
            raise EvaluationError(f"queries must be in [1, items], and 1 for copy, got {self.queries}")
        if self.length is not None and self.length < self.least_length:
            raise EvaluationError(f"length must be at least {self.least_length} for this task, got {self.length}")

    @property
    def list_length(self) -> int:
        """Tokens of the list with its marker."""
        return 1 + self.items * (2 if self.kind == "keyvalue" else 1)

    @property
    def question_length(self) -> int:
        """Tokens from the (first) question's marker to the answer."""
        return 2 if self.kind == "keyvalue" else 1

    @property
    def least_length(self) -> int:
        """Tokens up to the first answer when nothing stands before the list."""
        return self.list_length + self.distance + self.question_length

    @property
    def chance(self) -> float:
        """The accuracy of knowing what the list holds, but not what belongs to a key or what comes next.

        Key-value: 1/items. Copy: the mean of 1/items, 1/(items-1), … 1, since what was said already is ruled out.
        Further queries rule out earlier answers too.
        """
        answers = self.items if self.kind == "copy" else self.queries
        return sum(1 / (self.items - said) for said in range(answers)) / answers


@dataclass(frozen=True)
class RecallPrompt:
    """A prompt with its answers: all `tokens`, and the `answers`' positions in them.

    The prompt proper is what lies before the first answer; what a model says at position ``p - 1`` is compared with
    the token at each position p of `answers`.
    """

    tokens: tuple[int, ...]
    answers: tuple[int, ...]

    @property
    def prompt(self) -> tuple[int, ...]:
        """The tokens before the first answer."""
        return self.tokens[: self.answers[0]]


def recall_prompt(task: RecallTask, *, seed: int, index: int = 0) -> RecallPrompt:
    """Return prompt number `index` of `task`; it follows from task, `seed` and `index` alone."""
    rng = np.random.default_rng([seed, index])
    vocabulary = task.vocabulary
    values = _draw(rng, vocabulary.values, task.items)
    keys = _draw(rng, vocabulary.keys, task.items)
    before = 0 if task.length is None else task.length - task.least_length
    tokens = [*_filler(rng, vocabulary, before), vocabulary.list_marker]
    tokens += values if task.kind == "copy" else [token for pair in zip(keys, values, strict=True) for token in pair]
    tokens += _filler(rng, vocabulary, task.distance)
    if task.kind == "copy":
        start = len(tokens) + 1
        return RecallPrompt((*tokens, vocabulary.copy_marker, *values), tuple(range(start, start + task.items)))
    answers = []
    for asked in rng.permutation(task.items)[: task.queries].tolist():
        tokens += [vocabulary.ask_marker, keys[asked], values[asked]]
        answers.append(len(tokens) - 1)
    return RecallPrompt(tuple(tokens), tuple(answers))


def recall_prompts(task: RecallTask, count: int, *, seed: int) -> Iterator[RecallPrompt]:
    """Yield the first `count` prompts of `task`; all are equally long."""
    return (recall_prompt(task, seed=seed, index=index) for index in range(count))


def _draw(rng: np.random.Generator, ids: range, count: int) -> list[int]:
    return [ids[int(i)] for i in rng.permutation(len(ids))[:count]]


def _filler(rng: np.random.Generator, vocabulary: RecallVocabulary, count: int) -> list[int]:
    return [vocabulary.filler[int(i)] for i in rng.integers(len(vocabulary.filler), size=count)]
