"""The mixer of Mamba-2: convolution, one decay a head, B and C shared by groups of heads, gated norm.

    S ← exp(Δ a) S + Δ B xᵀ,   y = Cᵀ S + D x        for each head with x [P], S [N, P]      [1], section 2

Written as com.microsoft::LinearAttention: query C, key B, value Δ x, log decay Δ a a head.

Letters: B batch, T tokens, H hidden size, M heads, P size of a head, N size of the state, G groups, K taps.
[1] Transformers are SSMs, arXiv 2405.21060.
"""

import math
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder, nn

from edgeslim.exporters.ssm.convolution import CausalConv
from edgeslim.exporters.ssm.parts import GatedRMSNorm, Linear, constant, scaled, silu


class StateSpaceMixer(nn.Module):
    """Mamba-2's mixer.

    `limits` clamp the step; `input_scale` and `scales`, of the columns of in_proj's result, are constants of the
    family. `norm` False leaves the gate alone at the end.
    """

    def __init__(
        self,
        hidden: int,
        *,
        heads: int,
        head_size: int,
        state: int,
        groups: int,
        taps: int,
        eps: float,
        bias: bool = False,
        conv_bias: bool = True,
        output_bias: bool | None = None,
        limits: tuple[float, float] = (0.0, math.inf),
        norm: bool = True,
        gate_first: bool = True,
        input_scale: float = 1.0,
        scales: np.ndarray | None = None,
    ) -> None:
        super().__init__()
        self.heads, self.head_size, self.state, self.groups = heads, head_size, state, groups
        self.inner = heads * head_size
        self.mixed = self.inner + 2 * groups * state
        self.limits, self.input_scale, self.scales = limits, input_scale, scales
        self.in_proj = Linear(hidden, self.inner + self.mixed + heads, bias=bias)
        self.conv1d = CausalConv(self.mixed, taps, bias=conv_bias)
        self.A_log = nn.Parameter([heads])
        self.D = nn.Parameter([heads])
        self.dt_bias = nn.Parameter([heads])
        self.norm = GatedRMSNorm(self.inner, eps, groups=groups, gate_first=gate_first) if norm else None
        self.out_proj = Linear(self.inner, hidden, bias=bias if output_bias is None else output_bias)
        self.states: dict[str, tuple[int | None, ...]] = {
            "conv_state": (self.mixed, taps - 1),
            "recurrent_state": (heads, state, head_size),
        }

    def forward(self, op: OpBuilder, x: ir.Value, past: Mapping[str, ir.Value]) -> tuple[ir.Value, dict[str, ir.Value]]:
        projected = self.in_proj(op, scaled(op, x, self.input_scale))
        if self.scales is not None:
            projected = op.Mul(projected, constant(op, self.scales))
        z, xbc, raw = op.Split(projected, [self.inner, self.mixed, self.heads], axis=-1, _outputs=3)
        xbc, conv_state = self.conv1d(op, xbc, past["conv_state"])
        y, recurrent_state = self._scan(op, xbc, raw, past["recurrent_state"])
        y = self.norm(op, y, z) if self.norm is not None else op.Mul(y, silu(op, z))
        return self.out_proj(op, y), {"conv_state": conv_state, "recurrent_state": recurrent_state}

    def _scan(self, op: OpBuilder, xbc: ir.Value, raw: ir.Value, past: ir.Value) -> tuple[ir.Value, ir.Value]:
        shared = self.groups * self.state
        x, b, c = op.Split(xbc, [self.inner, shared, shared], axis=-1, _outputs=3)
        dt = op.Softplus(op.Add(self._limited(op, raw), self.dt_bias))
        decay = op.Mul(op.Neg(op.Exp(self.A_log)), dt)
        x_heads = op.Reshape(x, [0, 0, self.heads, self.head_size])
        value = op.Reshape(op.Mul(op.Unsqueeze(dt, [-1]), x_heads), [0, 0, self.inner])
        y, present = op.LinearAttention(
            self._for_each_head(op, c),
            self._for_each_head(op, b),
            value,
            past,
            decay,
            scale=1.0,
            q_num_heads=self.heads,
            kv_num_heads=self.heads,
            update_rule="gated",
            _domain="com.microsoft",
            _outputs=2,
        )
        skip = op.Mul(op.Reshape(self.D, [1, 1, self.heads, 1]), x_heads)
        return op.Add(y, op.Reshape(skip, [0, 0, self.inner])), present

    def _limited(self, op: OpBuilder, raw: ir.Value) -> ir.Value:
        """Clamp softplus(raw + bias) to the limits by clamping raw: softplus grows with its argument."""
        low, high = self.limits
        if low > 0:
            raw = op.Max(raw, op.Sub(constant(op, math.log(math.expm1(low))), self.dt_bias))
        if high < math.inf:
            raw = op.Min(raw, op.Sub(constant(op, math.log(math.expm1(high))), self.dt_bias))
        return raw

    def _for_each_head(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """[B, T, G N] to [B, T, M N]."""
        if self.groups == self.heads:
            return x
        apart = op.Reshape(x, [0, 0, self.groups, 1, self.state])
        repeated = op.Expand(apart, [1, 1, 1, self.heads // self.groups, 1])
        return op.Reshape(repeated, [0, 0, self.heads * self.state])
