"""A mixture of experts: each token goes through the few gated layers that the router scores highest.

Every expert runs on all tokens, weighted by 0 where it was not chosen: exact and in standard operators, at the cost of
the experts that a token did not choose.

Letters: B batch, T tokens, E experts, H hidden size, F feed-forward size.
"""

import onnx_ir as ir
from onnxscript import OpBuilder, nn

from edgeslim.exporters.ssm.parts import Activation, GatedMLP


class Router(nn.Module):
    """``x Wᵀ`` with W [E, H], which stays float32: it is small, and a rounded score sends tokens elsewhere."""

    def __init__(self, hidden: int, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter([count, hidden])

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        return op.Einsum(x, self.weight, equation="bth,eh->bte")


class Experts(nn.Module):
    """`chosen` of `count` gated feed-forward layers a token, weighted by the softmax of all scores, not normalised."""

    def __init__(self, hidden: int, inner: int, *, count: int, chosen: int, activation: Activation) -> None:
        super().__init__()
        self.count, self.chosen = count, chosen
        self.router = Router(hidden, count)
        self.experts = nn.ModuleList([GatedMLP(hidden, inner, activation=activation) for _ in range(count)])

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        weights = op.Softmax(self.router(op, x), axis=-1)
        best, where = op.TopK(weights, [self.chosen], axis=-1, _outputs=2)
        chosen = op.ScatterElements(op.Mul(weights, op.Constant(value_float=0.0)), where, best, axis=-1)
        columns = op.Split(chosen, num_outputs=self.count, axis=-1, _outputs=self.count)
        parts = [op.Mul(expert(op, x), w) for expert, w in zip(self.experts, columns, strict=True)]
        return parts[0] if len(parts) == 1 else op.Sum(*parts)
