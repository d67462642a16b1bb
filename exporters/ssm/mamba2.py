"""Mamba-2 (arXiv 2405.21060)."""

from typing import Any

from edgeslim.exporters.ssm.model import Backbone, CausalLM, Layer
from edgeslim.exporters.ssm.parts import Embedding, RMSNorm
from edgeslim.exporters.ssm.state_space import StateSpaceMixer


def mamba2(config: Any) -> CausalLM:
    """Return the model of a Mamba2Config."""
    hidden, eps = config.hidden_size, config.layer_norm_epsilon
    layers = [Layer(("norm", RMSNorm(hidden, eps)), ("mixer", _mixer(config))) for _ in range(config.num_hidden_layers)]
    backbone = Backbone(
        embedding=("embeddings", Embedding(config.vocab_size, hidden)),
        layers=layers,
        norm=("norm_f", RMSNorm(hidden, eps)),
    )
    return CausalLM("backbone", backbone, vocabulary=config.vocab_size, hidden=hidden, tied=config.tie_word_embeddings)


def _mixer(config: Any) -> StateSpaceMixer:
    low, high = config.time_step_limit
    return StateSpaceMixer(
        config.hidden_size,
        heads=config.num_heads,
        head_size=config.head_dim,
        state=config.state_size,
        groups=config.n_groups,
        taps=config.conv_kernel,
        eps=config.layer_norm_epsilon,
        bias=config.use_bias,
        conv_bias=config.use_conv_bias,
        limits=(low, high),
    )
