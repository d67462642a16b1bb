"""Take a float32 graph to the operators and constants that a plan asks for."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from edgeslim.errors import ExportError
from edgeslim.exporters.functions import DOMAIN, form_name
from edgeslim.exporters.layers import Linear, layer_bytes, linears, measure_layers
from edgeslim.exporters.packed_nodes import Matrix, is_linear, matrix_of
from edgeslim.exporters.packing import F32
from edgeslim.exporters.passes import run_passes
from edgeslim.exporters.passes.fuse_attention import FuseAttention
from edgeslim.exporters.passes.fuse_causal_conv import FuseCausalConv
from edgeslim.exporters.passes.fuse_gate import FuseGate
from edgeslim.exporters.passes.fuse_norm import FuseNorm
from edgeslim.exporters.passes.fuse_query_norms import FuseQueryNorms
from edgeslim.exporters.passes.fuse_selective_scan import FuseSelectiveScan
from edgeslim.exporters.passes.fuse_state_space import FuseStateSpace
from edgeslim.exporters.passes.fuse_sums import FuseSums
from edgeslim.exporters.passes.gather_linears import GatherLinears, channels, find_patterns, stored_weights
from edgeslim.exporters.passes.half_products import HalfProducts
from edgeslim.exporters.passes.half_weights import HalfWeights
from edgeslim.exporters.passes.join_linears import JoinLinears
from edgeslim.exporters.passes.loop_tokens import LoopTokens
from edgeslim.exporters.passes.packed_linears import PackedLinears
from edgeslim.exporters.passes.quantize_linears import QuantizeLinears, stock_form
from edgeslim.exporters.passes.read_columns import ReadColumns
from edgeslim.exporters.passes.split_skip_norms import SplitSkipNorms
from edgeslim.exporters.passes.standard_operators import StandardOperators
from edgeslim.exporters.passes.store_packed import Choice, StoredMatrix, StorePacked
from edgeslim.exporters.plan import Plan
from edgeslim.exporters.row_blocks import BlockPattern
from edgeslim.exporters.tensorrt import TWO_OF_FOUR, follows_two_of_four
from edgeslim.exporters.tokens.operators import inline_reduction
from edgeslim.runtime.manifest import Layer

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Lowered:
    """The linears of a lowered graph, and what it was lowered to: kernel only where it has operators of ours."""

    layers: tuple[Layer, ...]
    lowering: str

    @property
    def uses_kernels(self) -> bool:
        """Whether the graph has operators of ours."""
        return self.lowering == "kernel"


@contextmanager
def scratch_file(folder: Path) -> Iterator[Path]:
    """Yield the path of a temporary file beside `folder`, on the same disk; it is gone afterwards."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.packing.") as place:
        yield Path(place) / "packed"


def lower(model: ir.Model, plan: Plan, scratch: Path, progress: Progress = lambda done, total: None) -> Lowered:
    """Lower `model` in place as `plan` says; packed tensors go into the file `scratch`, which must outlive it."""
    measured = measure_layers(model.graph)
    if plan.lowering != "kernel":
        inline_reduction(model)
    if plan.lowering == "dense":
        return _lower_to_stock(model, plan, measured)
    if plan.lowering == "gather":
        return _lower_to_gather(model, plan, measured)
    if plan.lowering == "tensorrt":
        return _lower_to_tensorrt(model, plan, measured)
    selected = {node for node, layer in measured.items() if plan.select(layer)}
    run_passes(model, [PackedLinears(select=lambda node: (node.name or "") in selected, lookups=plan.bits < 32)])
    run_passes(model, [SplitSkipNorms(), FuseNorm(), FuseGate(), FuseSums()])
    run_passes(model, [FuseAttention(), FuseQueryNorms(), JoinLinears(plan.joinable)])
    run_passes(model, [FuseCausalConv(), FuseStateSpace(), FuseSelectiveScan(), ReadColumns()])
    store = StorePacked(_chooser(model.graph, plan), scratch, progress=progress)
    run_passes(model, [store])
    plain = {node: layer for node, layer in measured.items() if node not in store.stored}
    layers = [
        *(_layer(node, store) for node in model.graph if is_linear(node)),
        *layer_bytes(model.graph, plain, "fp32"),
    ]
    ours = any(node.domain == DOMAIN for node in model.graph)
    return Lowered(layers=tuple(layers), lowering="kernel" if ours else "dense")


