"""Graphs with packed matrices in memory, and sessions of plain onnxruntime for them."""

from pathlib import Path

import onnx_ir as ir
import onnxruntime

from edgeslim.exporters.packed import Form
from edgeslim.exporters.passes import run_passes
from edgeslim.exporters.passes.store_packed import Choice, StorePacked
from edgeslim.runtime.library import find_library

LIBRARY = find_library()


def stored(model: ir.Model, scratch: Path) -> ir.Model:
    """Pack the matrices of `model` in float32, in memory."""
    choice = Choice(form=Form(layout="dense", bits=32), reason="exact")
    run_passes(model, [StorePacked(lambda matrix, dense: choice, scratch / "packed", activations="float")])
    for value in model.graph.initializers.values():
        assert value.const_value is not None
        value.const_value = ir.tensor(value.const_value.numpy().copy(), name=value.name)
    return model


def session_of(model: ir.Model, *, library: bool) -> onnxruntime.InferenceSession:
    """A session of `model`, whose operators of ours run by kernels with the `library`, else by their bodies."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if library:
        options.register_custom_ops_library(str(LIBRARY))
    return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options, ["CPUExecutionProvider"])
