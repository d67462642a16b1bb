"""Write an ONNX model made elsewhere as a bundle: its constant products packed, everything else as it was."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnxscript import version_converter

from edgeslim.errors import ExportError, ParityError, first_line
from edgeslim.exporters.bundle import TEXTS, check_folder, versions, write_json
from edgeslim.exporters.data_file import write_data
from edgeslim.exporters.functions import OPSET
from edgeslim.exporters.libraries import copy_libraries, find_libraries
from edgeslim.exporters.lowering import lower, scratch_file
from edgeslim.exporters.passes import run_passes
from edgeslim.exporters.passes.plain_products import PlainProducts
from edgeslim.exporters.plan import Lowering, Weights, make_plan, target_costs
from edgeslim.runtime.engines import import_engine
from edgeslim.runtime.manifest import DATA, GENAI_CONFIG, GRAPH, Manifest, Source, record_files, sha256

TOLERANCE = {"fp32": 1e-4, "fp16": 1e-2, "int8": 0.2, "int4": 0.5, "int3": 1.0}
"""Largest allowed difference of an output, as a part of the largest one, by the form of the weights: beyond it lie
faults, not rounding."""
_DIMENSION = 4  # stands for every dimension that a model leaves open


def export_onnx(
    path: Path,
    bundle_dir: Path,
    *,
    weights: Weights = "auto",
    lowering: Lowering = "auto",
    embedding: Weights = "auto",
    architectures: Sequence[str] | None = None,
    library: bool = True,
    recipe: Mapping[str, Any] | None = None,
    source: str | None = None,
    progress: Callable[[str], None] = lambda stage: None,
) -> Manifest:
    """Export the ONNX file at `path` into the empty folder `bundle_dir`; options are those of `export_checkpoint`.

    Tokenizer files and genai_config.json beside the file are taken along. The new model is run against the old one on
    random inputs where both take them; what was not compared is said in the manifest.

    Raises: ExportError where the file is no ONNX model; ParityError; OutputError.
    """
    libraries = find_libraries(architectures)
    costs = target_costs(libraries)
    plan = make_plan(weights, lowering, library=bool(libraries), costs=costs, embedding=embedding)
    if plan.lowering == "tensorrt":
        raise ExportError(
            f"{path}: lowering tensorrt is for checkpoints; give onnxruntime's TensorRT provider the file"
        )
    check_folder(bundle_dir)
    progress("graph")
    model = _read(path)
    if plan.lowering == "kernel":
        _raise_opset(model, path)
    progress("weights")
    with scratch_file(bundle_dir) as scratch:
        lowered = lower(model, plan, scratch)
        write_data(model, bundle_dir)
        ir.save(model, bundle_dir / GRAPH)
    places = copy_libraries(libraries, bundle_dir) if lowered.uses_kernels and library else {}
    _copy_texts(path.parent, bundle_dir, places)
    progress("parity")
    used_library = next(iter(libraries.values()), None) if lowered.uses_kernels else None
    parity = _compare(path, bundle_dir / GRAPH, used_library, TOLERANCE[plan.weights])
    data = bundle_dir / DATA
    manifest = Manifest(
        source=Source(id=source or str(path), model_type="onnx", config_sha256=sha256(path)),
        weights=plan.weights,
        lowering=lowered.lowering,
        reason=plan.reason,
        weight_bytes=data.stat().st_size if data.is_file() else 0,
        layers=lowered.layers,
        libraries=places,
        files=record_files(bundle_dir),
        recipe=dict(recipe or {}),
        versions=versions(),
        parity=parity,
    )
    manifest.write(bundle_dir)
    return manifest


def _read(path: Path) -> ir.Model:
    """Return the model at `path`, its external data mapped, constants that are nodes turned into initializers."""
    if not path.is_file():
        raise ExportError(f"{path}: no such file; expected an ONNX model")
    try:
        model = ir.load(path)
    except Exception as fault:  # protobuf's and onnx_ir's own
        raise ExportError(f"{path}: not an ONNX model: {first_line(fault)}") from None
    ir.passes.common.LiftConstantsToInitializersPass()(model)
    return run_passes(model, [PlainProducts()])


def _raise_opset(model: ir.Model, path: Path) -> None:
    """Bring `model` to the opset of the function bodies, since onnxruntime inlines them under the model's own.

    Raises: ExportError where an operator of the model has no counterpart there.
    """
    if model.graph.opset_imports.get("", OPSET) >= OPSET:
        return
    try:
        version_converter.convert_version(model, OPSET, fallback=True)
    except Exception as fault:  # the converter's own errors, of two libraries
        raise ExportError(f"{path}: cannot be brought to opset {OPSET}: {first_line(fault)}") from fault
    if model.graph.opset_imports[""] < OPSET:
        raise ExportError(f"{path}: has operators that cannot be brought to opset {OPSET}; try --lowering dense")


def _copy_texts(folder: Path, bundle_dir: Path, libraries: Mapping[str, str]) -> None:
    for name in TEXTS:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, bundle_dir / name)
    if not (folder / GENAI_CONFIG).is_file():
        return
    config = json.loads((folder / GENAI_CONFIG).read_text(encoding="utf-8"))
    decoder = config.get("model", {}).get("decoder", {})
    decoder["filename"] = GRAPH
    if libraries:
        decoder.setdefault("session_options", {})["custom_ops_library"] = next(iter(libraries.values()))
    write_json(bundle_dir / GENAI_CONFIG, config)


def _compare(before: Path, after: Path, library: Path | None, tolerance: float) -> dict[str, Any]:
    """Return the largest difference of each output between two models on the same random inputs.

    Raises: ParityError when one is beyond `tolerance` times the largest output.
    """
    ort = import_engine("ort")
    try:
        old = _run(ort, before, None, None)
    except Exception as fault:  # whatever a foreign model does with inputs that it was not made for
        return {"not_compared": f"the source does not run on random inputs: {first_line(fault)}"}
    new = _run(ort, after, library, old.inputs)
    scale = max([1.0, *(float(np.abs(value).max()) for value in old.outputs.values() if value.size)])
    errors = {
        name: float(np.abs(value.astype(np.float64) - old.outputs[name]).max()) if value.size else 0.0
        for name, value in new.outputs.items()
        if np.issubdtype(value.dtype, np.floating)
    }
    allowed = tolerance * scale
    for name, error in errors.items():
        if not error <= allowed:
            raise ParityError(
                f"{after}: output {name!r} differs from the source's by {error:.3g}; allowed are {allowed:.3g}"
            )
    return {"max_abs_error": errors or {"outputs": 0.0}, "logit_scale": scale, "tolerance": tolerance}


class _Ran:
    """The inputs that a model was run on and the outputs that it gave, by name."""

    def __init__(self, inputs: dict[str, npt.NDArray[Any]], outputs: dict[str, npt.NDArray[Any]]) -> None:
        self.inputs, self.outputs = inputs, outputs


def _run(ort: Any, path: Path, library: Path | None, inputs: dict[str, npt.NDArray[Any]] | None) -> _Ran:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if library is not None:
        options.register_custom_ops_library(str(library))
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    if inputs is None:
        rng = np.random.default_rng(0)
        inputs = {i.name: _random(rng, i.type, i.shape) for i in session.get_inputs()}
    names = [output.name for output in session.get_outputs()]
    return _Ran(inputs, dict(zip(names, session.run(names, inputs), strict=True)))


def _random(rng: np.random.Generator, kind: str, shape: Sequence[int | str | None]) -> npt.NDArray[Any]:
    sizes = [d if isinstance(d, int) and d > 0 else _DIMENSION for d in shape]
    if kind == "tensor(float)":
        return rng.standard_normal(sizes).astype(np.float32)
    if kind == "tensor(float16)":
        return rng.standard_normal(sizes).astype(np.float16)
    dtypes = {
        "tensor(int64)": np.int64,
        "tensor(int32)": np.int32,
        "tensor(bool)": np.bool_,
        "tensor(double)": np.float64,
    }
    if kind not in dtypes:
        raise ExportError(f"inputs of type {kind} are not made up")
    return np.ones(sizes, dtypes[kind])
