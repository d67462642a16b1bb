"""Small ONNX files written without the onnx package: the graphs that a probe measures operators by.

Constants lie in a data file beside the graph, as in a bundle, so that the engine maps them into memory likewise.
Numbers of fields are those of onnx.proto3.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

GRAPH, DATA = "model.onnx", "model.onnx.data"
_IR_VERSION = 10
_OPSETS = {"": 20, "com.microsoft": 1, "edgeslim": 1}
_ALIGNMENT = 4096
_INLINE = 1024  # bytes below which a constant lies in the graph: engines read shapes and axes there only
_TYPES = {"float32": 1, "uint8": 2, "int32": 6, "int64": 7, "float16": 10}

Shape = Sequence[int | str]


@dataclass(kw_only=True)
class GraphWriter:
    """A graph that grows node by node; nodes are named by their number."""

    nodes: list[bytes] = field(default_factory=list)
    inputs: list[bytes] = field(default_factory=list)
    outputs: list[bytes] = field(default_factory=list)
    constants: dict[str, npt.NDArray[Any]] = field(default_factory=dict)

    def node(
        self,
        op_type: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        *,
        domain: str = "",
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        """Add an operator; an input or output that is left out is ""."""
        message = b"".join(_text(1, name) for name in inputs) + b"".join(_text(2, name) for name in outputs)
        message += _text(3, f"node_{len(self.nodes)}") + _text(4, op_type)
        message += b"".join(_bytes(5, _attribute(*item)) for item in (attributes or {}).items())
        self.nodes.append(message + _text(7, domain))

    def input(self, name: str, dtype: str, shape: Shape) -> None:
        """Add an input of the graph."""
        self.inputs.append(_value(name, dtype, shape))

    def output(self, name: str, dtype: str, shape: Shape) -> None:
        """Add an output of the graph."""
        self.outputs.append(_value(name, dtype, shape))

    def constant(self, name: str, array: npt.NDArray[Any]) -> str:
        """Add a constant and return its name."""
        self.constants[name] = array
        return name

    def save(self, folder: Path) -> Path:
        """Write the graph and its data into `folder`; return the graph's path."""
        tensors, at = [], 0
        with (folder / DATA).open("wb") as data:
            for name, array in self.constants.items():
                if array.nbytes < _INLINE:
                    tensors.append(_described(name, array) + _bytes(9, np.ascontiguousarray(array).tobytes()))
                    continue
                data.write(b"\0" * (-at % _ALIGNMENT))
                at += -at % _ALIGNMENT
                tensors.append(_tensor(name, array, at))
                data.write(np.ascontiguousarray(array).tobytes())
                at += array.nbytes
        graph = b"".join(_bytes(1, node) for node in self.nodes) + _text(2, "micro")
        for number, messages in ((5, tensors), (11, self.inputs), (12, self.outputs)):
            graph += b"".join(_bytes(number, message) for message in messages)
        opsets = b"".join(_bytes(8, _text(1, domain) + _integer(2, v)) for domain, v in _OPSETS.items())
        model = _integer(1, _IR_VERSION) + _text(2, "edgeslim") + _bytes(7, graph) + opsets
        (folder / GRAPH).write_bytes(model)
        return folder / GRAPH


def _attribute(name: str, value: Any) -> bytes:
    if isinstance(value, str):
        return _text(1, name) + _bytes(4, value.encode()) + _integer(20, 3)
    if isinstance(value, float):
        return _text(1, name) + b"\x15" + struct.pack("<f", value) + _integer(20, 1)
    if isinstance(value, list | tuple):
        return _text(1, name) + b"".join(_integer(8, number) for number in value) + _integer(20, 7)
    return _text(1, name) + _integer(3, int(value)) + _integer(20, 2)


def _tensor(name: str, array: npt.NDArray[Any], offset: int) -> bytes:
    entries = {"location": DATA, "offset": str(offset), "length": str(array.nbytes)}
    message = _described(name, array) + b"".join(_bytes(13, _text(1, k) + _text(2, v)) for k, v in entries.items())
    return message + _integer(14, 1)  # external


def _described(name: str, array: npt.NDArray[Any]) -> bytes:
    sizes = b"".join(_integer(1, size) for size in array.shape)
    return sizes + _integer(2, _TYPES[str(array.dtype)]) + _text(8, name)


def _value(name: str, dtype: str, shape: Shape) -> bytes:
    sizes = b"".join(_bytes(1, _text(2, d) if isinstance(d, str) else _integer(1, d)) for d in shape)
    return _text(1, name) + _bytes(2, _bytes(1, _integer(1, _TYPES[dtype]) + _bytes(2, sizes)))


def _text(number: int, value: str) -> bytes:
    return _bytes(number, value.encode())


def _bytes(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _integer(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value & 0xFFFFFFFFFFFFFFFF)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])
