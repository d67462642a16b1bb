"""Mamba and Mamba-2 blocks with the scan's output in view, and with scans that go on from a state.

Written beside transformers' mixers, whose Mamba scan begins at zero and hides its output behind the gate. Fewer
tokens that leave a block need no further care: convolution and scan of the next one see the reduced sequence only.

Letters: B batch, N tokens, H hidden size, I inner channels, S state size, k convolution kernel, P channels convolved.
References: "Mamba" (arXiv 2312.00752), "Transformers are SSMs" (arXiv 2405.21060).
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from edgeslim.tokens.blocks import LayerState, Mixed
from edgeslim.tokens.importance import scan_importance
from edgeslim.tokens.methods import Seen

_CHUNK, _CHUNK2 = 32, 64
"""Tokens at once: in Mamba's scan those whose decays are computed, in Mamba-2's those between which all is."""


class _ScanBlocks(ABC):
    """What both families share. A layer's state: the last k - 1 inputs of the convolution [B, P, k - 1], the scan's."""

    def __init__(self, model: Any) -> None:
        self._base, self._head = model.backbone, model.lm_head
        self.depth = len(self._base.layers)

    def embed(self, tokens: Tensor) -> Tensor:
        return self._base.embeddings(tokens)  # type: ignore[no-any-return]

    def mix(self, layer: int, x: Tensor, positions: Tensor, state: LayerState | None) -> Mixed:
        block = self._base.layers[layer]
        branch, y, after = self._mixer(block.mixer, block.norm(x.to(block.norm.weight.dtype)), state)
        return Mixed(branch=branch, state=after, look=lambda metric: _look(y, metric))

    def finish(self, layer: int, x: Tensor) -> Tensor:
        return x

    def logits(self, x: Tensor) -> Tensor:
        return self._head(self._base.norm_f(x).to(self._head.weight.dtype)).float()  # type: ignore[no-any-return]

    def join(self, states: list[LayerState]) -> LayerState:
        return tuple(torch.cat(parts) for parts in zip(*states, strict=True))

    @abstractmethod
    def _mixer(self, mixer: Any, x: Tensor, state: LayerState | None) -> tuple[Tensor, Tensor, LayerState]:
        """Return the branch [B, N, H], the scan's output [B, N, I] before gate and norm, and the new state."""


def _look(y: Tensor, metric: str) -> Seen:
    return Seen(features=y, importance=scan_importance(y, metric))


class MambaBlocks(_ScanBlocks):
    """Mamba. The scan's state is [B, I, S]."""

    def _mixer(self, mixer: Any, x: Tensor, state: LayerState | None) -> tuple[Tensor, Tensor, LayerState]:
        before, gate = mixer.in_proj(x).transpose(1, 2).chunk(2, dim=1)
        mixed, window = _convolve(mixer, before, state)
        rank, size = mixer.time_step_rank, mixer.ssm_state_size
        step, b, c = mixer.x_proj(mixed.transpose(1, 2)).split([rank, size, size], dim=-1)
        step = functional.softplus(functional.linear(step, mixer.dt_proj.weight, mixer.dt_proj.bias).float())
        start = None if state is None else state[1]
        y, after = selective_scan(mixed.transpose(1, 2), step, -torch.exp(mixer.A_log.float()), b, c, start)
        y = y + mixed.transpose(1, 2) * mixer.D.float()
        branch = mixer.out_proj((y * functional.silu(gate.transpose(1, 2))).to(x.dtype))
        return branch, y, (window, after)


