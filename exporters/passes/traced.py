"""A pattern followed from its result back to its sources, and why a graph does not have it."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import onnx_ir as ir

from edgeslim.exporters.passes.fuse_causal_conv import constant


class UnlikeError(Exception):
    """The graph departs from the pattern; the message says where."""


def require(holds: bool, reason: str) -> None:
    """Raise UnlikeError with `reason` unless `holds`."""
    if not holds:
        raise UnlikeError(reason)


@dataclass(kw_only=True)
class Traced:
    """A pattern so far. `nodes` are those that go, if nobody else reads what they make."""

    nodes: list[ir.Node] = field(default_factory=list)

    def step(self, value: ir.Value | None, op: str, count: int) -> list[ir.Value]:
        """Return the `count` inputs of the node of operator `op` that made `value`, and note the node.

        Raises: UnlikeError where another node made it.
        """
        node = value.producer() if value is not None else None
        inputs = [v for v in node.inputs if v is not None] if node is not None else []
        fits = node is not None and node.op_type == op and node.domain == "" and len(inputs) == count
        require(fits, f"{_name(value)} comes of {_kind(node)}, not of {op}")
        assert node is not None
        self.nodes.append(node)
        return inputs

    def reshaped(self, value: ir.Value | None, *shapes: list[int]) -> ir.Value:
        """Return what a Reshape to one of `shapes` read to make `value`, and note it.

        Raises: UnlikeError where there is another shape.
        """
        source, shape = self.step(value, "Reshape", 2)
        fits = constant(shape) in shapes and not self.nodes[-1].attributes.get_int("allowzero", 0)
        require(fits, f"{_name(value)} has another shape")
        return source

    def times(self, value: ir.Value | None, factor: ir.Value) -> ir.Value:
        """Return x where a Mul of x and `factor` made `value`, and note it.

        Raises: UnlikeError where something else did.
        """
        first, second = self.step(value, "Mul", 2)
        require(factor in (first, second), f"{_name(value)} is no multiple of {_name(factor)}")
        return second if first is factor else first

    def require_closed(self, results: Iterable[ir.Value]) -> None:
        """Raise UnlikeError where a node that stays reads what a noted one makes, `results` aside."""
        kept = set(results)
        for value in (v for node in self.nodes for v in node.outputs if v not in kept):
            used = value.is_graph_output() or any(use.node not in self.nodes for use in value.uses())
            require(not used, f"{_name(value)} is read elsewhere")


def is_vector(value: ir.Value, *shape: int) -> bool:
    """Return whether `value` is a constant of `shape`."""
    return value.const_value is not None and list(value.const_value.shape) == list(shape)


def _name(value: ir.Value | None) -> str:
    return "an absent input" if value is None else str(value.name)


def _kind(node: ir.Node | None) -> str:
    return "no node" if node is None else node.op_type
