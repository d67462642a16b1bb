"""One operator with a state as a model of its own, by kernel or function body, and what graphs are asked in tests."""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeslim.runtime.library import find_library

LIBRARY = find_library()
needs_library = pytest.mark.skipif(
    LIBRARY is None, reason="no kernel library: edgeslim was installed without a compiler"
)
TOLERANCE = 5e-6
"""Relative to the largest output: float32 sums in another order, and e^x to 2e-7."""
ISAS = ("scalar", "avx2", "avx512-vnni", "neon-dot")
"""Of every architecture: a library takes its best variant where it has none of the name asked for."""
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Arrays = dict[str, F32]


def model_of(
    node: Any, inputs: dict[str, int], outputs: dict[str, int], weights: dict[str, F64], function: Any
) -> bytes:
    """Return a model of `node` alone: names and ranks of inputs and outputs, constants, the operator's function."""
    values = [
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [f"{name}{i}" for i in range(rank)])
            for name, rank in v
        ]
        for v in (inputs.items(), outputs.items())
    ]
    constants = [numpy_helper.from_array(a.astype(np.float32), name) for name, a in weights.items()]
    graph = helper.make_graph([node], "test", *values, constants)
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("edgeslim", 1), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, functions=[function], opset_imports=opsets, ir_version=11)
    content: bytes = model.SerializeToString()
    return content


def weights_of(model: bytes) -> dict[str, F64]:
    """Return the constants of `model` in float64."""
    tensors = onnx.load_from_string(model).graph.initializer
    return {t.name: numpy_helper.to_array(t).astype(np.float64) for t in tensors}


def session(model: bytes, *, library: bool) -> onnxruntime.InferenceSession:
    """Return a session of `model`, with the kernel library or without."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 2
    if library:
        options.register_custom_ops_library(str(LIBRARY))
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def assert_same_bits_on_every_isa(cases: Sequence[tuple[bytes, Arrays]], folder: Path) -> None:
    """Run models on their inputs by the kernels of every instruction set, each in a process of its own, which reads
    EDGESLIM_ISA once; all must give the bits of the scalar ones."""
    for index, (model, feed) in enumerate(cases):
        (folder / f"{index}.onnx").write_bytes(model)
        np.savez(folder / f"{index}.npz", **feed)
    found = {}
    for isa in ISAS:
        (folder / isa).mkdir()
        program = "import sys, recurrences; recurrences.save_outputs(*sys.argv[1:])"
        paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
        environment = {**os.environ, "EDGESLIM_ISA": isa, "PYTHONPATH": paths}
        command = [sys.executable, "-c", program, str(folder), str(folder / isa)]
        subprocess.run(command, env=environment, check=True, timeout=120)
        found[isa] = [dict(np.load(folder / isa / f"{index}.npz")) for index in range(len(cases))]
    for isa, outputs in found.items():
        for index, (arrays, expected) in enumerate(zip(outputs, found["scalar"], strict=True)):
            for name, array in arrays.items():
                assert np.array_equal(array, expected[name]), f"{name} of case {index} on {isa}"


def save_outputs(cases: str, into: str) -> None:
    """Write what the kernels give for each model in folder `cases` into folder `into`."""
    for path in Path(cases).glob("*.onnx"):
        run = session(path.read_bytes(), library=True)
        names = [output.name for output in run.get_outputs()]
        arrays = run.run(names, dict(np.load(path.with_suffix(".npz"))))
        np.savez(Path(into) / f"{path.stem}.npz", **dict(zip(names, arrays, strict=True)))


def close(found: list[F32], expected: list[Any]) -> bool:
    """Return whether all of `found` are as `expected`, to TOLERANCE of the largest."""
    pairs = list(zip(found, expected, strict=True))
    return all(
        f.shape == e.shape and np.abs(f - e).max(initial=0) <= TOLERANCE * np.abs(e).max(initial=1) for f, e in pairs
    )


BOTH = [pytest.param(False, id="body"), pytest.param(True, id="kernel", marks=needs_library)]


def kinds(model: ir.Model) -> Counter[str]:
    """Return how many nodes of each operator the graph has."""
    return Counter(node.op_type for node in model.graph)


def first(model: ir.Model, op: str) -> ir.Node:
    """Return the first node of operator `op`."""
    return next(node for node in model.graph if node.op_type == op)
