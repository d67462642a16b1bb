"""StableLM: Llama with LayerNorm, a quarter of each head rotated, and in some a layer's parts side by side.

The graph library rotates whole heads on the CPU.
"""

from typing import Any

from edgeslim.errors import ExportError
from edgeslim.exporters.ssm.attention import Attention, Rotary
from edgeslim.exporters.ssm.model import Backbone, CausalLM, ParallelLayer, TwoStepLayer
from edgeslim.exporters.ssm.parts import ACTIVATIONS, Embedding, GatedMLP, LayerNorm


def stablelm(config: Any) -> CausalLM:
    """Return the model of a StableLmConfig.

    Raises: ExportError for one that norms the heads of queries and keys.
    """
    if config.qk_layernorm:
        raise ExportError("stablelm with qk_layernorm cannot be exported; expected none")
    hidden, eps = config.hidden_size, config.layer_norm_eps
    parallel = config.use_parallel_residual
    names = ("input_layernorm",) if parallel else ("input_layernorm", "post_attention_layernorm")
    layers = [
        (ParallelLayer if parallel else TwoStepLayer)(
            norms=[(name, LayerNorm(hidden, eps)) for name in names],
            mixer=("self_attn", _attention(config)),
            feed_forward=("mlp", _feed_forward(config)),
        )
        for _ in range(config.num_hidden_layers)
    ]
    backbone = Backbone(
        embedding=("embed_tokens", Embedding(config.vocab_size, hidden)),
        layers=layers,
        norm=("norm", LayerNorm(hidden, eps)),
        rotary=Rotary(config, head_size=hidden // config.num_attention_heads),
    )
    return CausalLM("model", backbone, vocabulary=config.vocab_size, hidden=hidden, tied=config.tie_word_embeddings)


def _attention(config: Any) -> Attention:
    return Attention(
        config.hidden_size,
        config.hidden_size,
        heads=config.num_attention_heads,
        key_heads=config.num_key_value_heads,
        head_size=config.hidden_size // config.num_attention_heads,
        bias=config.use_qkv_bias,
        output_bias=False,
    )


def _feed_forward(config: Any) -> GatedMLP:
    return GatedMLP(config.hidden_size, config.intermediate_size, activation=ACTIVATIONS[config.hidden_act])
