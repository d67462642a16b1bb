"""The mixer of Mamba-1: convolution, data-dependent step, selective scan, gate.

Each channel d carries a state h [N]; with step Δ, input x and the token's own B, C [N]:

    h ← exp(Δ A) h + Δ B x,   y = C·h + D x                                              [1], section 3

The scan is written as com.microsoft::LinearAttention with a head a channel: query C, key B, value Δ x, log decay Δ A
for each of the N keys. Prompts of any length, states in and out, no operator of ours.

Letters: B batch, T tokens, H hidden size, I inner channels, N size of the state, R rank of the step, K taps.
[1] Mamba, arXiv 2312.00752.
"""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder, nn

from edgeslim.exporters.ssm.convolution import CausalConv
from edgeslim.exporters.ssm.parts import Linear, RMSNorm, constant, silu


class SelectiveMixer(nn.Module):
    """Mamba-1's mixer. `norm_eps` norms step, B and C before use, with weights of their own where `norm_weights`."""

    def __init__(
        self,
        hidden: int,
        inner: int,
        *,
        state: int,
        rank: int,
        taps: int,
        bias: bool = False,
        conv_bias: bool = True,
        norm_eps: float | None = None,
        norm_weights: bool = False,
    ) -> None:
        super().__init__()
        self.inner, self.state, self.rank = inner, state, rank
        self.in_proj = Linear(hidden, 2 * inner, bias=bias)
        self.conv1d = CausalConv(inner, taps, bias=conv_bias)
        self.x_proj = Linear(inner, rank + 2 * state)
        self.dt_proj = Linear(rank, inner, bias=True)
        self.A_log = nn.Parameter([inner, state])
        self.D = nn.Parameter([inner])
        self.out_proj = Linear(inner, hidden, bias=bias)
        self.norm_eps = norm_eps
        if norm_eps is not None and norm_weights:
            self.dt_layernorm = RMSNorm(rank, norm_eps)
            self.b_layernorm = RMSNorm(state, norm_eps)
            self.c_layernorm = RMSNorm(state, norm_eps)
        self.norm_weights = norm_weights
        self.states: dict[str, tuple[int | None, ...]] = {
            "conv_state": (inner, taps - 1),
            "recurrent_state": (inner, state, 1),
        }

    def forward(self, op: OpBuilder, x: ir.Value, past: Mapping[str, ir.Value]) -> tuple[ir.Value, dict[str, ir.Value]]:
        x, z = op.Split(self.in_proj(op, x), [self.inner, self.inner], axis=-1, _outputs=2)
        x, conv_state = self.conv1d(op, x, past["conv_state"])
        step, b, c = op.Split(self.x_proj(op, x), [self.rank, self.state, self.state], axis=-1, _outputs=3)
        step, b, c = self._normed(op, step, b, c)
        dt = op.Softplus(self.dt_proj(op, step))
        y, recurrent_state = self._scan(op, x, dt, b, c, past["recurrent_state"])
        y = op.Add(y, op.Mul(x, self.D))
        states = {"conv_state": conv_state, "recurrent_state": recurrent_state}
        return self.out_proj(op, op.Mul(y, silu(op, z))), states

    def _scan(
        self, op: OpBuilder, x: ir.Value, dt: ir.Value, b: ir.Value, c: ir.Value, past: ir.Value
    ) -> tuple[ir.Value, ir.Value]:
        rate = op.Neg(op.Exp(self.A_log))
        decay = op.Reshape(op.Mul(op.Unsqueeze(dt, [-1]), rate), [0, 0, self.inner * self.state])
        return op.LinearAttention(
            self._for_each_channel(op, c),
            self._for_each_channel(op, b),
            op.Mul(dt, x),
            past,
            decay,
            scale=1.0,
            q_num_heads=self.inner,
            kv_num_heads=self.inner,
            update_rule="gated",
            _domain="com.microsoft",
            _outputs=2,
        )

    def _for_each_channel(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """[B, T, N] to [B, T, I N]."""
        repeated = op.Expand(op.Unsqueeze(x, [2]), [1, 1, self.inner, 1])
        return op.Reshape(repeated, [0, 0, self.inner * self.state])

    def _normed(self, op: OpBuilder, *values: ir.Value) -> tuple[ir.Value, ...]:
        if self.norm_eps is None:
            return values
        if self.norm_weights:
            norms = (self.dt_layernorm, self.b_layernorm, self.c_layernorm)
            return tuple(norm(op, value) for norm, value in zip(norms, values, strict=True))
        sizes = (self.rank, self.state, self.state)
        return tuple(_plain_norm(op, value, size, self.norm_eps) for value, size in zip(values, sizes, strict=True))


def _plain_norm(op: OpBuilder, x: ir.Value, size: int, eps: float) -> ir.Value:
    return op.RMSNormalization(x, constant(op, np.ones(size)), axis=-1, epsilon=eps)
