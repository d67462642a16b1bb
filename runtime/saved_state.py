"""Saved states: the recurrent states and caches of a conversation in one safetensors file, for prefixes used again.

The file holds the tensors by the names that the graph gives them (the native runtime: its own bytes, as one tensor),
the logits after the last token, and in its metadata whose state it is. Only the bundle and the engine that wrote a
state go on from it; then exactly.

A safetensors file is an 8-byte little-endian length, a JSON header of that length, and the tensors' bytes.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgeslim.errors import BundleError, first_line
from edgeslim.runtime.config import read_object
from edgeslim.runtime.manifest import MANIFEST, sha256

Arrays = Mapping[str, npt.NDArray[Any]]
Owner = Literal["ort", "native"]

FORMAT = "edgeslim-state-1"
LOGITS = "logits"
_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I64": np.dtype("<i8"),
    "U8": np.dtype("u1"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_HEADER_LIMIT = 100_000_000  # bytes; the format's own limit


@dataclass(frozen=True, kw_only=True)
class SavedState:
    """A state of `position` tokens that `engine` made of the bundle whose identity is `bundle`."""

    engine: Owner
    bundle: str
    position: int
    arrays: Arrays


def bundle_identity(bundle: Path) -> str:
    """Return a checksum of the graphs and weights of `bundle`, of those in its manifest where it has one."""
    recorded = read_object(bundle / MANIFEST).get("files")
    if isinstance(recorded, dict):
        sums = {name: str(record.get("sha256")) for name, record in recorded.items() if _is_model(name)}
    else:
        sums = {path.name: sha256(path) for path in bundle.iterdir() if _is_model(path.name)}
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()


def write_state(file: Path, state: SavedState) -> None:
    """Write `state` into `file`, which appears whole or stays as it was."""
    arrays = {name: np.ascontiguousarray(array) for name, array in state.arrays.items()}
    metadata = {
        "format": FORMAT,
        "engine": state.engine,
        "bundle": state.bundle,
        "position": str(state.position),
        "sha256": _checksum(arrays),
    }
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, array in arrays.items():
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": _NAMES[array.dtype], "shape": list(array.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    partial = file.with_name(f".{file.name}.partial")
    try:
        with partial.open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            for array in arrays.values():
                stream.write(array.reshape(-1).view(np.uint8).data)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def read_state(file: Path, engine: Owner, bundle: str) -> SavedState:
    """Return the state in `file`, its arrays mapped from there.

    Raises: BundleError where it is no state, damaged, or not one of `engine` and of the bundle of that identity.
    """
    metadata, arrays = _read(file)
    if metadata.get("format") != FORMAT:
        raise BundleError(f"{file}: holds no saved state; expected a file that --save-state wrote")
    if metadata.get("bundle") != bundle:
        raise BundleError(f"{file}: the state of another bundle; only the one that it was saved with goes on from it")
    if metadata.get("engine") != engine:
        raise BundleError(f"{file}: a state of engine {metadata.get('engine')!r}; open the bundle with that one")
    if not metadata.get("position", "").isdecimal() or metadata.get("sha256") != _checksum(arrays):
        raise BundleError(f"{file}: damaged: its checksum differs")
    return SavedState(engine=engine, bundle=bundle, position=int(metadata["position"]), arrays=arrays)


def state_engine(file: Path) -> str:
    """Return the engine whose state `file` holds.

    Raises: BundleError where it holds none.
    """
    metadata, _ = _read(file)
    if metadata.get("format") != FORMAT:
        raise BundleError(f"{file}: holds no saved state; expected a file that --save-state wrote")
    return metadata.get("engine", "")


def _is_model(name: str) -> bool:
    return name.endswith((".onnx", ".data"))


def _checksum(arrays: Arrays) -> str:
    digest = hashlib.sha256()
    for name, array in arrays.items():
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _read(file: Path) -> tuple[dict[str, str], Arrays]:
    """Return metadata and arrays of a safetensors file whose contents nobody has vouched for."""
    try:
        raw = np.memmap(file, np.uint8, "r")
    except FileNotFoundError:
        raise BundleError(f"{file}: no such file") from None
    except (OSError, ValueError) as fault:
        raise BundleError(f"{file}: holds no saved state: {first_line(fault)}") from None
    length = int.from_bytes(raw[:8].tobytes(), "little")
    if raw.size < 8 or length > min(_HEADER_LIMIT, raw.size - 8):
        raise BundleError(f"{file}: holds no saved state; expected a file that --save-state wrote")
    try:
        header = json.loads(raw[8 : 8 + length].tobytes())
        metadata = {str(key): str(value) for key, value in header.pop("__metadata__", {}).items()}
        return metadata, {name: _array(raw[8 + length :], entry) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as fault:
        raise BundleError(f"{file}: damaged: {first_line(fault)}") from None


def _array(data: npt.NDArray[np.uint8], entry: Mapping[str, Any]) -> npt.NDArray[Any]:
    begin, end = entry["data_offsets"]
    if not 0 <= begin <= end <= data.size:
        raise ValueError(f"a tensor at bytes {begin} to {end} of {data.size}")
    array: npt.NDArray[Any] = data[begin:end].view(_DTYPES[entry["dtype"]])
    return array.reshape([int(d) for d in entry["shape"]])
