"""The two operators of token reduction, of domain `edgeslim`: nodes that call function bodies in standard operators.

Stock onnxruntime inlines the bodies; where the kernel library is registered, and without ONNX Runtime, its kernels run
instead (`runtime/native/token_reduction`).

Letters: B batch, N tokens, K tokens left, H hidden size, S steps of a plan.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as ir_passes

from edgeslim.exporters.functions import DOMAIN, VERSION
from edgeslim.exporters.tokens.attention import Attended, Attention, look
from edgeslim.exporters.tokens.counts import removals
from edgeslim.exporters.tokens.importance import scan_importance
from edgeslim.exporters.tokens.matching import pick, up_to
from edgeslim.exporters.tokens.methods import Seen, choose
from edgeslim.exporters.tokens.mixing import mixed_sum
from edgeslim.exporters.tokens.ops import END, FLOAT, INT64, Operand, Ops, piece, size
from edgeslim.tokens.plan import SCAN_METRICS, ReductionPlan, millionths

PLAN, REDUCE = "PlanReduction", "ReduceTokens"
PLAN_INPUTS = ("input_ids", "past", "ratios", "attention_mask")
REDUCE_INPUTS = ("branch", "residual", "removed", "positions", "y", "query", "key", "present_key", "cos", "sin")
_COMPARING, _RANKING = ("utrc", "pumer", "ltmp"), ("utrc", "evit", "ltmp")
"""Methods that compare tokens, and those that ask how important they are."""

Attributes = Mapping[str, str | int | float]


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a step reads: `branch` and `residual` [B, N, H], whose sum it reduces (no residual: the branch alone); `y`
    [B, N, D], what a scan makes of the tokens, None for attention, which gives `attention` and what is `attended`."""

    branch: ir.Value
    residual: ir.Value | None
    y: ir.Value | None = None
    attention: Attention | None = None


def plan_reduction(
    model: ir.Model, ops: Ops, plan: ReductionPlan, past: ir.Value, mask: ir.Value | None
) -> tuple[ir.Value, ir.Value]:
    """Make the node that says how many tokens each step removes [S], and the positions of the tokens fed [B, N].

    `past` is a state that is empty or zero at the beginning. Positions count the tokens of `mask`; without one they
    begin at 0.
    """
    ratios = np.array([millionths(ratio) for ratio in plan.ratios], np.int64)
    given = [model.graph.inputs[0], past, ops.constant("ratios", ratios), mask]
    attributes = {"protected": plan.protected, "min_tokens": plan.min_tokens}

    def body(inner: Ops, formal: Mapping[str, ir.Value]) -> Sequence[ir.Value]:
        tokens = size(inner, formal["input_ids"], 1)
        removed = removals(inner, tokens, formal["past"], formal["ratios"], plan)
        positions = up_to(inner, formal["input_ids"], tokens)
        if mask is not None:
            before = inner.Sub(size(inner, formal["attention_mask"], 1), tokens)
            positions = inner.Add(positions, before)
        return [removed, positions]

    removed, positions = _call(model, ops, PLAN, "", PLAN_INPUTS, given, attributes, body)
    return removed, positions


def reduce_tokens(
    model: ir.Model, ops: Ops, plan: ReductionPlan, step: int, removed: ir.Value, positions: ir.Value, of: Step
) -> tuple[ir.Value, ir.Value]:
    """Make the node of step number `step`: both branches' sum of the tokens left [B, K, H], their positions [B, K]."""
    attended = _attended(plan, of)
    given = [of.branch, of.residual, removed, positions, attended.y]
    given += [attended.query, attended.key, attended.present_key, attended.cos, attended.sin]

    def body(inner: Ops, formal: Mapping[str, ir.Value]) -> Sequence[ir.Value]:
        count = piece(inner, formal["removed"], step, step + 1, axis=0)
        removes = inner.Squeeze(inner.Greater(count, [0]), [0])
        there = {name: formal[name] for name, value in zip(REDUCE_INPUTS, given, strict=True) if value is not None}
        return inner.choose(
            removes,
            lambda ops: _reduced(ops, plan, step, count, there, of.attention),
            lambda ops: [_whole(ops, there), there["positions"]],
            [FLOAT, INT64],
        )

    attributes = _attributes(plan, step, of.attention)
    total, left = _call(model, ops, REDUCE, f"step{step}", REDUCE_INPUTS, given, attributes, body)
    total.type, left.type = ir.TensorType(FLOAT), ir.TensorType(INT64)
    return total, left


