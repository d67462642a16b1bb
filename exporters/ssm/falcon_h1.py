"""Falcon-H1 (arXiv 2507.22448): attention and a Mamba-2 mixer side by side in every layer, constants everywhere."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder, nn

from edgeslim.exporters.ssm.attention import Attention, Rotary
from edgeslim.exporters.ssm.bamba import mamba2_mixer
from edgeslim.exporters.ssm.model import Backbone, CausalLM, Context, Shapes, States
from edgeslim.exporters.ssm.parts import ACTIVATIONS, Embedding, GatedMLP, RMSNorm, scaled
from edgeslim.exporters.ssm.state_space import StateSpaceMixer


def falcon_h1(config: Any) -> CausalLM:
    """Return the model of a FalconH1Config."""
    hidden, eps = config.hidden_size, config.rms_norm_eps
    backbone = Backbone(
        embedding=("embed_tokens", Embedding(config.vocab_size, hidden)),
        layers=[ParallelLayer(config) for _ in range(config.num_hidden_layers)],
        norm=("final_layernorm", RMSNorm(hidden, eps)),
        rotary=Rotary(config, head_size=_head_size(config)),
        embedding_scale=config.embedding_multiplier,
    )
    return CausalLM(
        "model",
        backbone,
        vocabulary=config.vocab_size,
        hidden=hidden,
        tied=config.tie_word_embeddings,
        logit_scale=config.lm_head_multiplier,
    )


class ParallelLayer(nn.Module):
    """Norm, the sum of both mixers, residual; norm, feed-forward, residual."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = RMSNorm(hidden, eps)
        self.mamba = _mixer(config)
        self.self_attn = _attention(config)
        self.pre_ff_layernorm = RMSNorm(hidden, eps)
        self.feed_forward = _feed_forward(config)
        self.input_scale = config.attention_in_multiplier
        self.scales = (config.ssm_out_multiplier, config.attention_out_multiplier)
        self.states: Shapes = {**self.self_attn.states, **self.mamba.states}

    def forward(
        self, op: OpBuilder, x: ir.Value, past: Mapping[str, ir.Value], context: Context
    ) -> tuple[ir.Value, States]:
        normed = self.input_layernorm(op, x)
        recurrent, states = self.mamba(op, normed, past)
        attended, cache = self.self_attn(op, scaled(op, normed, self.input_scale), past, *context.attention)
        both = op.Add(scaled(op, recurrent, self.scales[0]), scaled(op, attended, self.scales[1]))
        x = op.Add(x, both)
        return op.Add(x, self.feed_forward(op, self.pre_ff_layernorm(op, x))), {**states, **cache}


def _head_size(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _attention(config: Any) -> Attention:
    size = _head_size(config)
    return Attention(
        config.hidden_size,
        config.hidden_size,
        heads=config.num_attention_heads,
        key_heads=config.num_key_value_heads,
        head_size=size,
        bias=config.attention_bias,
        scale=config.key_multiplier / size**0.5,  # the keys' constant: a rotation commutes with it
    )


def _mixer(config: Any) -> StateSpaceMixer:
    inner = config.mamba_d_ssm if config.mamba_d_ssm is not None else int(config.mamba_expand * config.hidden_size)
    shared = config.mamba_n_groups * config.mamba_d_state
    sizes = (inner, inner, shared, shared, config.mamba_n_heads)  # z, x, B, C, step
    return mamba2_mixer(
        config,
        output_bias=config.projectors_bias,
        norm=config.mamba_rms_norm,
        gate_first=not config.mamba_norm_before_gate,
        input_scale=config.ssm_in_multiplier,
        scales=np.repeat(np.asarray(config.ssm_multipliers, np.float32), sizes),
    )


def _feed_forward(config: Any) -> GatedMLP:
    gate_scale, output_scale = config.mlp_multipliers
    return GatedMLP(
        config.hidden_size,
        config.intermediate_size,
        activation=ACTIVATIONS[config.hidden_act],
        bias=config.mlp_bias,
        gate_scale=gate_scale,
        output_scale=output_scale,
    )
