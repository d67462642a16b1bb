"""A prompt through a model with its tokens reduced on the way, and what comes after it, unreduced.

    prefilled = reduced_prefill(model, prompt, plan)
    logits, cache = extend(model, prefilled.cache, next_tokens)

Letters: B batch, N tokens of the prompt, K tokens left at the end, M further tokens, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from edgeslim.errors import EvaluationError
from edgeslim.tokens.blocks import Blocks, LayerState, blocks_of
from edgeslim.tokens.matching import take
from edgeslim.tokens.methods import Seen, choose
from edgeslim.tokens.plan import BEFORE_ALL, ReductionPlan
from edgeslim.tokens.step import mix

GONE = -1
"""What fills up positions where a sample of a batch has fewer tokens left than another."""


@dataclass(frozen=True, kw_only=True)
class PromptCache:
    """What a model remembers: the state of each layer, and the position [B] that the next token has."""

    layers: tuple[LayerState, ...]
    next_position: Tensor

    @property
    def key_lengths(self) -> tuple[int, ...]:
        """How many keys each layer of a transformer holds (with those that fill up shorter samples)."""
        return tuple(state[0].shape[1] for state in self.layers)


@dataclass(frozen=True, kw_only=True)
class Prefilled:
    """logits: [B, K, V] of the tokens left; positions: [B, K], theirs in the prompt, ascending; and the cache.

    Samples with fewer tokens left than others have them at the end of their row, after positions `GONE`.
    """

    logits: Tensor
    positions: Tensor
    cache: PromptCache


@torch.no_grad()
def reduced_prefill(
    model: Any, tokens: Tensor, plan: ReductionPlan | None, *, attention_mask: Tensor | None = None
) -> Prefilled:
    """Run the prompts `tokens` [B, N] through `model`, a transformers causal language model, reduced as `plan` says.

    `attention_mask` [B, N] is 0 at padding, before or after a sample; each sample is then reduced as if it were alone,
    and its positions count from its first token. Without a plan nothing is reduced.

    Raises: CheckpointError for a family whose tokens cannot be reduced, EvaluationError for a sample without tokens.
    """
    blocks = blocks_of(model)
    if attention_mask is None:
        return _prefill(blocks, tokens, plan)
    lengths = attention_mask.sum(1).tolist()
    if 0 in lengths:
        raise EvaluationError(f"sample {lengths.index(0)} of {len(lengths)} has no tokens")
    samples = [row[mask.bool()][None] for row, mask in zip(tokens, attention_mask, strict=True)]
    return _joined(blocks, [_prefill(blocks, sample, plan) for sample in samples])


@torch.no_grad()
def extend(model: Any, cache: PromptCache, tokens: Tensor) -> tuple[Tensor, PromptCache]:
    """Return the logits [B, M, V] of `tokens` [B, M] after what `cache` remembers, and the cache after them."""
    blocks = blocks_of(model)
    positions = cache.next_position[:, None] + torch.arange(tokens.shape[1], device=tokens.device)
    x, states = blocks.embed(tokens), []
    for layer, state in enumerate(cache.layers):
        mixed = blocks.mix(layer, x, positions, state)
        x = blocks.finish(layer, x + mixed.branch)
        states.append(mixed.state)
    return blocks.logits(x), PromptCache(layers=tuple(states), next_position=positions[:, -1] + 1)


def generate(
    model: Any, tokens: Tensor, plan: ReductionPlan | None, count: int, *, attention_mask: Tensor | None = None
) -> Tensor:
    """Return the `count` most likely tokens [B, count], one after the other, after the prompts `tokens` [B, N]."""
    return torch.stack(list(_greedy(model, tokens, plan, count, attention_mask)), 1)


def _greedy(
    model: Any, tokens: Tensor, plan: ReductionPlan | None, count: int, attention_mask: Tensor | None
) -> Iterator[Tensor]:
    prefilled = reduced_prefill(model, tokens, plan, attention_mask=attention_mask)
    logits, cache = prefilled.logits, prefilled.cache
    for written in range(count):
        chosen = logits[:, -1].argmax(-1)
        yield chosen
        if written + 1 < count:
            logits, cache = extend(model, cache, chosen[:, None])


def _prefill(blocks: Blocks, tokens: Tensor, plan: ReductionPlan | None) -> Prefilled:
    """Run prompts of one length."""
    batch, count = tokens.shape
    plan = plan if plan is not None and plan.reduces(count) else None
    step_at = {layer: step for step, layer in enumerate(plan.layers)} if plan is not None else {}
    positions = torch.arange(count, device=tokens.device).expand(batch, -1)
    x, states = blocks.embed(tokens), []
    if plan is not None and BEFORE_ALL in step_at:
        x, positions = _before_all(x, positions, plan)
    for layer in range(blocks.depth):
        mixed = blocks.mix(layer, x, positions, None)
        branch, residual = mixed.branch, x
        if plan is not None and layer in step_at:
            chosen = choose(plan, step_at[layer], mixed.look(plan.metric))
            if chosen is not None:
                branch, residual = mix(branch, chosen, chosen.hidden), mix(residual, chosen, chosen.residual)
                positions = positions.gather(1, chosen.kept)
        x = blocks.finish(layer, residual + branch)
        states.append(mixed.state)
    after = torch.full((batch,), count, device=tokens.device)
    return Prefilled(
        logits=blocks.logits(x), positions=positions, cache=PromptCache(layers=tuple(states), next_position=after)
    )


def _before_all(x: Tensor, positions: Tensor, plan: ReductionPlan) -> tuple[Tensor, Tensor]:
    """Return embeddings and positions of what a truncation leaves."""
    step = choose(plan, 0, Seen(features=x, importance=x[..., 0]))
    return (x, positions) if step is None else (take(x, step.kept), positions.gather(1, step.kept))


def _joined(blocks: Blocks, alone: list[Prefilled]) -> Prefilled:
    most = max(one.positions.shape[1] for one in alone)
    missing = [most - one.positions.shape[1] for one in alone]
    logits = [functional.pad(one.logits, (0, 0, less, 0)) for one, less in zip(alone, missing, strict=True)]
    positions = [functional.pad(one.positions, (less, 0), value=GONE) for one, less in zip(alone, missing, strict=True)]
    layers = tuple(blocks.join([one.cache.layers[layer] for one in alone]) for layer in range(blocks.depth))
    after = torch.cat([one.cache.next_position for one in alone])
    return Prefilled(
        logits=torch.cat(logits),
        positions=torch.cat(positions),
        cache=PromptCache(layers=layers, next_position=after),
    )
