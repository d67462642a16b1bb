"""Jamba (arXiv 2403.19887): Mamba-1 layers with a few of attention between; experts in some feed-forward layers."""

from typing import Any

from onnxscript import nn

from edgeslim.exporters.ssm.attention import Attention
from edgeslim.exporters.ssm.experts import Experts
from edgeslim.exporters.ssm.model import Backbone, CausalLM, TwoStepLayer
from edgeslim.exporters.ssm.parts import ACTIVATIONS, Embedding, GatedMLP, RMSNorm
from edgeslim.exporters.ssm.selective import SelectiveMixer


def jamba(config: Any) -> CausalLM:
    """Return the model of a JambaConfig."""
    hidden, eps = config.hidden_size, config.rms_norm_eps
    layers = [
        TwoStepLayer(
            norms=[("input_layernorm", RMSNorm(hidden, eps)), ("pre_ff_layernorm", RMSNorm(hidden, eps))],
            mixer=_mixer(config, kind),
            feed_forward=("feed_forward", _feed_forward(config, experts)),
        )
        for kind, experts in zip(config.layers_block_type, config.layers_num_experts, strict=True)
    ]
    backbone = Backbone(
        embedding=("embed_tokens", Embedding(config.vocab_size, hidden)),
        layers=layers,
        norm=("final_layernorm", RMSNorm(hidden, eps)),
    )
    return CausalLM("model", backbone, vocabulary=config.vocab_size, hidden=hidden, tied=config.tie_word_embeddings)


def _mixer(config: Any, kind: str) -> tuple[str, nn.Module]:
    if kind == "attention":
        return "self_attn", Attention(
            config.hidden_size,
            config.hidden_size,
            heads=config.num_attention_heads,
            key_heads=config.num_key_value_heads,
            head_size=config.hidden_size // config.num_attention_heads,
        )
    return "mamba", SelectiveMixer(
        config.hidden_size,
        config.mamba_expand * config.hidden_size,
        state=config.mamba_d_state,
        rank=config.mamba_dt_rank,
        taps=config.mamba_d_conv,
        bias=config.mamba_proj_bias,
        conv_bias=config.mamba_conv_bias,
        norm_eps=config.rms_norm_eps,
        norm_weights=True,
    )


def _feed_forward(config: Any, experts: int) -> nn.Module:
    activation = ACTIVATIONS[config.hidden_act]
    if experts == 1:
        return GatedMLP(config.hidden_size, config.intermediate_size, activation=activation)
    sizes = (config.hidden_size, config.intermediate_size)
    return Experts(*sizes, count=experts, chosen=config.num_experts_per_tok, activation=activation)
