"""Bamba: Mamba-2 layers with a few of attention between, a gated feed-forward layer after each."""

from typing import Any

from onnxscript import nn

from edgeslim.exporters.ssm.attention import Attention, Rotary
from edgeslim.exporters.ssm.model import Backbone, CausalLM, TwoStepLayer
from edgeslim.exporters.ssm.parts import ACTIVATIONS, Embedding, GatedMLP, RMSNorm
from edgeslim.exporters.ssm.state_space import StateSpaceMixer


def bamba(config: Any) -> CausalLM:
    """Return the model of a BambaConfig."""
    hidden, eps = config.hidden_size, config.rms_norm_eps
    head_size = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
    layers = [
        TwoStepLayer(
            norms=[("input_layernorm", RMSNorm(hidden, eps)), ("pre_ff_layernorm", RMSNorm(hidden, eps))],
            mixer=mixer(config, kind, head_size),
            feed_forward=("feed_forward", _feed_forward(config)),
        )
        for kind in config.layers_block_type
    ]
    backbone = Backbone(
        embedding=("embed_tokens", Embedding(config.vocab_size, hidden)),
        layers=layers,
        norm=("final_layernorm", RMSNorm(hidden, eps)),
        rotary=Rotary(config, head_size=head_size),
    )
    return CausalLM("model", backbone, vocabulary=config.vocab_size, hidden=hidden, tied=config.tie_word_embeddings)


def mamba2_mixer(config: Any, **more: Any) -> StateSpaceMixer:
    """Return the mixer of a configuration with Bamba's names for its sizes; `more` is what a family has beside them."""
    return StateSpaceMixer(
        config.hidden_size,
        heads=config.mamba_n_heads,
        head_size=config.mamba_d_head,
        state=config.mamba_d_state,
        groups=config.mamba_n_groups,
        taps=config.mamba_d_conv,
        eps=config.rms_norm_eps,
        bias=config.mamba_proj_bias,
        conv_bias=config.mamba_conv_bias,
        limits=config.time_step_limit,
        **more,
    )


def mixer(config: Any, kind: str, head_size: int, scale: float | None = None) -> tuple[str, nn.Module]:
    """Return name and module of a layer of `kind`; `scale` of the attention's products, None: 1 / sqrt(head_size)."""
    if kind == "linear_attention":
        return "mamba", mamba2_mixer(config)
    return "self_attn", Attention(
        config.hidden_size,
        config.hidden_size,
        heads=config.num_attention_heads,
        key_heads=config.num_key_value_heads,
        head_size=head_size,
        bias=config.attention_bias,
        scale=scale,
    )


def _feed_forward(config: Any) -> GatedMLP:
    activation = ACTIVATIONS[config.hidden_act]
    return GatedMLP(config.hidden_size, config.intermediate_size, activation=activation, bias=config.mlp_bias)
