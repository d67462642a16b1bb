"""Token reduction at chosen layers, for prompts of any length.

Before: ``s = Add(x, branch)`` where a block's mixer ends (or a sum that is part of a norm).
After, at a layer of the plan, with ``removed, positions = edgeslim::PlanReduction(ids, past, …)`` once before all::

    s, positions' = edgeslim::ReduceTokens(branch, x, removed, positions, what the mixer gave)

and at the end ``kept_positions`` [B, K]: which of the tokens fed are left, those that the scoring graph's logits
[B, K, V] belong to. Single tokens, and tokens that go on from a state, lose none. What the operators compute is in
`edgeslim.exporters.tokens.operators`. Attention behind a reduction gets lengths and rotations of its own, see
`edgeslim.exporters.tokens.attention`.

Letters: B batch, N tokens, K tokens left, H hidden size, V vocabulary.
"""

from collections.abc import Sequence

import onnx_ir as ir

from edgeslim.errors import ExportError
from edgeslim.exporters.tokens.attention import Attention, lengths_of, rotate_before
from edgeslim.exporters.tokens.operators import Step, plan_reduction, reduce_tokens
from edgeslim.exporters.tokens.ops import INT64, Ops, size
from edgeslim.exporters.tokens.places import ATTENTION, Place, find_place, mixer_of
from edgeslim.runtime.session import KEPT_POSITIONS
from edgeslim.tokens.plan import BEFORE_ALL, ReductionPlan

_TOKENS, _CACHED = "sequence_len", "past_sequence_len + sequence_len"
_BEHIND, _CACHED_BEHIND = "sequence_len_after_", "cached_len_after_"


class ReduceTokens(ir.passes.InPlacePass):
    """Put the reduction that `plan` says into a graph of `depth` blocks that is not lowered yet.

    Raises: ExportError where a block is built otherwise than is known.
    """

    def __init__(self, plan: ReductionPlan, depth: int) -> None:
        super().__init__()
        self.plan, self.depth = plan, depth

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        if any(value.name == KEPT_POSITIONS for value in graph.outputs):
            return ir.passes.PassResult(model, False)
        attends = mixer_of(graph, 0).op_type == ATTENTION
        attention = [Attention.of(i, mixer_of(graph, i)) for i in range(self.depth)] if attends else []
        removed, positions, before = self._at_the_beginning(model, attends)
        for step, layer in enumerate(self.plan.layers):
            if layer == BEFORE_ALL:
                positions = self._truncate(model, removed, positions)
            else:
                positions = self._reduce(model, find_place(graph, layer), step, removed, positions, attention)
            last = [*self.plan.layers, self.depth - 1][step + 1]
            if attends:
                _give_positions(graph, attention[layer + 1 : last + 1], positions)
        _output(graph, positions, before, _left(self.plan.layers[-1]))
        return ir.passes.PassResult(model, True)

    def _at_the_beginning(self, model: ir.Model, attends: bool) -> tuple[ir.Value, ir.Value, ir.Value | None]:
        """Return how many tokens each step removes [S], the positions [B, N] of those fed, how many came before them.

        Models of scans need no position: theirs count from the tokens fed, None came before.
        """
        graph = model.graph
        inputs = {value.name: value for value in graph.inputs}
        state, before = inputs[f"past_key_values.0.{'key' if attends else 'conv_state'}"], None
        mask = inputs["attention_mask"] if attends else None
        ops = Ops(graph, "reduction")
        removed, positions = plan_reduction(model, ops, self.plan, state, mask)
        if mask is not None:
            before = ops.Sub(size(ops, mask, 1), size(ops, inputs["input_ids"], 1))
        graph.insert_before(graph[0], ops.nodes)
        return removed, positions, before

    def _truncate(self, model: ir.Model, removed: ir.Value, positions: ir.Value) -> ir.Value:
        """Drop the first unprotected tokens behind the embedding; return the positions left."""
        graph = model.graph
        embedding = next((n for n in graph if n.op_type == "Gather" and n.inputs[1] is graph.inputs[0]), None)
        if embedding is None:
            raise ExportError("the prompt cannot be truncated: no lookup of token embeddings was found")
        x = embedding.outputs[0]
        users = list(x.uses())
        ops = Ops(graph, "reduction.embedded")
        total, left = reduce_tokens(model, ops, self.plan, 0, removed, positions, Step(branch=x, residual=None))
        graph.insert_after(embedding, ops.nodes)
        for use in users:
            use.node.replace_input_with(use.idx, total)
        total.shape = x.shape
        _rename_tokens(graph, [total], BEFORE_ALL)
        return left

    def _reduce(
        self,
        model: ir.Model,
        place: Place,
        step: int,
        removed: ir.Value,
        positions: ir.Value,
        attention: Sequence[Attention],
    ) -> ir.Value:
        """Put a step where `place` says; return the positions left."""
        graph, ops = model.graph, Ops(model.graph, f"reduction.{place.layer}")
        of = Step(
            branch=place.branch,
            residual=place.residual,
            y=None if attention else place.y,
            attention=attention[place.layer] if attention else None,
        )
        reduced, left = reduce_tokens(model, ops, self.plan, step, removed, positions, of)
        graph.insert_before(place.total, ops.nodes)
        total = place.total.outputs[0]
        reduced.shape = total.shape or place.residual.shape or place.branch.shape
        total.replace_all_uses_with(reduced, replace_graph_outputs=True)
        graph.remove(place.total, safe=True)
        _rename_tokens(graph, [reduced], place.layer)
        return left


