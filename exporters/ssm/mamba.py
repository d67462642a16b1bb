"""Mamba (arXiv 2312.00752) and Falcon-Mamba (arXiv 2410.05355), which norms step, B and C."""

from typing import Any

from edgeslim.exporters.ssm.model import Backbone, CausalLM, Layer
from edgeslim.exporters.ssm.parts import Embedding, RMSNorm
from edgeslim.exporters.ssm.selective import SelectiveMixer


def mamba(config: Any) -> CausalLM:
    """Return the model of a MambaConfig or FalconMambaConfig."""
    hidden, eps = config.hidden_size, config.layer_norm_epsilon
    layers = [Layer(("norm", RMSNorm(hidden, eps)), ("mixer", _mixer(config))) for _ in range(config.num_hidden_layers)]
    backbone = Backbone(
        embedding=("embeddings", Embedding(config.vocab_size, hidden)),
        layers=layers,
        norm=("norm_f", RMSNorm(hidden, eps)),
    )
    return CausalLM("backbone", backbone, vocabulary=config.vocab_size, hidden=hidden, tied=config.tie_word_embeddings)


def _mixer(config: Any) -> SelectiveMixer:
    return SelectiveMixer(
        config.hidden_size,
        config.intermediate_size,
        state=config.state_size,
        rank=config.time_step_rank,
        taps=config.conv_kernel,
        bias=config.use_bias,
        conv_bias=config.use_conv_bias,
        norm_eps=getattr(config, "mixer_rms_eps", None),
    )
