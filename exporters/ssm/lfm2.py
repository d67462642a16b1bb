"""LFM2: short gated convolutions with a few layers of attention between, a gated feed-forward layer after each.

onnxruntime-genai takes a layer with a convolution state for a recurrent one, which has two states; the second is an
unused number that goes through.
"""

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
from onnxscript import OpBuilder, nn

from edgeslim.exporters.ssm.attention import Attention, Rotary
from edgeslim.exporters.ssm.convolution import CausalConv
from edgeslim.exporters.ssm.model import Backbone, CausalLM, States, TwoStepLayer
from edgeslim.exporters.ssm.parts import Embedding, GatedMLP, Linear, RMSNorm


def lfm2(config: Any) -> CausalLM:
    """Return the model of an Lfm2Config."""
    hidden, eps = config.hidden_size, config.norm_eps
    head_size = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
    inner = _inner_size(config)
    layers = [
        TwoStepLayer(
            norms=[("operator_norm", RMSNorm(hidden, eps)), ("ffn_norm", RMSNorm(hidden, eps))],
            mixer=_mixer(config, kind, head_size),
            feed_forward=("feed_forward", GatedMLP(hidden, inner, names=("w1", "w3", "w2"))),
        )
        for kind in config.layer_types
    ]
    backbone = Backbone(
        embedding=("embed_tokens", Embedding(config.vocab_size, hidden)),
        layers=layers,
        norm=("embedding_norm", RMSNorm(hidden, eps)),
        rotary=Rotary(config, head_size=head_size),
    )
    return CausalLM("model", backbone, vocabulary=config.vocab_size, hidden=hidden, tied=config.tie_word_embeddings)


class ShortConv(nn.Module):
    """``out(c conv(b x))`` with b, c and x parts of one product."""

    def __init__(self, hidden: int, taps: int, *, bias: bool) -> None:
        super().__init__()
        self.hidden = hidden
        self.in_proj = Linear(hidden, 3 * hidden, bias=bias)
        self.conv = CausalConv(hidden, taps, bias=bias, activation="none")
        self.out_proj = Linear(hidden, hidden, bias=bias)
        self.states: dict[str, tuple[int | None, ...]] = {
            "conv_state": (hidden, taps - 1),
            "recurrent_state": (1, 1, 1),
        }

    def forward(self, op: OpBuilder, x: ir.Value, past: Mapping[str, ir.Value]) -> tuple[ir.Value, States]:
        b, c, x = op.Split(self.in_proj(op, x), [self.hidden] * 3, axis=-1, _outputs=3)
        y, conv_state = self.conv(op, op.Mul(b, x), past["conv_state"])
        unused = op.Identity(past["recurrent_state"])
        return self.out_proj(op, op.Mul(c, y)), {"conv_state": conv_state, "recurrent_state": unused}


def _mixer(config: Any, kind: str, head_size: int) -> tuple[str, nn.Module]:
    if kind == "conv":
        return "conv", ShortConv(config.hidden_size, config.conv_L_cache, bias=config.conv_bias)
    return "self_attn", Attention(
        config.hidden_size,
        config.hidden_size,
        heads=config.num_attention_heads,
        key_heads=config.num_key_value_heads,
        head_size=head_size,
        output_name="out_proj",
        norms=[(name, RMSNorm(head_size, config.norm_eps)) for name in ("q_layernorm", "k_layernorm")],
    )


def _inner_size(config: Any) -> int:
    """Return the feed-forward size, which is two thirds of the configured one, rounded up."""
    size = int(config.intermediate_size)
    if not config.block_auto_adjust_ff_dim:
        return size
    size = int(2 * size / 3)
    if config.block_ffn_dim_multiplier is None:
        return size
    multiple = int(config.block_multiple_of)
    return multiple * -(-int(config.block_ffn_dim_multiplier * size) // multiple)
