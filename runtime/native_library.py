"""The native runtime's C interface (native/include/edgeslim.h) through ctypes: where its libraries are, what it offers.

The runtime lies in the same library as the kernels. It loads ONNX Runtime's own library, of the installed Python
package or the one that the environment names; the Python package itself is not imported.
"""

import ctypes
import os
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgeslim.errors import BundleError, EdgeslimError, RecipeError, RuntimeUnavailable
from edgeslim.runtime.library import find_library

ORT_VARIABLE = "EDGESLIM_ONNXRUNTIME"
"""Environment variable: path of ONNX Runtime's library, or of the folder it lies in."""

API_VERSION = 1

FUNCTION_BODIES, FOREIGN_LIBRARIES, WITH_ONNXRUNTIME, WITHOUT_ONNXRUNTIME = 1, 2, 4, 8
"""Flags of a model: operators by their bodies; operator libraries that a bundle brings along; every graph in ONNX
Runtime; none."""

_NAMES = ("libonnxruntime.so", "libonnxruntime.dylib", "libonnxruntime.", "onnxruntime.dll")


class Cancelled(EdgeslimError):
    """A call that another thread cancelled."""


class Error(ctypes.Structure):
    """edgeslim_error: a code and one line of text."""

    _fields_ = (("code", ctypes.c_int32), ("message", ctypes.c_char * 508))


class ModelOptions(ctypes.Structure):
    """edgeslim_model_options."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("threads", ctypes.c_int32),
        ("onnxruntime", ctypes.c_char_p),
        ("graph", ctypes.c_char_p),
    )


class ModelInfo(ctypes.Structure):
    """edgeslim_model_info."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("vocab_size", ctypes.c_int32),
        ("context_length", ctypes.c_int64),
        ("room", ctypes.c_int64),
        ("bos_token", ctypes.c_int32),
        ("end_token_count", ctypes.c_int32),
        ("packed", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("onnxruntime", ctypes.c_char * 32),
        ("isa", ctypes.c_char * 32),
    )


class SessionOptions(ctypes.Structure):
    """edgeslim_session_options."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("room", ctypes.c_int64),
        ("chunk", ctypes.c_int64),
    )


class SamplingOptions(ctypes.Structure):
    """edgeslim_sampling."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("repetition_penalty", ctypes.c_float),
        ("temperature", ctypes.c_float),
        ("top_k", ctypes.c_int32),
        ("top_p", ctypes.c_float),
        ("min_p", ctypes.c_float),
        ("seed", ctypes.c_uint64),
    )


OnToken = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_int32, ctypes.c_void_p)


