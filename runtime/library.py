"""The kernel library: where it is, what it offers, and its kernels by themselves through ctypes.

The library is optional. Without it every bundle runs on stock onnxruntime by the function bodies of its operators.
"""

import ctypes
import os
import platform
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeslim.errors import EdgeslimError, RuntimeUnavailable

VARIABLE = "EDGESLIM_LIBRARY"
"""Environment variable: path of the library to use, or ``none``."""

ISA_VARIABLE = "EDGESLIM_ISA"
"""Environment variable: the kernel variant to use instead of the best one, read by the library itself."""

ARCHITECTURES = ("x86_64", "aarch64")
"""Architectures that there are kernels for."""

_LAYOUTS = {"dense": 0, "bitmap": 1, "nm": 2}
_SCALES = {None: 0, "float32": 1, "float16": 2}
_TEXT = 256


def library_name(system: str = sys.platform) -> str:
    """Return the file name of the library on `system`, one of sys.platform's names."""
    return {"win32": "edgeslim.dll", "darwin": "libedgeslim.dylib"}.get(system, "libedgeslim.so")


def architecture() -> str:
    """Return this machine's architecture as bundles name it: x86_64, aarch64 or the bare machine name."""
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


def find_library(arch: str | None = None) -> Path | None:
    """Return the path of the kernel library for `arch` (this machine's), None where this installation has none.

    Raises: RuntimeUnavailable where the environment names a library that is not there.
    """
    if arch not in (None, architecture()):
        return next((path for path in _places(arch, f"lib/{arch}") if path.is_file()), None)
    asked = os.environ.get(VARIABLE)
    if asked == "none":
        return None
    if asked:
        if not Path(asked).is_file():
            raise RuntimeUnavailable(f"{VARIABLE}={asked}: no such file; unset it, or set it to the library's path")
        return Path(asked)
    return next((path for path in _places("native", ".") if path.is_file()), None)


def _places(build: str, folder: str) -> list[Path]:
    """Return where a library may lie: built in a checkout, inside this package, or beside the installed one."""
    here, name = Path(__file__).parent, library_name()
    places = [here.parent / "build" / build / name, here / folder / name]
    with suppress(metadata.PackageNotFoundError):
        installed = metadata.distribution("edgeslim").locate_file("edgeslim/runtime")
        places.append(Path(str(installed)) / folder / name)
    return places


class _Matrix(ctypes.Structure):
    _fields_ = (
        ("layout", ctypes.c_int32),
        ("scale_type", ctypes.c_int32),
        *((name, ctypes.c_int64) for name in ("n", "k", "bits", "group", "pattern_n", "pattern_m")),
        *((name, ctypes.c_void_p) for name in ("values", "masks", "offsets", "scales")),
        *((name, ctypes.c_int64) for name in ("value_count", "mask_count", "offset_count", "scale_count")),
    )


class _Call(ctypes.Structure):
    _fields_ = (
        ("x", ctypes.c_void_p),
        ("x_stride", ctypes.c_int64),
        ("gate", ctypes.c_void_p),
        ("gate_stride", ctypes.c_int64),
        ("norm", ctypes.c_void_p),
        ("epsilon", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("bias", "residual", "y")),
        ("tokens", ctypes.c_int64),
        *((name, ctypes.c_int32) for name in ("float_activations", "threads", "repeats")),
        ("function", ctypes.c_char_p),
    )


