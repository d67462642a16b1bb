"""Products with block-column sparse matrices, in standard operators that skip what is zero.

Before: ``y = MatMul(x, W)``, x [B, T, K], where blocks of outputs share their inputs.
After, G blocks of R outputs that read C inputs each::

    xt = Unsqueeze(Transpose(x), 2)              [B, K, 1, T]       once for all products of x
    g  = Gather(xt, inputs, axis=1)              [B, G C, 1, T]     once for all products of x that read the same
    m  = Conv(g, W', group=G)                    [B, G R, 1, T]     1 x 1: a product a block, W' [G R, C, 1, 1]
    y  = Transpose(Squeeze(m, 2))                [B, T, N]

Blocks of other sizes (a ragged last one, keys and values beside queries) get a Conv of their own; a Concat joins them.

Why a grouped convolution and not a batched MatMul: measured on stock onnxruntime, fp32, two threads, one token: it
stores the weights of a convolution as its vector units read them and streams them at 56 GB/s; those of a MatMul with
a constant of three dimensions stay as they are and come at 25. Why channels before tokens: Gather takes 8 ns for each
piece it copies, a number or a row of T.

Letters: B batch, T tokens, K inputs, N outputs, G groups, R rows of a block, C inputs of a block.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from edgeslim.exporters.initializers import add_initializer, drop_unused
from edgeslim.exporters.packing import F32
from edgeslim.exporters.passes.quantize_linears import constant_matrix
from edgeslim.exporters.row_blocks import BlockPattern, RowBlock, find_blocks

CHANNELS = 16
"""Inputs of a block are filled up to a multiple of this with zero weights, for onnxruntime's fast convolution."""
WORTH = 0.9
"""The part of a matrix's products that may be left at most: gathering takes time too."""


def find_patterns(graph: ir.Graph) -> dict[str, BlockPattern]:
    """Return the blocks of each matrix of `graph` that they are worth gathering for, by the name of its product."""
    found = {}
    for node in graph:
        weight = constant_matrix(node) if fits(node) else None
        if weight is None or weight.const_value is None:
            continue
        array = weight.const_value.numpy()
        rows = array if node.attributes.get_int("transB", 0) == 1 else array.T
        pattern = find_blocks(rows)
        if pattern is not None and stored_weights(pattern) <= WORTH * rows.size:
            found[node.name or ""] = pattern
    return found


class GatherLinears(ir.passes.InPlacePass):
    """Replace the products named in `patterns` (node name to the blocks of its matrix)."""

    def __init__(self, patterns: Mapping[str, BlockPattern]) -> None:
        super().__init__()
        self.patterns = patterns

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = [node for node in model.graph if (node.name or "") in self.patterns and fits(node)]
        writer = _Writer(model.graph)
        for node in nodes:
            writer.replace(node, self.patterns[node.name or ""])
        drop_unused(model.graph)
        return ir.passes.PassResult(model, bool(nodes))


def fits(node: ir.Node) -> bool:
    """Return whether `node` multiplies [B, T, K] by a constant matrix."""
    if constant_matrix(node) is None or (x := node.inputs[0]) is None:
        return False
    return x.shape is not None and x.shape.rank() == 3


def runs(pattern: BlockPattern) -> list[list[RowBlock]]:
    """Return the blocks in runs of neighbours of one size, each of which becomes one Conv."""
    found: list[list[RowBlock]] = []
    for block in pattern.blocks:
        if found and block.rows == found[-1][0].rows and channels(block) == channels(found[-1][0]):
            found[-1].append(block)
        else:
            found.append([block])
    return found


