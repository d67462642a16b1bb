"""State-space scans that train fast on a CPU, put into transformers' Mamba and Mamba-2 models.

transformers has no CPU kernel for either scan: Mamba's runs one Python step a token with all states kept for the
backward pass, Mamba-2's repeats keys and queries for every head. Here Mamba-2's is the chunked form of the paper
("Transformers are SSMs", listing 1) with the products shared by all heads, and Mamba's walks over the tokens in blocks
that stay in the caches and computes its states again in the backward pass.

Letters: B batch, L tokens, D channels, H heads, P channels a head, N state size.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, silu, softplus

BLOCK = 8
"""Tokens whose states Mamba's scan holds at a time."""


def use_fast_scans(model: nn.Module) -> None:
    """Make every Mamba and Mamba-2 mixer in `model` train with the scans below; parameters and results are the same.

    The mixers then take whole sequences from the start only: no cache, no mask.
    """
    for module in model.modules():
        forward = {"MambaMixer": mamba_mixer, "Mamba2Mixer": mamba2_mixer}.get(type(module).__name__)
        if forward is not None:
            module.forward = _without_cache(forward).__get__(module)  # type: ignore[method-assign]


def use_fast_mamba_everywhere() -> None:
    """Make every Mamba mixer of this process, those of models to come too, compute with the scan below."""
    from transformers.models.mamba.modeling_mamba import MambaMixer

    MambaMixer.forward = _without_cache(mamba_mixer)


def _without_cache(forward: Any) -> Any:
    def run(mixer: Any, hidden_states: Tensor, cache: Any = None, attention_mask: Any = None, **_: Any) -> Tensor:
        if cache is not None or attention_mask is not None:
            raise ValueError("a mixer with a training scan takes no cache and no mask; pass use_cache=False")
        result: Tensor = forward(mixer, hidden_states)
        return result

    return run


def mamba2_mixer(mixer: Any, hidden: Tensor) -> Tensor:
    """Return what transformers' Mamba2Mixer `mixer` returns for `hidden` [B, L, hidden size]."""
    inner, state = mixer.intermediate_size, mixer.n_groups * mixer.ssm_state_size
    gate, mixed, step = mixer.in_proj(hidden).split([inner, mixer.conv_dim, mixer.num_heads], -1)
    mixed = silu(causal_convolution(mixed, mixer.conv1d.weight[:, 0], mixer.conv1d.bias))
    values, keys, queries = mixed.split([inner, state, state], -1)
    step = softplus(step + mixer.dt_bias).clamp(*mixer.time_step_limit)
    values = values.unflatten(-1, (mixer.num_heads, mixer.head_dim))
    keys, queries = (part.unflatten(-1, (mixer.n_groups, -1)) for part in (keys, queries))
    scanned = chunked_scan(values, step, -mixer.A_log.exp(), keys, queries, mixer.chunk_size)
    scanned = scanned + values * mixer.D[:, None]
    result: Tensor = mixer.out_proj(mixer.norm(scanned.flatten(-2), gate))
    return result


def mamba_mixer(mixer: Any, hidden: Tensor) -> Tensor:
    """Return what transformers' MambaMixer `mixer` returns for `hidden` [B, L, hidden size]."""
    values, gate = mixer.in_proj(hidden).chunk(2, -1)
    values = silu(causal_convolution(values, mixer.conv1d.weight[:, 0], mixer.conv1d.bias))
    sizes = [mixer.time_step_rank, mixer.ssm_state_size, mixer.ssm_state_size]
    step, keys, queries = mixer.x_proj(values).split(sizes, -1)
    step = softplus(mixer.dt_proj(step))
    scanned = selective_scan(values, step, -mixer.A_log.exp(), keys, queries) + values * mixer.D
    result: Tensor = mixer.out_proj(scanned * silu(gate))
    return result


