"""An ONNX file read without the onnx package says the same as that package; damage is one error."""

import math

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgeslim.errors import BundleError
from edgeslim.runtime.graph_file import read_graph


def test_nodes_attributes_constants_and_inputs_are_those_that_onnx_reads(exported):
    model = onnx.load(exported.bundle / "model.onnx", load_external_data=False)
    graph = read_graph(exported.bundle / "model.onnx")
    assert len(graph.nodes) == len(model.graph.node) > 10
    for node, theirs in zip(graph.nodes, model.graph.node, strict=True):
        assert (node.name, node.op_type, node.domain) == (theirs.name, theirs.op_type, theirs.domain)
        assert (node.inputs, node.outputs) == (tuple(theirs.input), tuple(theirs.output))
        for attribute in theirs.attribute:
            if attribute.type in (attribute.INT, attribute.FLOAT, attribute.INTS):
                assert node.attributes[attribute.name] == helper.get_attribute_value(attribute)
            elif attribute.type == attribute.STRING:
                assert node.attributes[attribute.name] == attribute.s.decode()
    assert {t.name: tuple(t.dims) for t in model.graph.initializer} == {n: c.shape for n, c in graph.constants.items()}
    assert [value.name for value in graph.inputs] == [value.name for value in model.graph.input]


def test_bytes_of_external_constants_are_those_of_the_data_file(exported):
    graph = read_graph(exported.bundle / "model.onnx")
    data = (exported.bundle / "model.onnx.data").stat().st_size
    large = sum(constant.bytes for constant in graph.constants.values() if constant.bytes >= 1024)
    assert 0.8 * data < large <= data


def test_every_way_to_write_numbers_and_shapes_is_read(tmp_path):
    tensors = [
        numpy_helper.from_array(np.zeros((3, 5), np.float32), "raw"),
        helper.make_tensor("typed", TensorProto.INT64, [2], [-1, 1 << 40]),
        helper.make_tensor("half", TensorProto.INT4, [5], [1, 2, 3, 4, 5]),
    ]
    node = helper.make_node("Op", ["x", "", "raw"], ["y"], "n", domain="d", i=-7, f=0.5, s="text", l=[1, -2, 300])
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["batch", 4, None])
    graph = helper.make_graph([node], "g", [value], [], tensors)
    onnx.save(helper.make_model(graph), tmp_path / "m.onnx")
    read = read_graph(tmp_path / "m.onnx")
    assert read.nodes[0].attributes == {"i": -7, "f": 0.5, "s": "text", "l": [1, -2, 300]}
    assert read.nodes[0].inputs == ("x", "", "raw")
    assert [c.name for c in read.constants_of(read.nodes[0])] == ["raw"]
    assert {name: (c.shape, c.bytes) for name, c in read.constants.items()} == {
        "raw": ((3, 5), 60),
        "typed": ((2,), 16),
        "half": ((5,), 3),
    }
    assert (read.inputs[0].shape, read.inputs[0].element_bytes) == (("batch", 4, "?"), 2)


def test_a_file_that_is_not_there_and_one_that_is_no_graph_are_said(tmp_path):
    with pytest.raises(BundleError, match=r"not a bundle: it has no model\.onnx"):
        read_graph(tmp_path / "model.onnx")
    (tmp_path / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(BundleError, match="not an ONNX file, or damaged"):
        read_graph(tmp_path / "model.onnx")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_bytes_raise_nothing_but_a_bundle_error(tmp_path_factory, data):
    tensor = numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(2, 3), "w")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [], [], [tensor])
    content = bytearray(helper.make_model(graph).SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file = tmp_path_factory.getbasetemp() / "damaged.onnx"
    file.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
    try:
        read = read_graph(file)
    except BundleError:
        return
    assert all(math.prod(c.shape) is not None for c in read.constants.values())
