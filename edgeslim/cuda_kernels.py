"""The kernels of mamba-ssm and causal-conv1d, for tensors on a CUDA device alone.

transformers takes them wherever the packages can be imported, for every tensor; given one on the CPU they fail. A
machine with a GPU also exports, compares and scores on its CPU, where transformers' own PyTorch code must run.
"""

import functools
import sys
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

from torch import nn

KERNELS = (
    "causal_conv1d_fn",
    "causal_conv1d_update",
    "mamba_inner_fn",
    "mamba_selective_scan",
    "mamba_selective_state_update",
    "mamba2_chunk_scan",
    "mamba2_selective_state_update",
    "mamba2_split_conv1d_scan_combined",
)
"""What transformers' modules call the functions that kernels stand in for."""
_PACKAGES = ("mamba_ssm", "causal_conv1d")


def keep_kernels_to_cuda(model: nn.Module) -> None:
    """Let the mixers of `model` call kernels for CUDA tensors, PyTorch code for others. It concerns their modules, in
    which transformers keeps the functions, and so every model of their families."""
    if not any(package in sys.modules for package in _PACKAGES):
        return
    for module in _modules(model):
        for name in KERNELS:
            function = getattr(module, name, None)
            if function is not None and hasattr(function, "__wrapped__") and not hasattr(function, "on_cuda"):
                setattr(module, name, _by_device(function))


def _by_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` for CUDA tensors, and what it wraps for others."""
    own: Callable[..., Any] = function.__wrapped__  # type: ignore[attr-defined]

    @functools.wraps(own)
    def chosen(first: Any, *args: Any, **kwargs: Any) -> Any:
        return (function if first.is_cuda else own)(first, *args, **kwargs)

    chosen.on_cuda = function  # type: ignore[attr-defined]
    return chosen


def _modules(model: nn.Module) -> Iterable[ModuleType]:
    names = {type(part).__module__ for part in model.modules()}
    return [sys.modules[name] for name in sorted(names) if name.startswith("transformers.models.")]
