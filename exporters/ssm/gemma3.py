"""Gemma 3's text model (arXiv 2503.19786): norms around attention and feed-forward, two kinds of layers with rotations
of their own, norms of queries and keys.

The graph library reads the rotations of one kind only, and scales the embedding by a rounded number. Windows of local
layers come from the pass SlidingWindows.
"""

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
from onnxscript import OpBuilder, nn

from edgeslim.errors import ExportError
from edgeslim.exporters.ssm.attention import Attention, rotary_tables
from edgeslim.exporters.ssm.model import Backbone, CausalLM, Context, Shapes, States
from edgeslim.exporters.ssm.parts import ACTIVATIONS, Embedding, GatedMLP, RMSNorm


def gemma3(config: Any) -> CausalLM:
    """Return the model of a Gemma3TextConfig.

    Raises: ExportError for one with soft caps, or that also looks ahead.
    """
    for name in ("final_logit_softcapping", "attn_logit_softcapping", "use_bidirectional_attention"):
        if getattr(config, name, None):
            raise ExportError(f"gemma3_text with {name} {getattr(config, name)!r} cannot be exported; expected none")
    hidden = config.hidden_size
    backbone = Backbone(
        embedding=("embed_tokens", Embedding(config.vocab_size, hidden)),
        layers=[SandwichLayer(config, kind) for kind in config.layer_types],
        norm=("norm", RMSNorm(hidden, config.rms_norm_eps, offset=True)),
        rotary=RotaryByKind(config),
        embedding_scale=hidden**0.5,
    )
    return CausalLM("model", backbone, vocabulary=config.vocab_size, hidden=hidden, tied=config.tie_word_embeddings)


class RotaryByKind(nn.Module):
    """Tables of cosines and sines for each kind of layers."""

    order = None

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.kinds = sorted(set(config.layer_types))
        for kind in self.kinds:
            for name, table in zip(("cos", "sin"), rotary_tables(config, config.head_dim, kind), strict=True):
                setattr(self, f"{kind}_{name}_cache", nn.Parameter(table.shape, data=ir.tensor(table)))

    def forward(self, op: OpBuilder) -> dict[str, tuple[ir.Value, ir.Value]]:
        return {k: (getattr(self, f"{k}_cos_cache"), getattr(self, f"{k}_sin_cache")) for k in self.kinds}


class SandwichLayer(nn.Module):
    """Norm, attention, norm, residual; norm, feed-forward, norm, residual."""

    def __init__(self, config: Any, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.self_attn = _attention(config)
        self.mlp = _feed_forward(config)
        self.input_layernorm = _norm(config)
        self.post_attention_layernorm = _norm(config)
        self.pre_feedforward_layernorm = _norm(config)
        self.post_feedforward_layernorm = _norm(config)
        self.states: Shapes = self.self_attn.states

    def forward(
        self, op: OpBuilder, x: ir.Value, past: Mapping[str, ir.Value], context: Context
    ) -> tuple[ir.Value, States]:
        lengths, rotary = context.attention
        y, states = self.self_attn(op, self.input_layernorm(op, x), past, lengths, rotary[self.kind])
        x = op.Add(x, self.post_attention_layernorm(op, y))
        y = self.mlp(op, self.pre_feedforward_layernorm(op, x))
        return op.Add(x, self.post_feedforward_layernorm(op, y)), states


def _norm(config: Any) -> RMSNorm:
    return RMSNorm(config.hidden_size, config.rms_norm_eps, offset=True)


def _attention(config: Any) -> Attention:
    size, eps = config.head_dim, config.rms_norm_eps
    return Attention(
        config.hidden_size,
        config.hidden_size,
        heads=config.num_attention_heads,
        key_heads=config.num_key_value_heads,
        head_size=size,
        bias=config.attention_bias,
        scale=config.query_pre_attn_scalar**-0.5,
        norms=[(name, RMSNorm(size, eps, offset=True)) for name in ("q_norm", "k_norm")],
    )


def _feed_forward(config: Any) -> GatedMLP:
    return GatedMLP(config.hidden_size, config.intermediate_size, activation=ACTIVATIONS[config.hidden_activation])