class KernelLibrary:
    """The kernels of one library. A packed matrix is given as its attributes and its tensors by name."""

    def __init__(self, path: Path) -> None:
        """Load the library at `path`.

        Raises: RuntimeUnavailable where it cannot be loaded.
        """
        try:
            self._c = ctypes.CDLL(str(path))
        except OSError as fault:
            raise RuntimeUnavailable(f"{path}: the kernel library does not load: {fault}") from None
        for name in ("edgeslim_isa", "edgeslim_isa_chosen"):
            getattr(self._c, name).restype = ctypes.c_char_p
        self._c.edgeslim_read.restype = ctypes.c_uint64
        self._c.edgeslim_read.argtypes = [ctypes.c_void_p, ctypes.c_int64]

    @property
    def isas(self) -> list[str]:
        """The variants compiled in, best first; those that this processor runs."""
        names: list[str] = []
        while (name := self._c.edgeslim_isa(len(names))) is not None:
            names.append(name.decode())
        return [name for i, name in enumerate(names) if self._c.edgeslim_isa_available(i)]

    @property
    def chosen(self) -> str:
        """The variant that operators use on this machine."""
        return str(self._c.edgeslim_isa_chosen().decode())

    def check(self, attributes: Mapping[str, Any], tensors: Mapping[str, npt.NDArray[Any] | None]) -> None:
        """Raise EdgeslimError unless the packed matrix is well formed."""
        text = ctypes.create_string_buffer(_TEXT)
        if self._c.edgeslim_check(ctypes.byref(_matrix(attributes, tensors)), text, ctypes.c_int64(_TEXT)):
            raise EdgeslimError(text.value.decode())

    def linear(
        self,
        attributes: Mapping[str, Any],
        tensors: Mapping[str, npt.NDArray[Any] | None],
        x: npt.NDArray[np.float32],
        *,
        isa: str | None = None,
        threads: int = 1,
        repeats: int = 1,
        **operands: Any,
    ) -> npt.NDArray[np.float32]:
        """Return PackedLinear's output [T, n] for `x` [T, X]. `operands`: gate, norm, bias, residual, epsilon,
        activations, function."""
        arrays = {"x": x, **{name: operands.get(name) for name in ("gate", "norm", "bias", "residual")}}
        _check_operands(arrays, len(x), attributes["n"], attributes["k"])
        pointers = {name: None if array is None else array.ctypes.data for name, array in arrays.items()}
        y = np.empty((len(x), attributes["n"]), np.float32)
        gate, function = operands.get("gate"), operands.get("function")
        call = _Call(
            **pointers,
            x_stride=x.shape[1],
            gate_stride=0 if gate is None else gate.shape[1],
            epsilon=operands.get("epsilon", 0.0),
            y=y.ctypes.data,
            tokens=len(x),
            float_activations=operands.get("activations", "int8") == "float",
            threads=threads,
            repeats=repeats,
            function=None if function is None else function.encode(),
        )
        matrix, text = _matrix(attributes, tensors), ctypes.create_string_buffer(_TEXT)
        name = None if isa is None else isa.encode()
        if self._c.edgeslim_run_linear(ctypes.byref(matrix), ctypes.byref(call), name, text, ctypes.c_int64(_TEXT)):
            raise EdgeslimError(text.value.decode())
        return y

    def gather(
        self,
        attributes: Mapping[str, Any],
        tensors: Mapping[str, npt.NDArray[Any] | None],
        ids: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.float32]:
        """Return rows `ids` of the matrix, [ids, k]."""
        out, text = np.empty((len(ids), attributes["k"]), np.float32), ctypes.create_string_buffer(_TEXT)
        matrix = _matrix(attributes, tensors)
        if self._c.edgeslim_gather(
            ctypes.byref(matrix),
            ctypes.c_void_p(ids.ctypes.data),
            ctypes.c_int64(len(ids)),
            ctypes.c_void_p(out.ctypes.data),
            text,
            ctypes.c_int64(_TEXT),
        ):
            raise EdgeslimError(text.value.decode())
        return out

    def read(self, data: npt.NDArray[np.uint8]) -> int:
        """Read every byte of `data` once: what a bandwidth is measured by."""
        return int(self._c.edgeslim_read(data.ctypes.data, data.nbytes))


@cache
def kernel_library() -> KernelLibrary | None:
    """Return this installation's kernel library, None where it has none."""
    path = find_library()
    return None if path is None else KernelLibrary(path)


def _matrix(attributes: Mapping[str, Any], tensors: Mapping[str, npt.NDArray[Any] | None]) -> _Matrix:
    arrays = {name: tensors.get(name) for name in ("values", "masks", "offsets", "scales")}
    scales = arrays["scales"]
    return _Matrix(
        layout=_LAYOUTS[attributes["layout"]],
        scale_type=_SCALES[None if scales is None else str(scales.dtype)],
        **{name: attributes.get(name, 0) for name in ("n", "k", "bits", "group", "pattern_n", "pattern_m")},
        **{name: None if array is None else array.ctypes.data for name, array in arrays.items()},
        **{f"{name[:-1]}_count": 0 if array is None else _count(name, array) for name, array in arrays.items()},
    )


def _count(name: str, array: npt.NDArray[Any]) -> int:
    return array.nbytes if name == "values" else array.size


def _check_operands(arrays: Mapping[str, npt.NDArray[Any] | None], tokens: int, n: int, k: int) -> None:
    """Raise EdgeslimError unless every operand holds what the kernel will read of it."""
    wanted = {"x": (tokens, k), "gate": (tokens, k), "norm": (k,), "bias": (n,), "residual": (tokens, n)}
    for name, array in arrays.items():
        if array is None:
            continue
        shape = wanted[name]
        fits = array.ndim == len(shape) and array.shape[:-1] == shape[:-1] and array.shape[-1] >= shape[-1]
        if not fits or array.dtype != np.float32 or not array.flags.c_contiguous:
            raise EdgeslimError(
                f"{name} must be contiguous float32 of shape {list(shape)}, got {array.dtype} {list(array.shape)}"
            )
