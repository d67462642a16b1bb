"""Nemotron-H (arXiv 2504.03624) without experts: layers of one mixer each, Mamba-2, attention or feed-forward."""

from typing import Any

from onnxscript import nn

from edgeslim.errors import ExportError
from edgeslim.exporters.ssm.attention import Attention
from edgeslim.exporters.ssm.model import Backbone, CausalLM, Layer
from edgeslim.exporters.ssm.parts import ACTIVATIONS, Embedding, PlainMLP, RMSNorm
from edgeslim.exporters.ssm.state_space import StateSpaceMixer


def nemotron_h(config: Any) -> CausalLM:
    """Return the model of a NemotronHConfig.

    Raises: ExportError for one with experts.
    """
    hidden, eps = config.hidden_size, config.layer_norm_epsilon
    backbone = Backbone(
        embedding=("embeddings", Embedding(config.vocab_size, hidden)),
        layers=[Layer(("norm", RMSNorm(hidden, eps)), ("mixer", _mixer(config, k))) for k in config.layers_block_type],
        norm=("norm_f", RMSNorm(hidden, eps)),
    )
    return CausalLM("model", backbone, vocabulary=config.vocab_size, hidden=hidden, tied=config.tie_word_embeddings)


def _mixer(config: Any, kind: str) -> nn.Module:
    if kind == "mlp":
        activation = ACTIVATIONS[config.mlp_hidden_act]
        return PlainMLP(config.hidden_size, config.intermediate_size, activation, bias=config.mlp_bias)
    if kind == "full_attention":
        return Attention(
            config.hidden_size,
            config.hidden_size,
            heads=config.num_attention_heads,
            key_heads=config.num_key_value_heads,
            head_size=config.head_dim,
        )
    if kind != "linear_attention":
        raise ExportError(f"nemotron_h with a layer of kind {kind!r} cannot be exported; expected no experts")
    return StateSpaceMixer(
        config.hidden_size,
        heads=config.mamba_num_heads,
        head_size=config.mamba_head_dim,
        state=config.ssm_state_size,
        groups=config.n_groups,
        taps=config.conv_kernel,
        eps=config.layer_norm_epsilon,
        bias=config.use_bias,
        conv_bias=config.use_conv_bias,
        limits=(config.time_step_min, float("inf")),
    )
