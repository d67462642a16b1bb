"""Attention windows by layer, as the checkpoint's configuration has them.

Before: ``GroupQueryAttention(…)`` in every layer of a model that alternates local and global attention: mobius's fusion
drops the mask that held the window.
After: ``GroupQueryAttention(…, local_window_size=W)`` in the local layers, no such attribute in the global ones.

Letters: W window, the number of most recent keys a query sees, its own included.
"""

import re
from collections.abc import Sequence

import onnx_ir as ir

from edgeslim.errors import ExportError

_PRESENT = re.compile(r"present\.(\d+)\.key")
_ATTRIBUTE = "local_window_size"


class SlidingWindows(ir.passes.InPlacePass):
    """Give the attention of layer i the window `windows[i]` (None: all keys).

    Raises: ExportError when a layer is to have a window and its attention is no GroupQueryAttention.
    """

    def __init__(self, windows: Sequence[int | None]) -> None:
        super().__init__()
        self.windows = tuple(windows)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for value in model.graph.outputs:
            match = _PRESENT.fullmatch(value.name or "")
            if match is not None:
                modified |= _set_window(value, self.windows[int(match.group(1))])
        return ir.passes.PassResult(model, modified)


def _set_window(present: ir.Value, window: int | None) -> bool:
    """Set the window of the attention node that gives `present`; return whether anything changed."""
    node = present.producer()
    if node is None or node.op_type != "GroupQueryAttention":
        if window is None:
            return False
        found = node.op_type if node is not None else "no node"
        raise ExportError(f"{present.name}: a window of {window} needs GroupQueryAttention, found {found}")
    if node.attributes.get_int(_ATTRIBUTE, -1) == (-1 if window is None else window):
        return False
    if window is None:
        del node.attributes[_ATTRIBUTE]
    else:
        node.attributes[_ATTRIBUTE] = ir.AttrInt64(_ATTRIBUTE, window)
    return True
