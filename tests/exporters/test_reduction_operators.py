"""The operators of token reduction by themselves: kernels and function bodies on numbers that leave no rounding."""

from itertools import product

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from edgeslim.exporters.tokens.operators import Step, plan_reduction, reduce_tokens
from edgeslim.exporters.tokens.ops import FLOAT, INT64, Ops
from edgeslim.runtime.library import find_library
from edgeslim.tokens.plan import BEFORE_ALL, METHODS, SCAN_METRICS, ReductionPlan

LIBRARY = find_library()
TOKENS, WIDTH = 48, 4
RNG = np.random.default_rng(3)


def step_model(plan: ReductionPlan) -> ir.Model:
    """One step of a reduction behind a scan's output y [B, N, D], of two branches as wide as it."""

    def value(name: str, element: ir.DataType, *shape: int | str) -> ir.Value:
        return ir.Value(name=name, type=ir.TensorType(element), shape=ir.Shape(["batch", *shape]))

    ids, past = value("input_ids", INT64, "tokens"), value("past", FLOAT, 1)
    branch, residual, y = (value(name, FLOAT, "tokens", WIDTH) for name in ("branch", "residual", "y"))
    graph = ir.Graph([ids, past, branch, residual, y], [], nodes=[], opset_imports={"": 24}, name="step")
    model, ops = ir.Model(graph, ir_version=11), Ops(graph, "step")
    removed, positions = plan_reduction(model, ops, plan, past, None)
    before_all = plan.layers == (BEFORE_ALL,)
    of = Step(branch=branch, residual=None if before_all else residual, y=None if before_all else y)
    total, left = reduce_tokens(model, ops, plan, 0, removed, positions, of)
    total.name, left.name = "total", "left"
    graph.extend(ops.nodes)
    graph.outputs.extend([total, left])
    return model


def run(model: bytes, feeds: dict[str, np.ndarray], by_kernels: bool) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    if by_kernels and LIBRARY:
        options.register_custom_ops_library(str(LIBRARY))
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return session.run(["total", "left"], feeds)


def powers(count: int, batch: int) -> np.ndarray:
    """Rows [B, N, D] of one entry each, of `count` lengths: cosines are 0 or 1, sums and norms exact, ties many."""
    rows = np.zeros((batch, TOKENS, WIDTH), np.float32)
    at = np.ix_(np.arange(batch), np.arange(TOKENS))
    rows[(*at, RNG.integers(WIDTH, size=(batch, TOKENS)))] = 2.0 ** RNG.integers(count, size=(batch, TOKENS))
    return rows


@pytest.mark.skipif(LIBRARY is None, reason="edgeslim was installed without a compiler")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("metric", SCAN_METRICS)
def test_kernels_and_bodies_break_ties_alike(method: str, metric: str) -> None:
    layers = (BEFORE_ALL,) if method == "truncate" else (0,)
    plan = ReductionPlan(method=method, layers=layers, ratios=(0.7,), metric=metric)
    model = ir.to_proto(step_model(plan)).SerializeToString()
    for batch, lengths in product((1, 2), (1, 3)):
        feeds = {"input_ids": np.zeros((batch, TOKENS), np.int64), "past": np.zeros((batch, 1), np.float32)}
        feeds |= {name: powers(lengths, batch) for name in ("branch", "residual", "y")}

        (found, kept), (expected, kept_by_body) = (run(model, feeds, by_kernels) for by_kernels in (True, False))

        assert kept.tolist() == kept_by_body.tolist()
        assert kept.shape[1] < TOKENS
        np.testing.assert_allclose(found, expected, atol=1e-6, rtol=0)
