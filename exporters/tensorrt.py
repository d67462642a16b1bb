"""What onnxruntime's TensorRT provider is told of a bundle, and the 2:4 sparsity that it looks for.

TensorRT uses its sparse kernels for a product where, for each output channel, every four consecutive input channels
have at least two zeros [1], and where it measures them to be faster while it builds the engine. Of MatMul's constant
[K, N] that is along axis 0. Reported for TensorRT 10.3 on a Jetson Orin Nano: MatMul is taken for it as Gemm is [2].

References
[1] TensorRT documentation, "Structured Sparsity" (docs.nvidia.com/deeplearning/tensorrt).
[2] github.com/onnxsim/onnxsim/pull/1764
[3] onnxruntime.ai/docs/execution-providers/TensorRT-ExecutionProvider.html: the options.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeslim.exporters.genai import context_length
from edgeslim.exporters.packing import F32

TENSORRT, CUDA = "TensorrtExecutionProvider", "CUDAExecutionProvider"
TWO_OF_FOUR = "2:4"
"""Ends the form of a layer that TensorRT may take sparse kernels for."""
ENGINES = "trt_engines"
"""Folder inside the bundle for built engines."""
LONGEST = 1024
"""Tokens that one engine takes at once at most: its memory is that of its longest prompt."""
MOST_PAST = 4096
USUAL_PAST = 512
"""Tokens in the state that engines are tuned for, at one new token."""


def follows_two_of_four(weight: F32) -> bool:
    """Return whether at most two of every four consecutive inputs are kept in each row of `weight` [N, K]."""
    outputs, inputs = weight.shape
    if inputs % 4:
        return False
    kept = np.count_nonzero(weight.reshape(outputs, -1, 4), axis=-1)
    return bool((kept <= 2).all())


def provider_options(
    graph: ir.Graph, config: Mapping[str, Any], *, half: bool, sparse: bool
) -> dict[str, dict[str, str]]:
    """Return onnxruntime's providers in order of preference, each with its options; the CPU's comes last by itself.

    `half` lets TensorRT use half precision, `sparse` its 2:4 kernels. Paths are relative to the bundle.
    """
    most = min(context_length(config), MOST_PAST)
    shapes = {
        "min": _shapes(graph, new=1, past=0),
        "opt": _shapes(graph, new=1, past=min(USUAL_PAST, most // 2)),
        "max": _shapes(graph, new=min(LONGEST, most), past=most),
    }
    options = {
        "trt_fp16_enable": "1" if half else "0",
        "trt_sparsity_enable": "1" if sparse else "0",
        "trt_layer_norm_fp32_fallback": "1",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": ENGINES,
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": ENGINES,
        **{f"trt_profile_{kind}_shapes": text for kind, text in shapes.items()},
    }
    return {TENSORRT: options, CUDA: {}}


def _shapes(graph: ir.Graph, *, new: int, past: int) -> str:
    """Return every input's shape for one sequence of `past` tokens and `new` ones, as the provider reads it."""
    found = []
    for value in graph.inputs:
        assert value.shape is not None and value.name is not None
        rest = [_size(size, index, value.name, new, past) for index, size in enumerate(value.shape[1:], 1)]
        found.append(f"{value.name}:{'x'.join(map(str, [1, *rest]))}")
    return ",".join(found)


def _size(size: object, index: int, name: str, new: int, past: int) -> int:
    if isinstance(size, int):
        return size
    if name == "attention_mask":
        return past + new
    return past if name.startswith("past_") else new
