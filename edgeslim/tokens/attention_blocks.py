"""Transformer blocks (Llama, Mistral, Qwen2, Qwen3) over keys that know their original positions.

Layers keep different numbers of tokens, so a mask comes from positions, not from slots: a query sees keys of its own
and earlier positions, within the layer's window where it has one. Rotary angles are those of the original tokens.

Letters: B batch, N tokens, K keys, H hidden size, Q query heads, G key heads, d channels of a head.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from edgeslim.tokens.blocks import LayerState, Mixed
from edgeslim.tokens.flops import layer_window
from edgeslim.tokens.importance import attention_importance, key_importance, scan_importance
from edgeslim.tokens.methods import Seen
from edgeslim.tokens.plan import LOOKING_BACK

NOWHERE = -1
"""The position of a slot that holds no token: what fills up the shorter samples of a batch."""


class AttentionBlocks:
    """The blocks of a transformer. A layer's state: keys and values [B, K, G, d], their positions [B, K]."""

    def __init__(self, model: Any) -> None:
        self._base, self._head = model.model, model.lm_head
        self.depth = len(self._base.layers)
        config = model.config.to_dict()
        self._windows = [layer_window(config, layer) for layer in range(self.depth)]

    def embed(self, tokens: Tensor) -> Tensor:
        return self._base.embed_tokens(tokens)  # type: ignore[no-any-return]

    def mix(self, layer: int, x: Tensor, positions: Tensor, state: LayerState | None) -> Mixed:
        block = self._base.layers[layer]
        attention = block.self_attn
        query, plain_key, value = _project(attention, block.input_layernorm(x))
        cos, sin = self._base.rotary_emb(x, position_ids=positions)
        query, key = _rotate(query, cos, sin), _rotate(plain_key, cos, sin)
        after = (key, value, positions)
        if state is not None:
            after = tuple(torch.cat(parts, 1) for parts in zip(state, after, strict=True))  # type: ignore[assignment]
        visible = _visible(positions, after[2], self._windows[layer])
        heads = query.shape[2] // key.shape[2]
        keys, values = (_for_queries(part, heads) for part in after[:2])
        out = functional.scaled_dot_product_attention(
            query.transpose(1, 2), keys, values, attn_mask=visible[:, None], scale=attention.scaling
        )
        out = out.transpose(1, 2).flatten(2)

        def look(metric: str) -> Seen:
            features = plain_key.flatten(2)
            if metric == "key-norm":
                return Seen(features=features, importance=key_importance(plain_key.transpose(1, 2)))
            if metric != "attention":
                return Seen(features=features, importance=scan_importance(out, metric))
            last = query[:, -LOOKING_BACK:].transpose(1, 2)
            scores = (last @ keys.transpose(2, 3)) * attention.scaling
            scores = scores.masked_fill(~visible[:, None, -LOOKING_BACK:], float("-inf"))
            return Seen(features=features, importance=attention_importance(scores.softmax(-1)))

        return Mixed(branch=attention.o_proj(out), state=after, look=look)

    def finish(self, layer: int, x: Tensor) -> Tensor:
        block = self._base.layers[layer]
        return x + block.mlp(block.post_attention_layernorm(x))  # type: ignore[no-any-return]

    def logits(self, x: Tensor) -> Tensor:
        return self._head(self._base.norm(x)).float()  # type: ignore[no-any-return]

    def join(self, states: list[LayerState]) -> LayerState:
        longest = max(state[2].shape[1] for state in states)
        padded = [_pad(state, longest) for state in states]
        return tuple(torch.cat(parts) for parts in zip(*padded, strict=True))


def _project(attention: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries [B, N, Q, d], keys and values [B, N, G, d], normed where the family does so, not rotated."""
    query, key, value = (
        projection(x).unflatten(-1, (-1, attention.head_dim))
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    if hasattr(attention, "q_norm"):
        query, key = attention.q_norm(query), attention.k_norm(key)
    return query, key, value


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate `x` [B, N, heads, d] by the angles of `cos` and `sin` [B, N, d]."""
    first, second = x.chunk(2, dim=-1)
    return x * cos[:, :, None] + torch.cat([-second, first], dim=-1) * sin[:, :, None]


def _visible(queries: Tensor, keys: Tensor, window: int | None) -> Tensor:
    """Return bool [B, N, K]: which of `keys` [B, K] each of `queries` [B, N] sees, by their positions."""
    distance = queries[:, :, None] - keys[:, None, :]
    visible = (distance >= 0) & (keys != NOWHERE)[:, None, :]
    return visible if window is None else visible & (distance < window)


def _for_queries(x: Tensor, heads: int) -> Tensor:
    """Return keys or values [B, K, G, d] as [B, G x `heads`, K, d], one for each query head."""
    return x.transpose(1, 2).repeat_interleave(heads, dim=1)


def _pad(state: LayerState, longest: int) -> LayerState:
    keys, values, positions = state
    missing = longest - positions.shape[1]
    return (
        functional.pad(keys, (0, 0, 0, 0, missing, 0)),
        functional.pad(values, (0, 0, 0, 0, missing, 0)),
        functional.pad(positions, (missing, 0), value=NOWHERE),
    )
