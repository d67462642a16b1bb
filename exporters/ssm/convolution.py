"""A causal convolution of each channel by itself, with the last inputs kept between calls.

Letters: B batch, T tokens, C channels, K taps.
"""

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder, nn

from edgeslim.exporters.ssm.parts import constant


class CausalConv(nn.Module):
    """Convolve x [B, T, C] along T by a kernel of `taps` taps a channel, then apply `activation` (silu or none)."""

    def __init__(self, channels: int, taps: int, *, bias: bool = True, activation: str = "silu") -> None:
        super().__init__()
        self.channels, self.activation = channels, activation
        self.weight = nn.Parameter([channels, 1, taps])
        self.bias = nn.Parameter([channels]) if bias else None

    def forward(self, op: OpBuilder, x: ir.Value, past: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Return the result [B, T, C] and the state [B, C, K-1] after `x`, given the state `past` before it."""
        bias = self.bias if self.bias is not None else constant(op, np.zeros(self.channels))
        y, present = op.CausalConvWithState(
            op.Transpose(x, perm=[0, 2, 1]),
            self.weight,
            bias,
            past,
            activation=self.activation,
            _domain="com.microsoft",
            _outputs=2,
        )
        return op.Transpose(y, perm=[0, 2, 1]), present
