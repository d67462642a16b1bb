"""From a Hugging Face checkpoint folder to an onnx_ir model: the one file that knows mobius.

mobius builds the base graph (GroupQueryAttention with packed QKV, SkipSimplifiedLayerNormalization, LinearAttention)
and renames the checkpoint's parameters; this module names the families whose logits were compared with transformers'
and gives mobius the weights as memory-mapped tensors, converted to float32 one by one when they are written.

Letters: V vocabulary, H hidden size, N outputs, K inputs of a linear.
"""

import dataclasses
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mobius
import onnx_ir as ir
import torch
from mobius._config_resolver import _config_from_hf, _default_task_for_model
from mobius.tasks._base import ModelTask, _make_graph, _make_model
from safetensors import safe_open
from transformers import AutoConfig

from edgeslim.errors import ExportError, did_you_mean
from edgeslim.exporters.passes import run_passes
from edgeslim.exporters.passes.sliding_windows import SlidingWindows
from edgeslim.exporters.ssm import MODELS, CausalLM
from edgeslim.tensorfile import read_entries

_LIBRARY_FAMILIES = (
    "gemma2",
    "gpt2",
    "granite",
    "llama",
    "mistral",
    "olmo2",
    "phi",
    "phi3",
    "qwen2",
    "qwen3",
    "smollm3",
)
FAMILIES = tuple(sorted({*_LIBRARY_FAMILIES, *MODELS}))
"""`model_type` values whose graphs agree with transformers on whole, split and stepwise prompts."""

_INDEX = "model.safetensors.index.json"
_UNIFORM_WINDOW = {"mistral", "phi3"}
"""Families that apply `sliding_window` in every layer; others name the layers in `layer_types`, or ignore it."""


def build_graph(checkpoint: Path) -> ir.Model:
    """Return the float32 graph of the checkpoint in folder `checkpoint`, its weights still on disk.

    Inputs are input_ids [B, T] and, by family, attention_mask, position_ids and past states; outputs are
    logits [B, T, V] and the present states. Linear weights are initializers of shape [K, N], computed lazily from the
    memory-mapped checkpoint.

    Raises: ExportError for a family that is not supported, or weights that do not fit the configuration.
    """
    config = read_config(checkpoint)
    check_family(config, checkpoint)
    with _quiet():
        hf_config = AutoConfig.from_pretrained(checkpoint, local_files_only=True)
        module, package = _build_empty(checkpoint, hf_config)
        model: ir.Model = package["model"]
        model.graph.name = hf_config.model_type
        _apply_weights(model, module, checkpoint)
        run_passes(model, _corrections(hf_config))
    _refuse_missing(model, checkpoint)
    return model


def read_config(checkpoint: Path) -> dict[str, Any]:
    """Return config.json of `checkpoint`.

    Raises: ExportError where it is missing or not a JSON object.
    """
    path = checkpoint / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ExportError(f"{checkpoint}: no config.json; expected a Hugging Face checkpoint folder") from None
    except ValueError as fault:
        raise ExportError(f"{path}: not valid JSON: {fault}") from None
    if not isinstance(config, dict):
        raise ExportError(f"{path}: expected a JSON object, found {type(config).__name__}")
    return config


def check_family(config: dict[str, Any], checkpoint: Path) -> None:
    """Raise ExportError unless `config` is of a family in `FAMILIES`, in the plain form that was compared."""
    found = config.get("model_type")
    if found is None:
        raise ExportError(f"{checkpoint}: config.json names no model_type; expected a Hugging Face checkpoint")
    if found not in FAMILIES:
        hint = did_you_mean(str(found), FAMILIES)
        listing = "" if "expected one of" in hint else f"; supported are {', '.join(FAMILIES)}"
        raise ExportError(f"{checkpoint}: model type {found!r} cannot be exported{listing}{hint}")
    if config.get("quantization_config"):
        raise ExportError(f"{checkpoint}: the weights are already quantized; expected fp32, fp16 or bf16 weights")


def _corrections(hf_config: Any) -> list[ir.passes.InPlacePass]:
    """Return the passes that mend where mobius's graph departs from transformers' model."""
    return [SlidingWindows(attention_windows(hf_config))]


def attention_windows(hf_config: Any) -> list[int | None]:
    """Return for each layer how many keys a query sees, None: all."""
    window, depth = getattr(hf_config, "sliding_window", None), hf_config.num_hidden_layers
    types = getattr(hf_config, "layer_types", None)
    if not window:
        return [None] * depth
    if types is None:
        return [window if hf_config.model_type in _UNIFORM_WINDOW else None] * depth
    return [window if kind == "sliding_attention" else None for kind in types]