def causal_convolution(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the depthwise convolution of `inputs` [B, L, D] with `weight` [D, width], each token with those before it.

    Shifted products: for a few taps faster than the general convolution, above all backward.
    """
    width, tokens = weight.shape[1], inputs.shape[1]
    padded = pad(inputs, (0, 0, width - 1, 0))
    result = padded[:, :tokens] * weight[:, 0]
    for tap in range(1, width):
        result = result + padded[:, tap : tap + tokens] * weight[:, tap]
    return result if bias is None else result + bias


def chunked_scan(values: Tensor, step: Tensor, rate: Tensor, keys: Tensor, queries: Tensor, chunk: int) -> Tensor:
    """Return Mamba-2's scan [B, L, H, P] from an empty state: S_t = exp(step·rate)·S_{t-1} + step·k_t vᵀ, y_t = Sᵀ q_t.

    `values` [B, L, H, P], `step` [B, L, H], `rate` [H] (negative), `keys` and `queries` [B, L, G, N], H a multiple of
    G. Source: Dao and Gu 2024, section 6.
    """
    batch, tokens, heads, size = values.shape
    groups, per_group = keys.shape[2], heads // keys.shape[2]
    short = -tokens % chunk
    values, keys, queries = (pad(part, (0, 0, 0, 0, 0, short)) for part in (values, keys, queries))
    step = pad(step, (0, 0, 0, short))
    # [B, G, chunks, chunk, ...]: heads of a group share one product of queries and keys
    step = step.view(batch, -1, chunk, groups, per_group).permute(0, 3, 1, 4, 2)
    values = values.view(batch, -1, chunk, groups, per_group, size).permute(0, 3, 1, 4, 2, 5) * step[..., None]
    keys, queries = (
        part.view(batch, -1, chunk, groups, part.shape[-1]).permute(0, 3, 1, 2, 4) for part in (keys, queries)
    )
    decay = (step * rate.view(groups, 1, per_group, 1)).cumsum(-1)
    likeness = queries @ keys.mT
    within = (decay[..., :, None] - decay[..., None, :]).masked_fill(_future(chunk, values.device), -torch.inf).exp()
    result = (likeness[:, :, :, None] * within) @ values
    total = decay[..., -1]
    states = keys.mT[:, :, :, None] @ (values * (total[..., None] - decay).exp()[..., None])
    carried = _carry(states, total.exp())
    result = result + (queries[:, :, :, None] @ carried) * decay.exp()[..., None]
    return result.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, heads, size)[:, :tokens]


def _future(chunk: int, device: torch.device) -> Tensor:
    return torch.ones(chunk, chunk, dtype=torch.bool, device=device).triu(1)


def _carry(states: Tensor, kept: Tensor) -> Tensor:
    """Return the state before each chunk, given what each adds [B, G, chunks, heads, N, P] and the share it keeps."""
    before = [torch.zeros_like(states[:, :, 0])]
    for chunk in range(states.shape[2] - 1):
        before.append(before[-1] * kept[:, :, chunk, :, None, None] + states[:, :, chunk])
    return torch.stack(before, 2)


def selective_scan(values: Tensor, step: Tensor, rate: Tensor, keys: Tensor, queries: Tensor) -> Tensor:
    """Return Mamba's scan [B, L, D] from an empty state: s_t = exp(step·rate)·s_{t-1} + step·v_t k_t, y_t = s_t·q_t.

    `values` and `step` [B, L, D], `rate` [D, N] (negative), `keys` and `queries` [B, L, N]. Source: Gu and Dao 2023.
    """
    inputs = [part.transpose(0, 1).contiguous() for part in (step, step * values, keys, queries)]
    result: Tensor = _SelectiveScan.apply(*inputs, rate.T.contiguous())  # type: ignore[no-untyped-call]
    return result.transpose(0, 1)


class _SelectiveScan(torch.autograd.Function):
    """Tokens first, channels last: step and update [L, B, D], keys and queries [L, B, N], rate [N, D]."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(ctx: Any, step: Tensor, update: Tensor, keys: Tensor, queries: Tensor, rate: Tensor) -> Tensor:
        tokens, batch, channels = step.shape
        state = step.new_zeros(batch, *rate.shape)
        starts, result = [], step.new_empty(tokens, batch, channels)
        for start in range(0, tokens, BLOCK):
            block = slice(start, start + BLOCK)
            starts.append(state)
            _, states = _block_states(state, step[block], update[block], keys[block], rate)
            result[block] = (queries[block].unsqueeze(-2) @ states).squeeze(-2)
            state = states[-1].clone()
        ctx.save_for_backward(step, update, keys, queries, rate, *starts)
        return result

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        step, update, keys, queries, rate, *starts = ctx.saved_tensors
        gradients = tuple(torch.empty_like(part) for part in (step, update, keys, queries))
        for_rate = torch.zeros_like(rate)
        future = torch.zeros_like(starts[0])  # the loss's gradient by the state after the block
        for number in reversed(range(len(starts))):
            block = slice(number * BLOCK, (number + 1) * BLOCK)
            kept, states = _block_states(starts[number], step[block], update[block], keys[block], rate)
            gradients[3][block] = (states @ gradient[block].unsqueeze(-1)).squeeze(-1)
            by_state = queries[block].unsqueeze(-1) * gradient[block].unsqueeze(-2)
            for token in reversed(range(len(by_state))):
                by_state[token] += future
                future = by_state[token] * kept[token]
            gradients[1][block] = (keys[block].unsqueeze(-2) @ by_state).squeeze(-2)
            gradients[2][block] = (by_state @ update[block].unsqueeze(-1)).squeeze(-1)
            by_state *= kept
            by_state[1:] *= states[:-1]
            by_state[0] *= starts[number]
            gradients[0][block] = (by_state * rate).sum(-2)
            for_rate += (by_state * step[block].unsqueeze(-2)).sum((0, 1))
        return (*gradients, for_rate)


def _block_states(state: Tensor, step: Tensor, update: Tensor, keys: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
    """Return what each token keeps of the state and the states after each, both [tokens, B, N, D]."""
    kept = (step.unsqueeze(-2) * rate).exp_()
    states = keys.unsqueeze(-1) * update.unsqueeze(-2)
    for token in range(len(states)):
        states[token].addcmul_(kept[token], state)
        state = states[token]
    return kept, states
