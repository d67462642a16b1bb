"""The one file that holds a bundle's weights."""

from pathlib import Path

import onnx_ir as ir

from edgeslim.exporters.passes.quantize_linears import SAME_BYTES
from edgeslim.runtime.manifest import DATA

_ALIGNMENT = 4096
"""Larger tensors start on a page, so that they are mapped, and kernels may load whole vectors from them."""
_INLINE_BELOW = 256  # bytes; shape inference must see the small constants
_ALIGN_THRESHOLD = 2048  # bytes; smaller tensors are packed densely


def write_data(model: ir.Model, bundle_dir: Path) -> None:
    """Write the initializers of `model` into the data file, those that share bytes once, and let it refer to them."""
    values = model.graph.initializers
    shared = {
        value: values[value.metadata_props[SAME_BYTES]]
        for value in values.values()
        if SAME_BYTES in value.metadata_props
    }
    for value in shared:
        value.const_value = None  # keeps it from being written
    ir.external_data.unload_from_model(
        model,
        bundle_dir,
        DATA,
        size_threshold_bytes=_INLINE_BELOW,
        alignment=_ALIGNMENT,
        align_threshold=_ALIGN_THRESHOLD,
    )
    for value, owner in shared.items():
        value.const_value = _reshaped(value, owner.const_value)


def _reshaped(value: ir.Value, owner: ir.TensorProtocol | None) -> ir.TensorProtocol:
    """Return the bytes of `owner` under the shape of `value`, in the data file where the owner is there."""
    assert owner is not None and value.shape is not None and value.name is not None
    if not isinstance(owner, ir.ExternalTensor):
        return ir.tensor(owner.numpy().reshape(value.shape.numpy()), name=value.name)
    place = (owner.location, owner.offset, owner.length, owner.dtype)
    return ir.ExternalTensor(*place, shape=value.shape, name=value.name, base_dir=owner.base_dir)
