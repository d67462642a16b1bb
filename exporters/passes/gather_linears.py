"""Products with block-column sparse matrices, in standard operators that skip what is zero.

Before: ``y = MatMul(x, W)``, x [B, T, K], where blocks of outputs share their inputs.
After, G blocks of R outputs that read C inputs each::

    g = GatherElements(x, inputs, axis=2)           [B, T, G C]      once for all products of x that read the same
    c = Transpose(Unsqueeze(g, 1))                  [B, G C, 1, T]
    m = Conv(c, W', group=G)                        [B, G R, 1, T]   1 x 1: a product a block, W' [G R, C, 1, 1]
    y = Squeeze(Transpose(m), 1)                    [B, T, N]

with inputs int32 [1, 1, G C] brought to [B, T, G C] by the addition of zeros. Blocks of other sizes (a ragged last one,
keys and values beside queries) get a Conv of their own; a Concat joins them.

Measured on stock onnxruntime, fp32, two threads, one token, 320 x 480 blocks of a 5120 x 960 matrix. Grouped Conv and
not batched MatMul: it stores weights as its vector units read them and streams them at 56 GB/s; a MatMul's constant of
three dimensions stays as it is and comes at 25 (222 against 389 us in all). GatherElements and not Gather: 1 ns a
number against 8; Gather along channels laid out before tokens is the faster one for prompts (linears 1.6x the dense
ones instead of 1.35x) and loses a third of what a token gains.

Letters: B batch, T tokens, K inputs, N outputs, G groups, R rows of a block, C inputs of a block.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeslim.exporters.initializers import add_initializer, drop_unused
from edgeslim.exporters.packing import F32
from edgeslim.exporters.passes.quantize_linears import constant_matrix
from edgeslim.exporters.row_blocks import BlockPattern, RowBlock, find_blocks

Columns = npt.NDArray[np.int64]

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
    zeros: dict[tuple[str, str], ir.Value] = field(default_factory=dict)
    gathered: dict[tuple[ir.Value, bytes], ir.Value] = field(default_factory=dict)

    def replace(self, node: ir.Node, pattern: BlockPattern) -> None:
        """Put the products of the blocks of `pattern` where `node` stands."""
        x, weight, y = node.inputs[0], constant_matrix(node), node.outputs[0]
        assert x is not None and weight is not None and weight.name is not None
        transposed = node.attributes.get_int("transB", 0) == 1
        at = _Place(self.graph, node)
        parts = [
            self._product(at, x, weight, run, f"{weight.name}.rows{run[0].start}", transposed=transposed)
            for run in runs(pattern)
        ]
        joined = parts[0] if len(parts) == 1 else at.add("Concat", parts, f"{y.name}_parts", axis=1)
        by_token = at.add("Transpose", [joined], f"{y.name}_by_token", perm=[0, 2, 3, 1])
        result = at.add("Squeeze", [by_token, self._axis(1)], f"{y.name}_flat")
        result.name, result.shape, result.type = y.name, y.shape, y.type
        y.replace_all_uses_with(result, replace_graph_outputs=True)
        self.graph.remove(node, safe=True)

    def _product(
        self, at: "_Place", x: ir.Value, weight: ir.Value, run: Sequence[RowBlock], name: str, *, transposed: bool
    ) -> ir.Value:
        """Return the outputs of the blocks of `run` [B, rows, 1, T]."""
        source, first = weight.const_value, run[0]
        assert source is not None

        def convolution() -> ir.TensorProtocol:
            array = source.numpy()
            return ir.tensor(_weights(array if transposed else array.T, run))

        shape = ir.Shape([first.rows * len(run), channels(first), 1, 1])
        tensor = ir.LazyTensor(convolution, dtype=ir.DataType.FLOAT, shape=shape, name=name)
        stored = add_initializer(self.graph, name, tensor)
        inputs = self._inputs(at, x, np.concatenate([_filled(block) for block in run]))
        return at.add("Conv", [inputs, stored], f"{name}_out", group=len(run), kernel_shape=[1, 1])

    def _inputs(self, at: "_Place", x: ir.Value, columns: Columns) -> ir.Value:
        """Return the `columns` of x as channels [B, columns, 1, T]."""
        key = (x, columns.tobytes())
        if key not in self.gathered:
            name, found = f"{x.name}_inputs{len(self.gathered)}", x
            if not _is_everything(columns, x):
                index = _integers(self.graph, f"{name}_index", columns.reshape(1, 1, -1).astype(np.int32))
                everywhere = at.add("Add", [index, self._zeros(at, x)], f"{name}_everywhere", integer=True)
                found = at.add("GatherElements", [x, everywhere], name, axis=2)
            row = at.add("Unsqueeze", [found, self._axis(1)], f"{name}_row")
            self.gathered[key] = at.add("Transpose", [row], f"{name}_channels", perm=[0, 3, 1, 2])
        return self.gathered[key]

    def _zeros(self, at: "_Place", x: ir.Value) -> ir.Value:
        """Return zeros of int32 [B, T, 1]."""
        assert x.shape is not None
        known = all(isinstance(size, int) or size.value is not None for size in x.shape[:2])
        key = (str(x.shape[0]), str(x.shape[1])) if known else (x.name or "", "")
        if key not in self.zeros:
            name = f"gather_zeros{len(self.zeros)}"
            sizes = at.add("Shape", [x], f"{name}_sizes", integer=True, start=0, end=2)
            one = _integers(self.graph, "gather_one", np.ones(1, np.int64))
            shape = at.add("Concat", [sizes, one], f"{name}_shape", integer=True, axis=0)
            zero = ir.tensor(np.zeros(1, np.int32))
            self.zeros[key] = at.add("ConstantOfShape", [shape], name, integer=True, value=zero)
        return self.zeros[key]

    def _axis(self, axis: int) -> ir.Value:
        return _integers(self.graph, f"gather_axis{axis}", np.array([axis], np.int64))


@dataclass(frozen=True)
class _Place:
    """Where nodes are inserted: before `before`."""

    graph: ir.Graph
    before: ir.Node

    def add(
        self, op: str, inputs: Sequence[ir.Value], name: str, *, integer: bool = False, **attributes: Any
    ) -> ir.Value:
        """Insert a node of operator `op` and return its output, called `name`; floats unless `integer`."""
        node = ir.node(op, inputs, attributes, name=f"{name}_{op.lower()}")
        output = node.outputs[0]
        output.name = name
        if not integer:
            output.type = ir.TensorType(ir.DataType.FLOAT)
        self.graph.insert_before(self.before, node)
        return output


def _integers(graph: ir.Graph, name: str, values: npt.NDArray[Any]) -> ir.Value:
    return add_initializer(graph, name, ir.tensor(values, name=name))


def _is_everything(columns: Columns, x: ir.Value) -> bool:
    assert x.shape is not None
    return len(columns) == x.shape[-1] and bool((columns == np.arange(len(columns))).all())


def _filled(block: RowBlock) -> Columns:
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
