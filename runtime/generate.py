"""Text generation as small functions over a session: prefill, choose a token, feed it, again.

Letters: B batch, T tokens, V vocabulary.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeslim.errors import RecipeError
from edgeslim.runtime.session import Logits, Session, Tokens


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen. Temperature 0 is greedy; `top_k` 0 and `top_p` 1 cut nothing off."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise RecipeError(f"temperature must be at least 0, got {self.temperature}")
        if self.top_k < 0:
            raise RecipeError(f"top_k must be at least 0, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise RecipeError(f"top_p must be in (0, 1], got {self.top_p}")


GREEDY = Sampling()


def generate(
    session: Session,
    prompt_tokens: Sequence[int],
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    eos_ids: Collection[int] = (),
) -> Iterator[int]:
    """Yield at most `max_new_tokens` tokens after `prompt_tokens`, starting from an empty session.

    Ends before the first token of `eos_ids` (it is not yielded), or when the model's context is full.
    """
    session.reset()
    logits = session.feed(_row(prompt_tokens))
    yield from decode(session, logits, max_new_tokens, sampling, eos_ids)


def go_on(
    session: Session,
    logits: Logits | None,
    prompt_tokens: Sequence[int],
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    eos_ids: Collection[int] = (),
) -> Iterator[int]:
    """Yield tokens as `generate` does, after what the session's state holds, with `logits` [1, V] at its end.

    `prompt_tokens` may be none where the state holds something. At the end all tokens yielded are in the state, as far
    as the model's context has room, so that another call goes on after them.
    """
    if logits is None or len(prompt_tokens) > 0:
        logits = session.feed(_row(prompt_tokens))
    start, new = session.position, []
    for token in decode(session, logits, max_new_tokens, sampling, eos_ids):
        new.append(token)
        yield token
    unfed = new[session.position - start :]
    if unfed and not is_full(session):
        session.feed(_row(unfed))


def decode(
    session: Session, logits: Logits, max_new_tokens: int, sampling: Sampling = GREEDY, eos_ids: Collection[int] = ()
) -> Iterator[int]:
    """Yield tokens as `generate` does, going on from the session's state and its last `logits` [1, V]."""
    rng = np.random.default_rng(sampling.seed)
    for remaining in range(max_new_tokens, 0, -1):
        token = choose(logits[0], sampling, rng)
        if token in eos_ids:
            return
        yield token
        if remaining == 1 or is_full(session):
            return
        logits = session.feed(_row([token]))


def is_full(session: Session) -> bool:
    """Return whether the session's context has no room for another token."""
    return session.context_length is not None and session.position >= session.context_length


def choose(logits: npt.NDArray[np.float32], sampling: Sampling, rng: np.random.Generator) -> int:
    """Return the next token for `logits` [V]: the largest, or one drawn by `sampling`."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    scaled = logits.astype(np.float64) / sampling.temperature
    kept = keep_top_p(keep_top_k(scaled, sampling.top_k), sampling.top_p)
    return int(rng.choice(len(kept), p=softmax(kept)))


def keep_top_k(logits: npt.NDArray[np.float64], k: int) -> npt.NDArray[np.float64]:
    """Return `logits` [V] with all but the `k` largest at -inf (those equal to the k-th stay); k = 0 keeps all."""
    if k == 0 or k >= len(logits):
        return logits
    return np.where(logits >= np.partition(logits, -k)[-k], logits, -np.inf)


def keep_top_p(logits: npt.NDArray[np.float64], p: float) -> npt.NDArray[np.float64]:
    """Return `logits` [V] with all but the fewest that together hold probability `p` at -inf (nucleus sampling)."""
    if p >= 1:
        return logits
    order = np.argsort(-logits, kind="stable")
    before = np.cumsum(softmax(logits)[order]) - softmax(logits)[order]
    dropped = order[before >= p]  # the most likely token has nothing before it: it always stays
    kept = logits.copy()
    kept[dropped] = -np.inf
    return kept


def softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return probabilities for `logits` [V]."""
    exp = np.exp(logits - logits.max())
    return np.asarray(exp / exp.sum())


def _row(tokens: Sequence[int]) -> Tokens:
    if len(tokens) == 0:
        raise RecipeError("the prompt has no tokens; give at least one")
    return np.asarray(tokens, dtype=np.int64)[None, :]
