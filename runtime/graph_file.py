"""The operators of an ONNX file, read without the onnx package: which they are, on which constants, of which sizes.

The part of protobuf that ONNX files need: a field is a key (number and wire type) and a value. Numbers of fields are
those of onnx.proto3. Functions, types of values and everything else that is not asked for is passed over; constants
are described, not read.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeslim.errors import BundleError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_BITS_OF_TYPE = {
    1: 32,
    2: 8,
    3: 8,
    4: 16,
    5: 16,
    6: 32,
    7: 64,
    9: 8,
    10: 16,
    11: 64,
    12: 32,
    13: 64,
    16: 16,
    21: 4,
    22: 4,
}
"""Bits an element, by TensorProto.DataType."""


@dataclass(frozen=True, kw_only=True)
class Constant:
    """An initializer: its shape and the bytes that its elements take."""

    name: str
    shape: tuple[int, ...]
    type: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Node:
    """One operator. `inputs` are names, "" where an optional one is left out; `attributes` numbers, texts and lists."""

    name: str
    domain: str
    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Value:
    """An input of the graph: its element type and shape, names where a size is not fixed."""

    name: str
    type: int
    shape: tuple[int | str, ...]

    @property
    def element_bytes(self) -> float:
        """Bytes an element."""
        return _BITS_OF_TYPE.get(self.type, 32) / 8


@dataclass(frozen=True, kw_only=True)
class Graph:
    """The main graph of a file."""

    nodes: tuple[Node, ...]
    constants: Mapping[str, Constant] = field(default_factory=dict)
    inputs: tuple[Value, ...] = ()

    def constants_of(self, node: Node) -> list[Constant]:
        """Return the constants that `node` reads."""
        return [self.constants[name] for name in node.inputs if name in self.constants]


def read_graph(file: Path) -> Graph:
    """Return the main graph of the ONNX `file`.

    Raises: BundleError where it cannot be read or is damaged.
    """
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        raise BundleError(f"{file.parent}: not a bundle: it has no {file.name}") from None
    try:
        graphs = [value for number, value in _fields(memoryview(content)) if number == 7]
        if not graphs:
            raise ValueError("it has no graph")
        return _graph(graphs[-1])
    except (ValueError, IndexError, struct.error, UnicodeDecodeError) as fault:
        raise BundleError(f"{file}: not an ONNX file, or damaged: {fault}") from None


def _graph(data: Any) -> Graph:
    nodes, constants, inputs = [], {}, []
    for number, value in _fields(data):
        if number == 1:
            nodes.append(_node(value))
        elif number == 5:
            constant = _constant(value)
            constants[constant.name] = constant
        elif number == 11:
            inputs.append(_value(value))
    return Graph(nodes=tuple(nodes), constants=constants, inputs=tuple(v for v in inputs if v.name not in constants))


def _node(data: Any) -> Node:
    inputs, outputs, texts, attributes = [], [], {3: "", 4: "", 7: ""}, {}
    for number, value in _fields(data):
        if number == 1:
            inputs.append(_text(value))
        elif number == 2:
            outputs.append(_text(value))
        elif number in texts:
            texts[number] = _text(value)
        elif number == 5:
            name, content = _attribute(value)
            attributes[name] = content
    return Node(
        name=texts[3],
        op_type=texts[4],
        domain=texts[7],
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        attributes=attributes,
    )


def _attribute(data: Any) -> tuple[str, Any]:
    """Return an attribute's name and value; None for graphs and other kinds."""
    name, single, many = "", None, []
    for number, value in _fields(data):
        if number == 1:
            name = _text(value)
        elif number == 2:
            single = struct.unpack("<f", value)[0]
        elif number == 3:
            single = _signed(value)
        elif number == 4:
            single = bytes(value).decode("utf-8", "replace")
        elif number == 8:
            many += _packed_integers(value)
    return name, many if single is None and many else single


def _constant(data: Any) -> Constant:
    shape: list[int] = []
    kind, name, raw, external = 0, "", 0, -1
    for number, value in _fields(data):
        if number == 1:
            shape += _packed_integers(value)
        elif number == 2:
            kind = int(value)
        elif number == 8:
            name = _text(value)
        elif number == 9:
            raw = len(value)
        elif number == 13:
            entry = dict(_entry(value))
            external = int(entry["length"]) if "length" in entry else external
    count = 1
    for size in shape:
        count *= size
    stored = external if external >= 0 else raw or -(-count * _BITS_OF_TYPE.get(kind, 32) // 8)
    return Constant(name=name, shape=tuple(shape), type=kind, bytes=stored)


def _entry(data: Any) -> Iterator[tuple[str, str]]:
    """Yield the one pair of a StringStringEntryProto."""
    key = value = ""
    for number, content in _fields(data):
        key, value = (_text(content), value) if number == 1 else (key, _text(content))
    yield key, value


def _value(data: Any) -> Value:
    name, kind, shape = "", 0, []
    for number, value in _fields(data):
        if number == 1:
            name = _text(value)
        elif number == 2:  # TypeProto: tensor_type = 1 with elem_type = 1 and shape = 2, whose dims are field 1
            for _, tensor in (entry for entry in _fields(value) if entry[0] == 1):
                for part, content in _fields(tensor):
                    if part == 1:
                        kind = int(content)
                    elif part == 2:
                        shape = [_dimension(d) for inner, d in _fields(content) if inner == 1]
    return Value(name=name, type=kind, shape=tuple(shape))


def _dimension(data: Any) -> int | str:
    for number, value in _fields(data):
        return _signed(value) if number == 1 else _text(value)
    return "?"


def _packed_integers(value: Any) -> list[int]:
    """Return a repeated integer field's content: one number, or many packed into bytes."""
    if isinstance(value, int):
        return [_signed(value)]
    numbers, at = [], 0
    while at < len(value):
        number, at = _varint(value, at)
        numbers.append(_signed(number))
    return numbers


def _fields(data: Any) -> Iterator[tuple[int, Any]]:
    """Yield number and value of each field of a message; strings, bytes and messages as views."""
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        kind, size = key & 7, 0
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if kind == _BYTES:
            size, at = _varint(data, at)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {kind} at byte {at}")
        if at + size > end:
            raise ValueError(f"a field of {size} bytes ends beyond its message")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: Any, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def _signed(number: int) -> int:
    return number - (1 << 64) if number >= 1 << 63 else number


def _text(data: Any) -> str:
    return bytes(data).decode("utf-8")
