"""Zamba2 (arXiv 2411.15242): Mamba-2 layers, and one or more blocks of attention that several of them share.

A hybrid layer first runs its shared block on its input beside the embedded tokens; where a block returns it has the
same weights but adapters of low rank of its own.
"""

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
from onnxscript import OpBuilder, nn

from edgeslim.exporters.ssm.attention import Attention, Lengths, Rotary, realize
from edgeslim.exporters.ssm.model import Backbone, CausalLM, Context, Layer, Shapes, States
from edgeslim.exporters.ssm.parts import ACTIVATIONS, Embedding, Linear, RMSNorm
from edgeslim.exporters.ssm.state_space import StateSpaceMixer

_NORM_EPS = 1e-5  # of the gated norm, whatever the configuration says


def zamba2(config: Any) -> CausalLM:
    """Return the model of a Zamba2Config."""
    hidden, eps = config.hidden_size, config.rms_norm_eps
    rotary = Rotary(config, head_size=config.attention_head_dim) if config.use_mem_rope else None
    backbone = Backbone(
        embedding=("embed_tokens", Embedding(config.vocab_size, hidden)),
        layers=_layers(config),
        norm=("final_layernorm", RMSNorm(hidden, eps)),
        rotary=rotary,
    )
    return CausalLM("model", backbone, vocabulary=config.vocab_size, hidden=hidden, tied=config.tie_word_embeddings)


def _layers(config: Any) -> list[nn.Module]:
    blocks: list[SharedBlock] = []
    layers: list[nn.Module] = []
    count = 0
    for kind in config.layers_block_type:
        norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        mamba = Layer(("input_layernorm", norm), ("mamba", _mixer(config)))
        if kind != "hybrid":
            layers.append(mamba)
            continue
        if count < config.num_mem_blocks:
            blocks.append(SharedBlock(config, count))
        layers.append(HybridLayer(config, blocks[count % config.num_mem_blocks], count, mamba))
        count += 1
    return layers


class HybridLayer(nn.Module):
    """A Mamba-2 layer whose norm also sees what the shared block makes of the layer's input; `use` counts hybrids."""

    def __init__(self, config: Any, block: "SharedBlock", use: int, mamba: Layer) -> None:
        super().__init__()
        self.shared_transformer = block
        self.linear = Linear(config.hidden_size, config.hidden_size)
        self.mamba_decoder = mamba
        self.use = use
        self.states: Shapes = {**block.self_attn.states, **mamba.states}

    def forward(
        self, op: OpBuilder, x: ir.Value, past: Mapping[str, ir.Value], context: Context
    ) -> tuple[ir.Value, States]:
        realize(op, self.shared_transformer)  # all of it belongs to the first layer that has it
        shared, cache = self.shared_transformer(op, x, past, context, self.use)
        y, states = self.mamba_decoder(op, x, past, context, self.linear(op, shared))
        return y, {**cache, **states}


class SharedBlock(nn.Module):
    """Norm, attention, norm, feed-forward, without residuals, over twice the hidden size."""

    def __init__(self, config: Any, index: int) -> None:
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = RMSNorm(config.attention_hidden_size, eps)
        self.self_attn = AdaptedAttention(config, index)
        self.pre_ff_layernorm = RMSNorm(hidden, eps)
        self.feed_forward = AdaptedMLP(config, index)

    def forward(
        self, op: OpBuilder, x: ir.Value, past: Mapping[str, ir.Value], context: Context, use: int
    ) -> tuple[ir.Value, States]:
        both = self.input_layernorm(op, op.Concat(x, context.embedded, axis=-1))
        y, states = self.self_attn(op, both, past, *context.attention, use)
        return self.feed_forward(op, self.pre_ff_layernorm(op, y), use), states


class AdaptedAttention(Attention):
    """Attention whose queries, keys and values get a part of low rank for each use of the block."""

    def __init__(self, config: Any, index: int) -> None:
        size = config.attention_head_dim
        super().__init__(
            config.attention_hidden_size,
            config.hidden_size,
            heads=config.num_attention_heads,
            key_heads=config.num_key_value_heads,
            head_size=size,
            scale=(size / 2) ** -0.5,
        )
        self.adapted = config.use_shared_attention_adapter
        if self.adapted:
            sizes = (config.attention_hidden_size, config.adapter_rank, config.attention_hidden_size)
            self.linear_q_adapter_list = adapters(config, index, sizes)
            self.linear_k_adapter_list = adapters(config, index, sizes)
            self.linear_v_adapter_list = adapters(config, index, sizes)

    def forward(
        self,
        op: OpBuilder,
        x: ir.Value,
        past: Mapping[str, ir.Value],
        lengths: Lengths,
        rotary: tuple[ir.Value, ir.Value] | None,
        use: int = 0,
    ) -> tuple[ir.Value, States]:
        qkv = self.project(op, x)
        if self.adapted:
            lists = (self.linear_q_adapter_list, self.linear_k_adapter_list, self.linear_v_adapter_list)
            qkv = op.Add(qkv, op.Concat(*(adapter_list[use](op, x) for adapter_list in lists), axis=-1))
        return self.attend(op, qkv, past, lengths, rotary)


class AdaptedMLP(nn.Module):
    """A gated feed-forward layer whose gate and value get a part of low rank for each use of the block."""

    def __init__(self, config: Any, index: int) -> None:
        super().__init__()
        hidden, self.inner, bias = config.hidden_size, config.intermediate_size, config.add_bias_linear
        self.gate_up_proj = Linear(hidden, 2 * self.inner, bias=bias)
        self.down_proj = Linear(self.inner, hidden, bias=bias)
        self.gate_up_proj_adapter_list = adapters(config, index, (hidden, config.adapter_rank, 2 * self.inner))
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, op: OpBuilder, x: ir.Value, use: int) -> ir.Value:
        both = op.Add(self.gate_up_proj(op, x), self.gate_up_proj_adapter_list[use](op, x))
        gate, up = op.Split(both, [self.inner, self.inner], axis=-1, _outputs=2)
        return self.down_proj(op, op.Mul(up, self.activation(op, gate)))


class Adapter(nn.Module):
    """Two linears in a row; none at all for the uses that belong to another block."""

    def __init__(self, sizes: tuple[int, int, int] | None) -> None:
        super().__init__()
        if sizes is not None:
            setattr(self, "0", Linear(sizes[0], sizes[1]))
            setattr(self, "1", Linear(sizes[1], sizes[2]))

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        return getattr(self, "1")(op, getattr(self, "0")(op, x))


def adapters(config: Any, index: int, sizes: tuple[int, int, int]) -> nn.ModuleList:
    """Return one adapter for each hybrid layer, empty where the layer uses another block than number `index`."""
    own = [use % config.num_mem_blocks == index for use in range(len(config.hybrid_layer_ids))]
    return nn.ModuleList([Adapter(sizes if is_own else None) for is_own in own])


def _mixer(config: Any) -> StateSpaceMixer:
    return StateSpaceMixer(
        config.hidden_size,
        heads=config.n_mamba_heads,
        head_size=config.mamba_headdim,
        state=config.mamba_d_state,
        groups=config.mamba_ngroups,
        taps=config.mamba_d_conv,
        eps=_NORM_EPS,
        bias=config.add_bias_linear,
        limits=(config.time_step_min, float("inf")),
    )
