"""Small layers that every family is built of, under the names that transformers gives their parameters.

Letters: B batch, T tokens, H hidden size, F feed-forward size, N outputs, K inputs of a linear.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder, nn
from torch import Tensor

Activation = Callable[[OpBuilder, ir.Value], ir.Value]


class Linear(nn.Module):
    """``x Wᵀ + b`` with W [N, K]."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter([outputs, inputs])
        self.bias = nn.Parameter([outputs]) if bias else None

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        y = op.MatMul(x, op.Transpose(self.weight, perm=[1, 0]))
        return y if self.bias is None else op.Add(y, self.bias)


class Embedding(nn.Module):
    """Rows of a table [V, H]."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.weight = nn.Parameter([rows, columns])

    def forward(self, op: OpBuilder, ids: ir.Value) -> ir.Value:
        return op.Gather(self.weight, ids)


class RMSNorm(nn.Module):
    """``w x / sqrt(mean x² + eps)`` over the last axis; with `offset`, checkpoints hold w - 1."""

    def __init__(self, size: int, eps: float, *, offset: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter([size])
        self.eps, self.offset = eps, offset

    def prepare(self, tensors: Mapping[str, Tensor], order: list[int] | None) -> dict[str, Tensor]:
        """Return those of this layer's `tensors` that are other than in the checkpoint."""
        return {"weight": tensors["weight"].float() + 1} if self.offset and "weight" in tensors else {}

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        return op.RMSNormalization(x, self.weight, axis=-1, epsilon=self.eps)


class LayerNorm(nn.Module):
    """``w (x - mean) / sqrt(variance + eps) + b`` over the last axis."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter([size])
        self.bias = nn.Parameter([size])
        self.eps = eps

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        return op.LayerNormalization(x, self.weight, self.bias, axis=-1, epsilon=self.eps)


class GatedRMSNorm(nn.Module):
    """``w norm(x silu(z))``, the norm over each of `groups` groups of channels on its own; the gate before or after."""

    def __init__(self, size: int, eps: float, *, groups: int = 1, gate_first: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter([size])
        self.size, self.eps, self.groups, self.gate_first = size, eps, groups, gate_first

    def forward(self, op: OpBuilder, x: ir.Value, z: ir.Value) -> ir.Value:
        if not self.gate_first:
            return op.Mul(self._norm(op, x), silu(op, z))
        return self._norm(op, op.Mul(x, silu(op, z)))

    def _norm(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        if self.groups == 1:
            return op.RMSNormalization(x, self.weight, axis=-1, epsilon=self.eps)
        width = self.size // self.groups
        apart = op.Reshape(x, [0, 0, self.groups, width])
        normed = op.RMSNormalization(apart, constant(op, np.ones(width)), axis=-1, epsilon=self.eps)
        return op.Mul(op.Reshape(normed, [0, 0, self.size]), self.weight)


class GatedMLP(nn.Module):
    """``down(act(s gate(x)) up(x))`` with s a constant of the family; `names` are those of gate, up and down."""

    def __init__(
        self,
        hidden: int,
        inner: int,
        *,
        activation: Activation | None = None,
        names: Sequence[str] = ("gate_proj", "up_proj", "down_proj"),
        bias: bool = False,
        gate_scale: float = 1.0,
        output_scale: float = 1.0,
    ) -> None:
        super().__init__()
        gate, up, down = names
        setattr(self, gate, Linear(hidden, inner, bias=bias))
        setattr(self, up, Linear(hidden, inner, bias=bias))
        setattr(self, down, Linear(inner, hidden, bias=bias))
        self.names, self.activation = tuple(names), activation or silu
        self.gate_scale, self.output_scale = gate_scale, output_scale

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        gate, up, down = (getattr(self, name) for name in self.names)
        activated = self.activation(op, scaled(op, gate(op, x), self.gate_scale))
        return scaled(op, down(op, op.Mul(up(op, x), activated)), self.output_scale)


class FusedGatedMLP(nn.Module):
    """The same with gate and up in one matrix [2F, H], the gate's rows first; `names` are those of the two matrices."""

    def __init__(self, hidden: int, inner: int, *, names: Sequence[str], activation: Activation | None = None) -> None:
        super().__init__()
        both, down = names
        setattr(self, both, Linear(hidden, 2 * inner))
        setattr(self, down, Linear(inner, hidden))
        self.names, self.inner, self.activation = tuple(names), inner, activation or silu

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        both, down = (getattr(self, name) for name in self.names)
        gate, up = op.Split(both(op, x), [self.inner, self.inner], axis=-1, _outputs=2)
        return down(op, op.Mul(up, self.activation(op, gate)))


class PlainMLP(nn.Module):
    """``down(act(up(x)))``; `names` are those of the two."""

    def __init__(
        self,
        hidden: int,
        inner: int,
        activation: Activation,
        *,
        bias: bool = False,
        names: Sequence[str] = ("up_proj", "down_proj"),
    ) -> None:
        super().__init__()
        up, down = names
        setattr(self, up, Linear(hidden, inner, bias=bias))
        setattr(self, down, Linear(inner, hidden, bias=bias))
        self.names, self.activation = tuple(names), activation

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        up, down = (getattr(self, name) for name in self.names)
        return down(op, self.activation(op, up(op, x)))


def silu(op: OpBuilder, x: ir.Value) -> ir.Value:
    """``x sigmoid(x)``."""
    return op.Mul(x, op.Sigmoid(x))


def gelu(op: OpBuilder, x: ir.Value) -> ir.Value:
    """``x Φ(x)``, exact."""
    return op.Gelu(x)


def gelu_tanh(op: OpBuilder, x: ir.Value) -> ir.Value:
    """GELU by its tanh approximation."""
    return op.Gelu(x, approximate="tanh")


def relu(op: OpBuilder, x: ir.Value) -> ir.Value:
    """``max(x, 0)``."""
    return op.Relu(x)


def relu_squared(op: OpBuilder, x: ir.Value) -> ir.Value:
    """``max(x, 0)²``."""
    positive = op.Relu(x)
    return op.Mul(positive, positive)


ACTIVATIONS: dict[str, Activation] = {
    "silu": silu,
    "swish": silu,
    "gelu": gelu,
    "gelu_fast": gelu_tanh,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "relu": relu,
    "relu2": relu_squared,
}
"""Activations by the names that transformers' configurations use."""


def scaled(op: OpBuilder, x: ir.Value, factor: float) -> ir.Value:
    """``factor x``; x itself where the factor is 1."""
    return x if factor == 1 else op.Mul(x, constant(op, factor))


def constant(op: OpBuilder, content: float | np.ndarray) -> ir.Value:
    """A float32 constant."""
    return op.Constant(value=ir.tensor(np.asarray(content, np.float32)))