def inline_reduction(model: ir.Model) -> None:
    """Put the bodies in the place of both operators, for targets that are to see none of ours."""
    ir_passes.InlinePass(lambda function: function.domain == DOMAIN and function.name in (PLAN, REDUCE))(model)


def _attended(plan: ReductionPlan, of: Step) -> Attended:
    """Return what the step reads beyond its branches: nothing that method and metric do not ask for."""
    compares, ranks = plan.method in _COMPARING, plan.method in _RANKING
    attention = of.attention
    if attention is None:
        y = of.y if compares or ranks else None
        return Attended(y=y, query=None, key=None, present_key=None, cos=None, sin=None)
    received = ranks and plan.metric == "attention"
    keys = compares or (ranks and plan.metric not in SCAN_METRICS)
    query, key, value = attention.parts
    return Attended(
        y=attention.node.outputs[0] if ranks and plan.metric in SCAN_METRICS else None,
        query=query if keys else None,
        key=key if keys and value is not None else None,
        present_key=attention.node.outputs[1] if received else None,
        cos=attention.tables[0] if received else None,
        sin=attention.tables[1] if received else None,
    )


def _attributes(plan: ReductionPlan, step: int, attention: Attention | None) -> Attributes:
    found: dict[str, str | int | float] = {
        "method": plan.method,
        "metric": plan.metric,
        "hidden": plan.hidden,
        "residual": plan.residual,
        "merge": plan.merge,
        "q_millionths": millionths(plan.q),
        "protect_first": int(plan.protect_first),
        "protect_last": plan.protect_last,
        "seed": plan.seed,
        "layer": plan.layers[step],
        "step": step,
    }
    if attention is not None:
        found |= {
            "num_heads": attention.queries,
            "kv_num_heads": attention.keys,
            "head_size": attention.width,
            "scale": attention.scale,
            "local_window_size": -1 if attention.window is None else attention.window,
        }
    return found


def _whole(ops: Ops, there: Mapping[str, ir.Value]) -> ir.Value:
    return ops.Add(there["branch"], there["residual"]) if "residual" in there else there["branch"]


def _reduced(
    ops: Ops,
    plan: ReductionPlan,
    step: int,
    count: ir.Value,
    there: Mapping[str, ir.Value],
    attention: Attention | None,
) -> Sequence[ir.Value]:
    branch, positions = there["branch"], there["positions"]
    if plan.method == "truncate":
        return [_truncated(ops, value, count, int(plan.protect_first)) for value in (branch, positions)]
    if attention is not None:
        given = Attended(**{name: there.get(name) for name in REDUCE_INPUTS[4:]})
        seen = look(ops, attention, given, branch, positions, plan.metric)
    else:
        seen = Seen(
            like=branch,
            features=lambda: there["y"],
            importance=lambda: scan_importance(ops, there["y"], plan.metric),
        )
    chosen = choose(ops, plan, step, seen, count)
    return [mixed_sum(ops, branch, there["residual"], chosen), pick(ops, positions, chosen.kept)]


def _truncated(ops: Ops, value: ir.Value, count: ir.Value, first: int) -> ir.Value:
    """Return `value` [B, N, …] without `count` tokens behind the `first` ones."""
    rest = piece(ops, value, ops.Add(count, [first]), END)
    return ops.Concat(piece(ops, value, 0, first), rest, axis=1) if first else rest


def _call(
    model: ir.Model,
    ops: Ops,
    op_type: str,
    overload: str,
    names: Sequence[str],
    given: Sequence[ir.Value | None],
    attributes: Attributes,
    body: Callable[[Ops, Mapping[str, ir.Value]], Sequence[ir.Value]],
) -> Sequence[ir.Value]:
    """Make a node of an operator with two outputs, and the function that it calls."""
    last = max(index for index, value in enumerate(given) if value is not None) + 1
    formal = {name: ir.Value(name=name) for name in names}
    inner = Ops(None, op_type)
    results = body(inner, formal)
    opset = model.graph.opset_imports[""]
    graph = ir.Graph(list(formal.values()), results, nodes=inner.nodes, opset_imports={"": opset}, name=op_type)
    declared = [
        ir.Attr(name, ir.convenience.convert_attribute(name, value).type, None) for name, value in attributes.items()
    ]
    function = ir.Function(DOMAIN, op_type, overload, graph=graph, attributes=declared)
    model.functions[function.identifier()] = function
    model.graph.opset_imports.setdefault(DOMAIN, VERSION)
    operands: Sequence[Operand] = given[:last]
    outputs = ops.several(op_type, len(results), *operands, domain=DOMAIN, **attributes)
    node = outputs[0].producer()
    assert node is not None
    node.overload = overload
    return outputs