def _lower_to_stock(model: ir.Model, plan: Plan, measured: Mapping[str, Linear]) -> Lowered:
    run_passes(model, [LoopTokens()])
    if plan.is_integer:
        run_passes(model, [QuantizeLinears(plan.plain_bits, given=plan.given_stock)])
        return Lowered(layers=layer_bytes(model.graph, measured, stock_form), lowering="dense")
    run_passes(model, [HalfWeights()] if plan.bits == 16 else [])
    return Lowered(layers=layer_bytes(model.graph, measured, plan.weights), lowering="dense")


def _lower_to_gather(model: ir.Model, plan: Plan, measured: Mapping[str, Linear]) -> Lowered:
    """Let blocks of outputs gather their inputs where that skips products enough.

    Raises: ExportError where no matrix has such blocks.
    """
    patterns = find_patterns(model.graph)
    if not patterns:
        raise ExportError(
            "lowering gather needs matrices whose blocks of outputs share their inputs, found none; "
            "prune with --pattern block:ROWS (such as block:256), or export with --lowering dense"
        )
    run_passes(model, [LoopTokens(), GatherLinears(patterns), *([HalfWeights()] if plan.bits == 16 else [])])
    gathered = [_gathered_layer(measured[node], pattern, plan) for node, pattern in patterns.items()]
    return Lowered(layers=(*gathered, *layer_bytes(model.graph, measured, plan.weights)), lowering="gather")


def _lower_to_tensorrt(model: ir.Model, plan: Plan, measured: Mapping[str, Linear]) -> Lowered:
    """Write basic operators of ONNX's own domain only.

    Raises: ExportError naming an operator that has no such form.
    """
    forms = {node.name or "": _is_two_of_four(measured[node.name or ""], node) for node in linears(model.graph)}
    run_passes(model, [StandardOperators(), *([HalfProducts()] if plan.bits == 16 else [])])
    layers = tuple(
        Layer(
            name=linear.name,
            shape=linear.shape,
            sparsity=linear.sparsity,
            bytes=linear.shape[0] * linear.shape[1] * plan.bits // 8,
            form=f"{plan.weights} {TWO_OF_FOUR}" if forms[node] else plan.weights,
        )
        for node, linear in measured.items()
    )
    return Lowered(layers=layers, lowering="tensorrt")


def _is_two_of_four(linear: Linear, node: ir.Node) -> bool:
    """Return whether TensorRT may take its 2:4 kernels for a linear; reads the weights only where zeros are enough."""
    weight = node.inputs[1]
    if linear.sparsity < 0.5 or weight is None or weight.const_value is None:
        return False
    array = weight.const_value.numpy()
    return follows_two_of_four(array if node.attributes.get_int("transB", 0) == 1 else array.T)


def _gathered_layer(linear: Linear, pattern: BlockPattern, plan: Plan) -> Layer:
    weights, (n, k) = stored_weights(pattern), linear.shape
    indices = sum(channels(block) for block in pattern.blocks)
    return Layer(
        name=linear.name,
        shape=linear.shape,
        sparsity=linear.sparsity,
        bytes=weights * plan.bits // 8 + 4 * indices,
        form=f"gather_{plan.weights}",
        stored=round(weights / (n * k), 6),
        reason=f"{pattern.density:.0%} of inputs kept in {len(pattern.blocks)} blocks of at most "
        f"{max(block.rows for block in pattern.blocks)} outputs",
    )


def _chooser(graph: ir.Graph, plan: Plan) -> Callable[[Matrix, F32], Choice]:
    """Return how a matrix gets its form: one that rows are read of is an embedding."""
    embeddings = {matrix_of(node) for node in graph if node.op_type == "PackedGather"}
    return lambda matrix, dense: plan.choose(matrix, dense, embedding=matrix in embeddings)


def _layer(node: ir.Node, store: StorePacked) -> Layer:
    stored: StoredMatrix = store.stored[node.name or ""]
    return Layer(
        name=stored.matrix.name,
        shape=(stored.matrix.n, stored.matrix.k),
        sparsity=stored.sparsity,
        bytes=stored.nbytes,
        form=form_name(stored.choice.form),
        stored=stored.density,
        reason=stored.choice.reason,
    )
