"""OPT (arXiv 2205.01068): learned positions, plain feed-forward layers, norms before or (350m) after.

The graph library takes another epsilon for its norms, and knows no norms after.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir
from onnxscript import OpBuilder, nn

from edgeslim.errors import ExportError
from edgeslim.exporters.ssm.attention import Attention
from edgeslim.exporters.ssm.model import Backbone, CausalLM, Context, Shapes, States
from edgeslim.exporters.ssm.parts import ACTIVATIONS, Embedding, LayerNorm, Linear

_EPS = 1e-5  # torch's, which the configuration does not name
_OFFSET = 2  # rows of the positions' table that stand for no position


def opt(config: Any) -> CausalLM:
    """Return the model of an OPTConfig.

    Raises: ExportError for norms without weights.
    """
    if not config.layer_norm_elementwise_affine:
        raise ExportError(
            "opt with layer_norm_elementwise_affine false cannot be exported; expected norms with weights"
        )
    return CausalLM(
        "model.decoder",
        Decoder(config),
        vocabulary=config.vocab_size,
        hidden=config.word_embed_proj_dim,
        tied=config.tie_word_embeddings,
    )


class Decoder(Backbone):
    """The backbone with a table of positions, and matrices to and from another size of the embedding."""

    def __init__(self, config: Any) -> None:
        hidden, size = config.hidden_size, config.word_embed_proj_dim
        final = config.do_layer_norm_before and not config._remove_final_layer_norm
        super().__init__(
            embedding=("embed_tokens", Embedding(config.vocab_size, size)),
            layers=[DecoderLayer(config) for _ in range(config.num_hidden_layers)],
            norm=("final_layer_norm", LayerNorm(hidden, _EPS) if final else Through()),
        )
        self.embed_positions = Embedding(config.max_position_embeddings + _OFFSET, hidden)
        self.project_in = Linear(size, hidden) if size != hidden else None
        self.project_out = Linear(hidden, size) if size != hidden else None

    def embedded(self, op: OpBuilder, ids: ir.Value, mask: ir.Value | None) -> ir.Value:
        x = super().embedded(op, ids, mask)
        if self.project_in is not None:
            x = self.project_in(op, x)
        end = op.Gather(op.Shape(mask), 1)
        start = op.Sub(end, op.Gather(op.Shape(ids), 1))
        offset, one = op.Constant(value_int=_OFFSET), op.Constant(value_int=1)
        positions = op.Range(op.Add(start, offset), op.Add(end, offset), one)
        return op.Add(x, self.embed_positions(op, positions))

    def forward(
        self, op: OpBuilder, ids: ir.Value, mask: ir.Value | None, past: Sequence[Mapping[str, ir.Value]]
    ) -> tuple[ir.Value, list[States]]:
        x, presents = super().forward(op, ids, mask, past)
        return (x if self.project_out is None else self.project_out(op, x)), presents


class Through(nn.Module):
    """What is there where a norm is not."""

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        return x


class DecoderLayer(nn.Module):
    """Attention and feed-forward one after the other, with norms before or after each."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        hidden, bias = config.hidden_size, config.enable_bias
        sizes = {"heads": config.num_attention_heads, "key_heads": config.num_attention_heads}
        size = hidden // config.num_attention_heads
        self.self_attn = Attention(hidden, hidden, **sizes, head_size=size, bias=bias, output_name="out_proj")
        self.self_attn_layer_norm = LayerNorm(hidden, _EPS)
        self.fc1 = Linear(hidden, config.ffn_dim, bias=bias)
        self.fc2 = Linear(config.ffn_dim, hidden, bias=bias)
        self.final_layer_norm = LayerNorm(hidden, _EPS)
        self.activation = ACTIVATIONS[config.activation_function]
        self.norm_first = config.do_layer_norm_before
        self.states: Shapes = self.self_attn.states

    def forward(
        self, op: OpBuilder, x: ir.Value, past: Mapping[str, ir.Value], context: Context
    ) -> tuple[ir.Value, States]:
        normed = self.self_attn_layer_norm(op, x) if self.norm_first else x
        y, states = self.self_attn(op, normed, past, *context.attention)
        x = op.Add(x, y)
        x = x if self.norm_first else self.self_attn_layer_norm(op, x)
        normed = self.final_layer_norm(op, x) if self.norm_first else x
        x = op.Add(x, self.fc2(op, self.activation(op, self.fc1(op, normed))))
        return (x if self.norm_first else self.final_layer_norm(op, x)), states