def channels(block: RowBlock) -> int:
    """Return how many inputs the products of a block are stored with."""
    return max(1, -(-len(block.columns) // CHANNELS)) * CHANNELS


def stored_weights(pattern: BlockPattern) -> int:
    """Return how many weights are stored, those that fill up included."""
    return sum(block.rows * channels(block) for block in pattern.blocks)


@dataclass
class _Writer:
    """Writes the nodes; what several products of one value can share is made once."""

    graph: ir.Graph
    turned: dict[ir.Value, ir.Value] = field(default_factory=dict)
    gathered: dict[tuple[ir.Value, bytes], ir.Value] = field(default_factory=dict)

    def replace(self, node: ir.Node, pattern: BlockPattern) -> None:
        x, weight, y = node.inputs[0], constant_matrix(node), node.outputs[0]
        assert x is not None and weight is not None and weight.name is not None
        transposed = node.attributes.get_int("transB", 0) == 1
        at = _Place(self.graph, node)
        parts = [
            self._product(at, x, weight, run, f"{weight.name}.rows{run[0].start}", transposed=transposed)
            for run in runs(pattern)
        ]
        joined = parts[0] if len(parts) == 1 else at.add("Concat", parts, f"{y.name}_parts", axis=1)
        flat = at.add("Squeeze", [joined, _integers(self.graph, "gather_axis", [2])], f"{y.name}_flat")
        result = at.add("Transpose", [flat], f"{y.name}_by_token", perm=[0, 2, 1])
        result.name, result.shape, result.type = y.name, y.shape, y.type
        y.replace_all_uses_with(result, replace_graph_outputs=True)
        self.graph.remove(node, safe=True)

    def _product(
        self, at: "_Place", x: ir.Value, weight: ir.Value, run: Sequence[RowBlock], name: str, *, transposed: bool
    ) -> ir.Value:
        """Return the outputs of the blocks of `run` [B, rows, 1, T]."""
        inputs = np.concatenate([_filled(block) for block in run])
        source, first = weight.const_value, run[0]
        assert source is not None

        def convolution() -> ir.TensorProtocol:
            array = source.numpy()
            return ir.tensor(_weights(array if transposed else array.T, run))

        shape = ir.Shape([first.rows * len(run), channels(first), 1, 1])
        tensor = ir.LazyTensor(convolution, dtype=ir.DataType.FLOAT, shape=shape, name=name)
        stored = add_initializer(self.graph, name, tensor)
        return at.add("Conv", [self._gather(at, x, inputs), stored], f"{name}_out", group=len(run), kernel_shape=[1, 1])

    def _gather(self, at: "_Place", x: ir.Value, inputs: np.ndarray) -> ir.Value:
        key = (x, inputs.tobytes())
        if key not in self.gathered:
            name = f"{x.name}_inputs{len(self.gathered)}"
            index = _integers(self.graph, f"{name}_index", inputs)
            self.gathered[key] = at.add("Gather", [self._turn(at, x), index], name, axis=1)
        return self.gathered[key]

    def _turn(self, at: "_Place", x: ir.Value) -> ir.Value:
        if x not in self.turned:
            by_channel = at.add("Transpose", [x], f"{x.name}_by_channel", perm=[0, 2, 1])
            axis = _integers(self.graph, "gather_axis", [2])
            self.turned[x] = at.add("Unsqueeze", [by_channel, axis], f"{x.name}_channels")
        return self.turned[x]


@dataclass(frozen=True)
class _Place:
    """Where nodes are inserted: before `before`."""

    graph: ir.Graph
    before: ir.Node

    def add(self, op: str, inputs: Sequence[ir.Value], name: str, **attributes: int | list[int]) -> ir.Value:
        """Insert a node of operator `op` and return its output, called `name`."""
        node = ir.node(op, inputs, attributes, name=f"{name}_{op.lower()}")
        output = node.outputs[0]
        output.name, output.type = name, ir.TensorType(ir.DataType.FLOAT)
        self.graph.insert_before(self.before, node)
        return output


def _integers(graph: ir.Graph, name: str, values: Sequence[int] | np.ndarray) -> ir.Value:
    return add_initializer(graph, name, ir.tensor(np.asarray(values, np.int64), name=name))


def _filled(block: RowBlock) -> np.ndarray:
    """Return the inputs of `block`, filled up with input 0 (whose weights are then zero)."""
    return np.pad(block.columns, (0, channels(block) - len(block.columns)))


def _weights(matrix: F32, run: Sequence[RowBlock]) -> F32:
    """Return the weights [rows, channels, 1, 1] of the blocks of `run` in `matrix` [N, K]."""
    parts = []
    for block in run:
        part = np.zeros((block.rows, channels(block), 1, 1), np.float32)
        part[:, : len(block.columns), 0, 0] = matrix[block.start : block.stop, block.columns]
        parts.append(part)
    return np.concatenate(parts)