def _output(graph: ir.Graph, positions: ir.Value, before: ir.Value | None, count: str) -> None:
    """Make `positions` [B, K], of which `before` [1] lie before the tokens fed, an output of the graph."""
    ops = Ops(graph, "reduction.kept")
    kept = positions if before is None else ops.Sub(positions, before)
    kept.name, kept.type, kept.shape = KEPT_POSITIONS, ir.TensorType(INT64), ir.Shape(["batch", count])
    graph.extend(ops.nodes)
    graph.outputs.append(kept)


def _give_positions(graph: ir.Graph, layers: Sequence[Attention], positions: ir.Value) -> None:
    """Let attention in `layers`, which see the tokens at `positions`, count and rotate by them."""
    if not layers:
        return
    ops = Ops(graph, f"lengths.{layers[0].layer}")
    lengths = lengths_of(ops, layers[0], positions)
    graph.insert_before(layers[0].node, ops.nodes)
    for attention in layers:
        rotate_before(graph, attention, positions, lengths)


def _left(layer: int) -> str:
    """Return the name of the number of tokens behind the step at `layer`."""
    return f"{_BEHIND}{'embedding' if layer == BEFORE_ALL else layer}"


def _rename_tokens(graph: ir.Graph, values: Sequence[ir.Value], layer: int) -> None:
    """Give the number of tokens another name in the shapes of `values` and of all that is made of them."""
    reached = set(values)
    for value in values:
        _rename(value, layer)
    for node in graph:
        if reached.isdisjoint(v for v in node.inputs if v is not None):
            continue
        for value in node.outputs:
            reached.add(value)
            _rename(value, layer)


def _rename(value: ir.Value, layer: int) -> None:
    if value.shape is None:
        return
    dims: list[int | ir.SymbolicDim | str] = list(value.shape)
    for axis, dim in enumerate(dims):
        name = "" if isinstance(dim, int) else str(dim)
        if name == _TOKENS or name.startswith(_BEHIND):
            dims[axis] = _left(layer)
        elif name == _CACHED or name.startswith(_CACHED_BEHIND):
            dims[axis] = f"{_CACHED_BEHIND}{layer}"
    value.shape = ir.Shape(dims)
