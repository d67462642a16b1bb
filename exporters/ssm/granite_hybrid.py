"""Granite 4 hybrids without experts: Bamba's layers with constants on embedding, residuals, attention and logits."""

from typing import Any

from edgeslim.errors import ExportError
from edgeslim.exporters.ssm.attention import Rotary
from edgeslim.exporters.ssm.bamba import mixer
from edgeslim.exporters.ssm.model import Backbone, CausalLM, TwoStepLayer
from edgeslim.exporters.ssm.parts import ACTIVATIONS, Embedding, FusedGatedMLP, RMSNorm


def granite_hybrid(config: Any) -> CausalLM:
    """Return the model of a GraniteMoeHybridConfig.

    Raises: ExportError for one with experts.
    """
    if config.num_local_experts:
        raise ExportError(f"granitemoehybrid with {config.num_local_experts} experts cannot be exported; expected 0")
    hidden, eps = config.hidden_size, config.rms_norm_eps
    head_size = hidden // config.num_attention_heads
    layers = [
        TwoStepLayer(
            norms=[("input_layernorm", RMSNorm(hidden, eps)), ("post_attention_layernorm", RMSNorm(hidden, eps))],
            mixer=mixer(config, kind, head_size, scale=config.attention_multiplier),
            feed_forward=("shared_mlp", _feed_forward(config)),
            scale=config.residual_multiplier,
        )
        for kind in config.layers_block_type
    ]
    backbone = Backbone(
        embedding=("embed_tokens", Embedding(config.vocab_size, hidden)),
        layers=layers,
        norm=("norm", RMSNorm(hidden, eps)),
        rotary=Rotary(config, head_size=head_size) if config.position_embedding_type == "rope" else None,
        embedding_scale=config.embedding_multiplier,
    )
    return CausalLM(
        "model",
        backbone,
        vocabulary=config.vocab_size,
        hidden=hidden,
        tied=config.tie_word_embeddings,
        logit_scale=1 / config.logits_scaling,
    )


def _feed_forward(config: Any) -> FusedGatedMLP:
    activation = ACTIVATIONS[config.hidden_act]
    names = ("input_linear", "output_linear")
    return FusedGatedMLP(config.hidden_size, config.shared_intermediate_size, names=names, activation=activation)
