"""A whole model whose blocks can be passed by, and its loss on calibration windows with some of them gone.

Blocks before the one that is tried are not run again: their output is kept and put in where it belongs.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

States = list[Tensor]
"""Hidden states between two blocks, one tensor [windows, tokens, hidden] a batch."""

_BATCH_TOKENS = 1024


class SheddableModel:
    """`model`, its decoder `blocks`, and the calibration `tokens`, int64 [windows, tokens]."""

    def __init__(self, model: nn.Module, blocks: Sequence[nn.Module], tokens: Tensor) -> None:
        self.model, self.blocks = model, list(blocks)
        self.gone: set[int] = set()
        self._batches = tokens.split(max(1, _BATCH_TOKENS // tokens.shape[1]))
        self._returns = 0  # how many values a block returns as a tuple; 0: its output alone
        self._probe()

    @torch.no_grad()
    def embedded(self) -> States:
        """Return what enters the first block."""
        return [self._caught(0, batch, None) for batch in range(len(self._batches))]

    @torch.no_grad()
    def loss(self, start: int = 0, states: States | None = None) -> float:
        """Return the mean negative log-likelihood in nats a token, where `states` enter block `start`.

        The blocks before it are not run; neither are those that are `gone`.
        """
        total, count = 0.0, 0
        for number, tokens in enumerate(self._batches):
            with self._stubs(start, None if states is None else states[number]):
                logits = self.model(input_ids=tokens, use_cache=False).logits[:, :-1].float()
            targets = tokens[:, 1:].flatten()
            total += nn.functional.cross_entropy(logits.flatten(0, 1), targets, reduction="sum").item()
            count += len(targets)
        return total / count

    @torch.no_grad()
    def advance(self, index: int, states: States) -> States:
        """Return what leaves block `index` where `states` enter it."""
        if index in self.gone:
            return states
        return [self._caught(index + 1, number, state, run=index) for number, state in enumerate(states)]

    def _probe(self) -> None:
        """Learn in which form blocks return their output."""

        def look(_: nn.Module, __: Any, out: Any) -> None:
            self._returns = len(out) if isinstance(out, tuple) else 0

        handle = self.blocks[0].register_forward_hook(look)
        with torch.no_grad():
            self.model(input_ids=self._batches[0][:1, :2], use_cache=False)
        handle.remove()

    def _caught(self, index: int, batch: int, state: Tensor | None, run: int = -1) -> Tensor:
        """Return what enters block `index` (or would, behind the last), with `state` entering block `run`."""
        found: list[Tensor] = []

        def catch(*args: Any, **kwargs: Any) -> Any:
            found.append(_hidden(args, kwargs))
            raise _Caught

        def keep(_: nn.Module, __: Any, out: Any) -> None:
            found.append(out[0] if isinstance(out, tuple) else out)
            raise _Caught

        handle = self.blocks[run].register_forward_hook(keep) if run >= 0 else None
        try:
            with self._stubs(max(run, 0), state):
                if run < 0:
                    self.blocks[index].forward = catch
                try:
                    self.model(input_ids=self._batches[batch], use_cache=False)
                except _Caught:
                    return found[0]
        finally:
            if handle is not None:
                handle.remove()
        raise AssertionError("the model's forward never came to its blocks")

    @contextmanager
    def _stubs(self, start: int, state: Tensor | None) -> Iterator[None]:
        """Let the blocks before `start` hand `state` on, and those that are gone what they are given."""
        for index, block in enumerate(self.blocks):
            if index < start:
                block.forward = self._passing(state)
            elif index in self.gone:
                block.forward = self._passing(None)
        try:
            yield
        finally:
            for block in self.blocks:
                block.__dict__.pop("forward", None)

    def _passing(self, state: Tensor | None) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            hidden = _hidden(args, kwargs) if state is None else state
            return (hidden, *[None] * (self._returns - 1)) if self._returns else hidden

        return forward


class _Caught(Exception):
    """Ends a forward pass whose rest is not needed."""


def _hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    hidden: Tensor = args[0] if args else kwargs["hidden_states"]
    return hidden
