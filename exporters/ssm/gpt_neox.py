"""GPT-NeoX and Pythia: attention and feed-forward side by side, a part of each head rotated, one product for all heads.

The graph library knows no layers whose two parts follow one another.
"""

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
import torch
from onnxscript import OpBuilder

from edgeslim.exporters.ssm.attention import Attention, Rotary
from edgeslim.exporters.ssm.model import Backbone, CausalLM, ParallelLayer, TwoStepLayer
from edgeslim.exporters.ssm.parts import ACTIVATIONS, Embedding, LayerNorm, Linear, PlainMLP


def gpt_neox(config: Any) -> CausalLM:
    """Return the model of a GPTNeoXConfig."""
    hidden, eps = config.hidden_size, config.layer_norm_eps
    kind = ParallelLayer if config.use_parallel_residual else TwoStepLayer
    layers = [
        kind(
            norms=[(name, LayerNorm(hidden, eps)) for name in ("input_layernorm", "post_attention_layernorm")],
            mixer=("attention", JoinedAttention(config)),
            feed_forward=("mlp", _feed_forward(config)),
        )
        for _ in range(config.num_hidden_layers)
    ]
    backbone = Backbone(
        embedding=("embed_in", Embedding(config.vocab_size, hidden)),
        layers=layers,
        norm=("final_layer_norm", LayerNorm(hidden, eps)),
        rotary=Rotary(config, head_size=hidden // config.num_attention_heads),
    )
    return CausalLM("gpt_neox", backbone, vocabulary=config.vocab_size, hidden=hidden, tied=config.tie_word_embeddings)


class JoinedAttention(Attention):
    """Attention whose queries, keys and values are rows of one matrix, which checkpoints keep head by head."""

    def __init__(self, config: Any) -> None:
        heads = config.num_attention_heads
        sizes = {"heads": heads, "key_heads": heads, "head_size": config.hidden_size // heads}
        super().__init__(
            config.hidden_size, config.hidden_size, **sizes, bias=config.attention_bias, output_name="dense"
        )
        for name in ("q_proj", "k_proj", "v_proj"):
            del self._modules[name]  # type: ignore[attr-defined]
        self.query_key_value = Linear(config.hidden_size, 3 * config.hidden_size, bias=config.attention_bias)

    def prepare(self, tensors: Mapping[str, torch.Tensor], order: list[int] | None) -> dict[str, torch.Tensor]:
        """Return the rows of the joined matrix with all queries first, then all keys, then all values."""
        names = [name for name in ("query_key_value.weight", "query_key_value.bias") if name in tensors]
        return {name: self._sorted(tensors[name], order) for name in names}

    def project(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        return self.query_key_value(op, x)

    def _sorted(self, rows: torch.Tensor, order: list[int] | None) -> torch.Tensor:
        parts = rows.reshape(self.heads, 3, self.head_size, *rows.shape[1:]).transpose(0, 1)
        if order is not None:
            parts = torch.cat([parts[:2, :, order], parts[2:]])
        return parts.reshape(rows.shape)


def _feed_forward(config: Any) -> PlainMLP:
    names = ("dense_h_to_4h", "dense_4h_to_h")
    activation = ACTIVATIONS[config.hidden_act]
    return PlainMLP(config.hidden_size, config.intermediate_size, activation, bias=True, names=names)