class Generation(ctypes.Structure):
    """edgeslim_generation."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("end_token_count", ctypes.c_int32),
        ("end_tokens", ctypes.POINTER(ctypes.c_int32)),
        ("max_new_tokens", ctypes.c_int64),
        ("sampling", SamplingOptions),
        ("on_token", OnToken),
        ("user", ctypes.c_void_p),
        ("produced", ctypes.c_int64),
        ("ended_by", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
    )


_P, _I32, _I64, _SIZE = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_size_t
_ERROR = ctypes.POINTER(Error)
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "api_version": (_I32, []),
    "version": (ctypes.c_char_p, []),
    "model_load": (_I32, [ctypes.c_char_p, ctypes.POINTER(ModelOptions), ctypes.POINTER(_P), _ERROR]),
    "model_free": (None, [_P]),
    "model_get_info": (_I32, [_P, ctypes.POINTER(ModelInfo), _ERROR]),
    "model_end_tokens": (_I32, [_P, ctypes.POINTER(_I32), _I32]),
    "session_open": (_I32, [_P, ctypes.POINTER(SessionOptions), ctypes.POINTER(_P), _ERROR]),
    "session_free": (None, [_P]),
    "session_reset": (None, [_P]),
    "session_position": (_I64, [_P]),
    "session_room": (_I64, [_P]),
    "session_feed": (_I32, [_P, _P, _I64, _ERROR]),
    "session_logits": (ctypes.POINTER(ctypes.c_float), [_P]),
    "session_sample": (_I32, [_P, ctypes.POINTER(SamplingOptions), ctypes.POINTER(_I32), _ERROR]),
    "sample": (
        _I32,
        [_P, _I32, _P, _I64, ctypes.POINTER(SamplingOptions), _I64, ctypes.POINTER(_I32), _ERROR],
    ),
    "uniform": (ctypes.c_double, [ctypes.c_uint64, _I64]),
    "session_generate": (_I32, [_P, _P, _I64, ctypes.POINTER(Generation), _ERROR]),
    "session_cancel": (None, [_P]),
    "session_resume": (None, [_P]),
    "session_save": (_I32, [_P, _P, _SIZE, ctypes.POINTER(_SIZE), _ERROR]),
    "session_restore": (_I32, [_P, ctypes.c_char_p, _SIZE, _ERROR]),
}

_KINDS: dict[int, type[EdgeslimError]] = {
    1: RecipeError,  # EDGESLIM_INVALID_ARGUMENT
    2: BundleError,  # EDGESLIM_BAD_BUNDLE
    3: RuntimeUnavailable,  # EDGESLIM_RUNTIME_UNAVAILABLE
    5: RecipeError,  # EDGESLIM_CONTEXT_FULL
    6: Cancelled,  # EDGESLIM_CANCELLED
    8: BundleError,  # EDGESLIM_BAD_STATE
}


class NativeLibrary:
    """The functions of edgeslim.h in the library at `path`, by their names without ``edgeslim_``."""

    def __init__(self, path: Path) -> None:
        """Load the library.

        Raises: RuntimeUnavailable where it does not load or is of another version.
        """
        self.path = path
        try:
            self._c = ctypes.CDLL(str(path))
            for name, (result, arguments) in _SIGNATURES.items():
                self.declare(name, result, arguments)
        except (OSError, AttributeError) as fault:
            raise RuntimeUnavailable(f"{path}: no native runtime loads from it: {fault}") from None
        if (found := self.call("api_version")) != API_VERSION:
            raise RuntimeUnavailable(f"{path}: the native runtime has interface {found}, expected {API_VERSION}")

    def declare(self, name: str, result: Any, arguments: list[Any]) -> None:
        """Say what the function `name` returns and takes.

        Raises: AttributeError where the library has none of that name.
        """
        function = getattr(self._c, f"edgeslim_{name}")
        function.restype, function.argtypes = result, arguments

    def call(self, name: str, *arguments: Any) -> Any:
        """Return what the function `name` returns."""
        return getattr(self._c, f"edgeslim_{name}")(*arguments)

    def check(self, name: str, *arguments: Any) -> None:
        """Call a function whose last parameter is an error.

        Raises: the EdgeslimError that its code means.
        """
        error = Error()
        if code := self.call(name, *arguments, ctypes.byref(error)):
            raise _KINDS.get(code, EdgeslimError)(error.message.decode(errors="replace"))

    @property
    def version(self) -> str:
        """The library's version."""
        return str(self.call("version").decode())


def onnxruntime_library() -> Path | None:
    """Return ONNX Runtime's library: what the environment names, else that of the installed package; None without."""
    if asked := os.environ.get(ORT_VARIABLE):
        return Path(asked)
    spec = find_spec("onnxruntime")
    folders = [Path(folder) / "capi" for folder in (spec.submodule_search_locations or ())] if spec else []
    found = (path for folder in folders for path in sorted(folder.glob("*onnxruntime.*")) if _is_library(path))
    return next(found, None)


def _is_library(path: Path) -> bool:
    return path.name.startswith(_NAMES) and "providers" not in path.name


def is_available() -> bool:
    """Return whether there is a native runtime here, without loading it. Packed bundles need nothing more, others an
    ONNX Runtime."""
    return find_library() is not None


@cache
def native_library() -> NativeLibrary:
    """Return this installation's native runtime.

    Raises: RuntimeUnavailable where it has none.
    """
    path = find_library()
    if path is None:
        raise RuntimeUnavailable(
            "no native runtime: edgeslim was installed without a C++ compiler, or EDGESLIM_LIBRARY=none; "
            "use engine 'genai' or 'ort'"
        )
    return NativeLibrary(path)
