"""From a Hugging Face checkpoint to an onnxruntime-genai bundle. Importing this loads neither torch nor mobius."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeslim.exporters.bundle import export_checkpoint
    from edgeslim.exporters.graph import FAMILIES, build_graph

__all__ = ["FAMILIES", "build_graph", "export_checkpoint"]

_HOMES = {"FAMILIES": "graph", "build_graph": "graph", "export_checkpoint": "bundle"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