class Mamba2Blocks(_ScanBlocks):
    """Mamba-2. The scan's state is [B, heads, channels of a head, S]."""

    def _mixer(self, mixer: Any, x: Tensor, state: LayerState | None) -> tuple[Tensor, Tensor, LayerState]:
        gate, before, step = mixer.in_proj(x).split([mixer.intermediate_size, mixer.conv_dim, mixer.num_heads], dim=-1)
        mixed, window = _convolve(mixer, before.transpose(1, 2), state)
        width = mixer.n_groups * mixer.ssm_state_size
        values, b, c = mixed.transpose(1, 2).float().split([mixer.intermediate_size, width, width], dim=-1)
        values = values.unflatten(-1, (mixer.num_heads, -1))
        step = functional.softplus(step + mixer.dt_bias).clamp(*mixer.time_step_limit).float()
        b, c = b.unflatten(-1, (mixer.n_groups, -1)), c.unflatten(-1, (mixer.n_groups, -1))
        start = None if state is None else state[1]
        y, after = chunked_scan(values, step, -torch.exp(mixer.A_log.float()), b, c, start)
        y = (y + values * mixer.D[:, None].float()).flatten(2)
        return mixer.out_proj(mixer.norm(y, gate).to(x.dtype)), y, (window, after)


def chunked_scan(
    x: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return Mamba-2's ``y_t = C_t h_t`` with ``h_t = exp(step_t A) h_(t-1) + step_t x_t B_t``, and the last h.

    x: [B, N, heads, p]; step: [B, N, heads]; a: [heads]; b, c: [B, N, groups, S]; state: [B, heads, p, S], None: zero.
    Within chunks as products of matrices, between them by the state ("Transformers are SSMs", section 6).
    """
    heads, per_group = x.shape[2], x.shape[2] // b.shape[2]
    h = x.new_zeros(x.shape[0], heads, x.shape[3], b.shape[3]) if state is None else state
    outputs = []
    for start in range(0, x.shape[1], _CHUNK2):
        rows = slice(start, start + _CHUNK2)
        driven = (x[:, rows] * step[:, rows, :, None]).transpose(1, 2)
        into, out_of = (part[:, rows].transpose(1, 2).repeat_interleave(per_group, 1) for part in (b, c))
        decay = (step[:, rows] * a).double().cumsum(1).transpose(1, 2)  # differences of large sums: exact enough so
        between = (decay[..., :, None] - decay[..., None, :]).float()
        future = torch.ones_like(between[0, 0], dtype=torch.bool).triu(1)
        weights = (out_of @ into.transpose(2, 3)) * between.masked_fill(future, float("-inf")).exp()
        outputs.append(weights @ driven + decay.exp().float()[..., None] * (out_of @ h.transpose(2, 3)))
        left = (decay[..., -1:] - decay).exp().float()[..., None]
        h = decay[..., -1:, None].exp().float() * h + (driven * left).transpose(2, 3) @ into
    return torch.cat(outputs, 2).transpose(1, 2), h


def selective_scan(
    x: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return ``y_t = C_t h_t`` with ``h_t = exp(step_t A) h_(t-1) + step_t B_t x_t``, and the last h.

    x, step: [B, N, I]; a: [I, S]; b, c: [B, N, S]; state: [B, I, S], None: zero. Returns y [B, N, I] in float32.
    """
    x, b, c = x.float(), b.float(), c.float()
    h = x.new_zeros(x.shape[0], x.shape[2], a.shape[1]) if state is None else state
    outputs = []
    for start in range(0, x.shape[1], _CHUNK):
        rows = slice(start, start + _CHUNK)
        decay = torch.exp(step[:, rows, :, None] * a)
        driven = (step[:, rows] * x[:, rows])[..., None] * b[:, rows, None, :]
        states = []
        for t in range(decay.shape[1]):
            h = torch.addcmul(driven[:, t], decay[:, t], h)
            states.append(h)
        outputs.append((torch.stack(states, 1) @ c[:, rows, :, None])[..., 0])
    return torch.cat(outputs, 1), h


def _convolve(mixer: Any, x: Tensor, state: LayerState | None) -> tuple[Tensor, Tensor]:
    """Return the activated causal convolution of `x` [B, P, N], and its last k - 1 inputs [B, P, k - 1]."""
    weight = mixer.conv1d.weight
    reach = weight.shape[-1] - 1
    window = x.new_zeros(*x.shape[:2], reach) if state is None else state[0]
    padded = torch.cat([window, x], dim=-1)
    out = functional.conv1d(padded, weight, mixer.conv1d.bias, groups=weight.shape[0])
    return mixer.act(out), padded[..., padded.shape[-1] - reach :]
