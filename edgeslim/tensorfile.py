"""Single tensors read from and written into safetensors files, without mapping or loading the rest.

A safetensors file is an 8-byte little-endian length, a JSON header of that length, and the tensors' bytes.
The library maps the whole file; here only the bytes of one tensor are touched, so that resident memory stays small.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from edgeslim.errors import CheckpointError

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_HEADER_LIMIT = 100_000_000  # bytes; the format's own limit


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """Where one floating-point tensor lies: file, byte offset and length, dtype, shape."""

    file: Path
    offset: int
    nbytes: int
    dtype: torch.dtype
    shape: tuple[int, ...]


def read_entries(file: Path) -> dict[str, TensorEntry]:
    """Return the floating-point tensors of the safetensors `file` by name.

    Raises: CheckpointError where the header is not one, or points outside the file.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(_HEADER_LIMIT, size - 8):
            raise CheckpointError(f"{file}: not a safetensors file (header of {length} bytes in a file of {size})")
        try:
            header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            entries = {
                name: _entry(file, 8 + length, value) for name, value in header.items() if value["dtype"] in _DTYPES
            }
        except (ValueError, KeyError, TypeError, AttributeError) as fault:
            raise CheckpointError(f"{file}: the safetensors header is damaged ({fault!r})") from None
    for name, entry in entries.items():
        if entry.offset + entry.nbytes > size:
            raise CheckpointError(f"{file}: tensor {name!r} reaches beyond the file's end; the file is truncated")
    return entries


def read_tensor(entry: TensorEntry) -> torch.Tensor:
    """Return the tensor at `entry`, in its own dtype, in memory of its own."""
    tensor = torch.empty(entry.shape, dtype=entry.dtype)
    if entry.nbytes:
        with entry.file.open("rb", buffering=0) as stream:
            stream.seek(entry.offset)
            view = _raw(tensor)
            done = 0
            while done < entry.nbytes:
                count = stream.readinto(view[done:])
                if not count:
                    raise CheckpointError(f"{entry.file}: ended while a tensor was read")
                done += count
    return tensor


def write_tensor(entry: TensorEntry, tensor: torch.Tensor) -> None:
    """Write `tensor` over the bytes at `entry`, and sync them.

    Raises: ValueError where shape or dtype differ from the entry's.
    """
    if tuple(tensor.shape) != entry.shape or tensor.dtype != entry.dtype:
        raise ValueError(f"expected {entry.dtype} {entry.shape}, got {tensor.dtype} {tuple(tensor.shape)}")
    data = _raw(tensor.detach().cpu().contiguous())
    with entry.file.open("r+b") as stream:
        stream.seek(entry.offset)
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _raw(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a contiguous tensor on the CPU, without copying them."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _entry(file: Path, start: int, value: dict[str, Any]) -> TensorEntry:
    begin, end = (int(offset) for offset in value["data_offsets"])
    shape = tuple(int(dim) for dim in value["shape"])
    dtype = _DTYPES[value["dtype"]]
    expected = dtype.itemsize
    for dim in shape:
        expected *= dim
    if begin < 0 or min(shape, default=0) < 0 or end - begin != expected:
        raise ValueError(f"shape {shape} of {dtype} does not fill bytes {begin} to {end}")
    return TensorEntry(file=file, offset=start + begin, nbytes=end - begin, dtype=dtype, shape=shape)
