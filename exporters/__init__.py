"""From a Hugging Face checkpoint to an onnxruntime-genai bundle. Importing this loads neither torch nor mobius."""

from typing import TYPE_CHECKING

from edgeslim.lazy import lazy_names

if TYPE_CHECKING:
    from edgeslim.exporters.bundle import export_checkpoint
    from edgeslim.exporters.graph import FAMILIES, build_graph

__all__ = ["FAMILIES", "build_graph", "export_checkpoint"]

_HOME = {"FAMILIES": "graph", "build_graph": "graph", "export_checkpoint": "bundle"}
__getattr__, __dir__ = lazy_names(__name__, _HOME)