def _build_empty(checkpoint: Path, hf_config: Any) -> tuple[Any, Any]:
    """Return mobius's module and model package for the checkpoint, without weights."""
    family = hf_config.model_type
    if family in MODELS:
        module = MODELS[family](hf_config)
        facts = SimpleNamespace(dtype=ir.DataType.FLOAT)
        return module, mobius.build_from_module(module, facts, _StatesTask(), execution_provider="cpu")
    module_class = mobius.registry.get(family)
    config = _config_from_hf(hf_config, parent_config=hf_config, module_class=module_class)
    config = dataclasses.replace(config, dtype=ir.DataType.FLOAT)
    module = module_class(config)
    try:
        package = mobius.build_from_module(module, config, _default_task_for_model(family), execution_provider="cpu")
    except (ValueError, TypeError, KeyError, NotImplementedError) as fault:
        raise ExportError(f"{checkpoint}: mobius cannot build the graph: {fault}") from fault
    return module, package


class _StatesTask(ModelTask):  # type: ignore[misc]  # the library has no types
    """The graph around a model of ours: tokens and states in, logits and states out."""

    def build(self, module: CausalLM, config: Any) -> dict[str, ir.Model]:
        graph, builder = _make_graph()
        batch, count = ir.SymbolicDim("batch"), ir.SymbolicDim("sequence_len")
        past_count, total = ir.SymbolicDim("past_sequence_len"), ir.SymbolicDim("total_sequence_len")
        ids = builder.input("input_ids", dtype=ir.DataType.INT64, shape=[batch, count])
        attends = any("key" in states for states in module.states)
        mask = builder.input("attention_mask", dtype=ir.DataType.INT64, shape=[batch, total]) if attends else None

        def past(index: int, kind: str, shape: tuple[int | None, ...]) -> ir.Value:
            dims = [batch, *(past_count if d is None else d for d in shape)]
            value: ir.Value = builder.input(f"past_key_values.{index}.{kind}", dtype=ir.DataType.FLOAT, shape=dims)
            return value

        pasts = [
            {kind: past(index, kind, shape) for kind, shape in states.items()}
            for index, states in enumerate(module.states)
        ]
        logits, presents = module(builder.op, ids, mask, pasts)
        builder.add_output(logits, "logits")
        for index, (states, present) in enumerate(zip(module.states, presents, strict=True)):
            for kind, shape in states.items():
                value = present[kind]
                value.shape = ir.Shape([batch, *(total if d is None else d for d in shape)])
                value.type = ir.TensorType(ir.DataType.FLOAT)
                builder.add_output(value, f"present.{index}.{kind}")
        return {"model": _make_model(graph)}


def _apply_weights(model: ir.Model, module: Any, checkpoint: Path) -> None:
    """Give `model` the checkpoint's tensors: views of the mapped files, cast one by one when written."""
    tensors = dict(_mapped_tensors(checkpoint))
    weights = module.named_weights(tensors) if isinstance(module, CausalLM) else module.preprocess_weights(tensors)
    try:
        mobius.apply_weights(model, weights)
    except ValueError as fault:
        raise ExportError(f"{checkpoint}: the weights do not fit config.json: {fault}") from None


def _mapped_tensors(checkpoint: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor) of every tensor in the checkpoint's safetensors files, memory-mapped, nothing read.

    Raises: CheckpointError for a damaged file.
    """
    for path in _weight_files(checkpoint):
        read_entries(path)  # says what is wrong with a damaged file
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  # the handle is no mapping
                yield name, file.get_tensor(name)


def _weight_files(checkpoint: Path) -> list[Path]:
    index = checkpoint / _INDEX
    if not index.is_file():
        names = ["model.safetensors"]
    else:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    for name in names:
        if Path(name).name != name:
            raise ExportError(f"{index}: names the file {name!r} outside the checkpoint")
        if not (checkpoint / name).is_file():
            raise ExportError(f"{checkpoint}: no {name}; expected the weights as safetensors")
    return [checkpoint / name for name in names]


def _refuse_missing(model: ir.Model, checkpoint: Path) -> None:
    missing = [name for name, value in model.graph.initializers.items() if value.const_value is None]
    if missing:
        shown = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise ExportError(f"{checkpoint}: the checkpoint lacks {len(missing)} tensors of the graph: {shown}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence mobius, onnxscript and onnx_ir below errors: what matters is checked here and by the parity test."""
    loggers = [logging.getLogger(name) for name in ("mobius", "onnxscript", "onnx_ir", "onnx_shape_inference")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
