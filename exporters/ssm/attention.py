"""Attention over a key-value cache, as com.microsoft::GroupQueryAttention with rotation inside.

Letters: B batch, T tokens, P tokens in the cache, H hidden size, Q query heads, G key heads, D size of a head,
R rotated columns of a head, L longest context.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnxscript import OpBuilder, nn

from edgeslim.errors import ExportError
from edgeslim.exporters.ssm.parts import Linear, RMSNorm

_STEP = 8
"""What the operator wants the number of rotated pairs of columns to be a multiple of."""


@dataclass(frozen=True)
class Lengths:
    """What the operator wants to know of the tokens: the last key's index of each sequence [B], all keys' number []."""

    last: ir.Value
    total: ir.Value


class Rotary(nn.Module):
    """Tables of cosines and sines [L, R/2], read by every attention layer.

    The operator wants R/2 in steps of 8. Where it is not, the tables go on with columns that leave things as they are,
    and `order` says which columns of a head must stand where; None: as they are.
    """

    def __init__(self, config: Any, *, head_size: int) -> None:
        super().__init__()
        cos, sin = rotary_tables(config, head_size)
        self.order = head_order(head_size, cos.shape[1])
        if self.order is not None:
            more = -cos.shape[1] % _STEP
            cos, sin = (np.pad(t, ((0, 0), (0, more)), constant_values=v) for t, v in ((cos, 1), (sin, 0)))
        self.cos_cache = nn.Parameter(cos.shape, data=ir.tensor(cos))
        self.sin_cache = nn.Parameter(sin.shape, data=ir.tensor(sin))

    def forward(self, op: OpBuilder) -> tuple[ir.Value, ir.Value]:
        return self.cos_cache, self.sin_cache


class Attention(nn.Module):
    """Grouped-query attention; without `rotary`, without positions.

    `norms` are norms of each head of queries and of keys, with their names.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        heads: int,
        key_heads: int,
        head_size: int,
        bias: bool = False,
        output_bias: bool | None = None,
        scale: float | None = None,
        output_name: str = "o_proj",
        norms: Sequence[tuple[str, RMSNorm]] = (),
    ) -> None:
        super().__init__()
        self.heads, self.key_heads, self.head_size = heads, key_heads, head_size
        self.scale = 1 / math.sqrt(head_size) if scale is None else scale
        self.q_proj = Linear(inputs, heads * head_size, bias=bias)
        self.k_proj = Linear(inputs, key_heads * head_size, bias=bias)
        self.v_proj = Linear(inputs, key_heads * head_size, bias=bias)
        self.output_name = output_name
        setattr(
            self, output_name, Linear(heads * head_size, outputs, bias=bias if output_bias is None else output_bias)
        )
        self.norm_names = [name for name, _ in norms]
        for name, norm in norms:
            setattr(self, name, norm)
        self.states: dict[str, tuple[int | None, ...]] = {
            "key": (key_heads, None, head_size),
            "value": (key_heads, None, head_size),
        }

    def forward(
        self,
        op: OpBuilder,
        x: ir.Value,
        past: Mapping[str, ir.Value],
        lengths: Lengths,
        rotary: tuple[ir.Value, ir.Value] | None,
    ) -> tuple[ir.Value, dict[str, ir.Value]]:
        if not self.norm_names:
            return self.attend(op, self.project(op, x), past, lengths, rotary)
        query_norm, key_norm = (getattr(self, name) for name in self.norm_names)
        query = self._normed(op, self.q_proj(op, x), query_norm)
        key = self._normed(op, self.k_proj(op, x), key_norm)
        qkv = op.Concat(query, key, self.v_proj(op, x), axis=-1)
        return self.attend(op, qkv, past, lengths, rotary)

    def attend(
        self,
        op: OpBuilder,
        qkv: ir.Value,
        past: Mapping[str, ir.Value],
        lengths: Lengths,
        rotary: tuple[ir.Value, ir.Value] | None,
    ) -> tuple[ir.Value, dict[str, ir.Value]]:
        """Attend with queries, keys and values [B, T, (Q + 2 G) D]; return the output and the cache after it."""
        y, key, value = op.GroupQueryAttention(
            qkv,
            None,
            None,
            past["key"],
            past["value"],
            lengths.last,
            lengths.total,
            *(rotary or ()),
            num_heads=self.heads,
            kv_num_heads=self.key_heads,
            scale=self.scale,
            do_rotary=int(rotary is not None),
            _domain="com.microsoft",
            _outputs=3,
        )
        return getattr(self, self.output_name)(op, y), {"key": key, "value": value}

    def prepare(self, tensors: Mapping[str, torch.Tensor], order: list[int] | None) -> dict[str, torch.Tensor]:
        """Return those of this layer's `tensors` that are other than in the checkpoint: columns of heads in `order`."""
        names = [f"{part}.{kind}" for part in ("q_proj", "k_proj") for kind in ("weight", "bias")]
        if order is None:
            return {}
        return {name: reordered(tensors[name], self.head_size, order) for name in names if name in tensors}

    def project(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Queries, keys and values [B, T, (Q + 2 G) D] of one product with all three matrices."""
        layers = [self.q_proj, self.k_proj, self.v_proj]
        for layer in layers:
            realize(op, layer)
        weight = op.Transpose(op.Concat(*(layer.weight for layer in layers), axis=0), perm=[1, 0])
        qkv = op.MatMul(x, weight)
        biases = [layer.bias for layer in layers if layer.bias is not None]
        return op.Add(qkv, op.Concat(*biases, axis=0)) if biases else qkv

    def _normed(self, op: OpBuilder, x: ir.Value, norm: RMSNorm) -> ir.Value:
        return op.Reshape(norm(op, op.Reshape(x, [0, 0, -1, self.head_size])), [0, 0, -1])


def realize(op: OpBuilder, module: nn.Module) -> None:
    """Make the parameters of `module` and its parts initializers under their full names, without running it."""
    if isinstance(module, nn.ModuleList):  # its members carry its name in theirs
        for member in module:
            realize(op, member)
        return
    op.builder.push_module(module.name or "", type(module).__qualname__)
    try:
        for parameter in module.parameters(recurse=False):
            parameter._realize(op.builder)
        for child in module.children():
            realize(op, child)
    finally:
        op.builder.pop_module()


def head_order(head_size: int, pairs: int) -> list[int] | None:
    """Return the order of a head's columns in which `pairs` pairs (i, i + pairs) are a multiple of 8 apart.

    Queries and keys in the same order have the same products. None where the order can stay.

    Raises: ExportError where the head is too small.
    """
    more = -pairs % _STEP
    if not more:
        return None
    if 2 * (pairs + more) > head_size:
        raise ExportError(f"{pairs} rotated pairs of columns in heads of {head_size} do not fit the operator")
    still = list(range(2 * pairs, head_size))
    first, second, rest = still[:more], still[more : 2 * more], still[2 * more :]
    return [*range(pairs), *first, *range(pairs, 2 * pairs), *second, *rest]


def reordered(weight: torch.Tensor, head_size: int, order: list[int]) -> torch.Tensor:
    """Return weight or bias [heads D, ...] of queries or keys with the columns of each head in `order`."""
    heads = weight.reshape(-1, head_size, *weight.shape[1:])
    return heads[:, order].reshape(weight.shape)


def lengths_of(op: OpBuilder, mask: ir.Value) -> Lengths:
    """What GroupQueryAttention needs of attention_mask [B, P + T]."""
    last = op.Cast(op.Sub(op.ReduceSum(mask, [1], keepdims=0), op.Constant(value_int=1)), to=ir.DataType.INT32)
    return Lengths(last=last, total=op.Cast(op.Gather(op.Shape(mask), 1), to=ir.DataType.INT32))


def rotary_tables(config: Any, head_size: int, kind_of_layer: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return cosines and sines [L, R/2] as transformers computes them for `config`, or for one kind of its layers.

    Raises: ExportError for frequencies that change with the length of the text.
    """
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = config.rope_parameters if kind_of_layer is None else config.rope_parameters[kind_of_layer]
    kind = parameters.get("rope_type", "default")
    if kind in ("dynamic", "longrope"):
        raise ExportError(f"rope type {kind!r} changes with the length of the text and cannot be exported")
    if kind == "default":
        rotated = int(head_size * parameters.get("partial_rotary_factor", 1.0))
        exponents = torch.arange(0, rotated, 2, dtype=torch.int64).float() / rotated
        frequencies, factor = 1.0 / parameters["rope_theta"] ** exponents, 1.0
    else:
        frequencies, factor = ROPE_INIT_FUNCTIONS[kind](config, layer_type=kind_of_layer)
    angles = torch.arange(config.max_position_embeddings).float()[:, None] * frequencies.float()
    return (angles.cos() * factor).numpy(), (angles.sin() * factor).numpy()
