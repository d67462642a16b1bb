"""Graphs written without the onnx package pass its checker, and run."""

import numpy as np
import onnx
import pytest

from edgeslim.devices.micro_bundle import write_micro_bundle
from edgeslim.devices.onnx_writer import GraphWriter
from edgeslim.runtime.graph_file import read_graph
from edgeslim.runtime.profiler import profile_bundle
from edgeslim.runtime.session import open_session


@pytest.fixture
def written(tmp_path):
    graph = GraphWriter()
    graph.input("x", "float32", ["batch", 40])
    w = graph.constant("w", np.arange(1600, dtype=np.float32).reshape(40, 40))
    small = graph.constant("small", np.array([2.0], np.float32))
    graph.node("MatMul", ["x", w], ["h"])
    graph.node("LeakyRelu", ["h"], ["r"], attributes={"alpha": 0.25})
    graph.node("Mul", ["r", small], ["y"])
    graph.output("y", "float32", ["batch", 40])
    return graph.save(tmp_path)


def test_the_checker_accepts_it_and_a_large_constant_lies_in_the_data_file(written):
    onnx.checker.check_model(str(written), full_check=True)
    model = onnx.load(written, load_external_data=False)
    assert [t.data_location == t.EXTERNAL for t in model.graph.initializer] == [True, False]
    assert (written.parent / "model.onnx.data").stat().st_size == 6400


def test_it_computes_what_its_operators_say(written):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(written), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).standard_normal((3, 40), np.float32)
    h = x @ np.arange(1600, dtype=np.float32).reshape(40, 40)
    expected = 2 * np.where(h < 0, 0.25 * h, h)
    np.testing.assert_allclose(session.run(None, {"x": x})[0], expected, rtol=1e-5, atol=1e-3)


def test_our_own_reader_reads_it_back(written):
    graph = read_graph(written)
    assert [node.op_type for node in graph.nodes] == ["MatMul", "LeakyRelu", "Mul"]
    assert graph.nodes[1].attributes == {"alpha": 0.25}
    assert {name: c.bytes for name, c in graph.constants.items()} == {"w": 6400, "small": 4}


@pytest.mark.parametrize("engine", ["genai", "ort", "native"])
def test_every_engine_runs_the_micro_bundle(tmp_path, engine):
    write_micro_bundle(tmp_path, 1000)
    session = open_session(tmp_path, engine, threads=1, max_length=32)
    first = session.feed(np.array([[3, 5, 9]]))
    later = session.feed(np.array([[7]]))
    assert first.shape == later.shape == (1, 1000)
    assert session.position == 4 and not np.array_equal(first, later)


def test_the_micro_bundle_can_be_profiled(tmp_path):
    write_micro_bundle(tmp_path, 1000)
    profile = profile_bundle(tmp_path, prompt_tokens=4, new_tokens=4, repeats=1, threads=1)
    assert 0 < profile.decode_ms_p50 < 100
