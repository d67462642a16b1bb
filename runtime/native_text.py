"""A bundle's tokenizer by the native runtime and onnxruntime-extensions: what apps without Python call, through ctypes.

The extensions come as a package of their own, which is not imported: the runtime loads the library inside it.
"""

import ctypes
import os
import weakref
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgeslim.errors import RecipeError, RuntimeUnavailable
from edgeslim.runtime.native_library import Error, NativeLibrary, is_available, native_library

EXTENSIONS_VARIABLE = "EDGESLIM_ORTEXTENSIONS"
"""Environment variable: path of onnxruntime-extensions' library, or of the folder it lies in."""

_P, _I32, _I64, _SIZE = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_size_t
_TEXT, _ERROR = ctypes.c_char_p, ctypes.POINTER(Error)
_SIGNATURES: dict[str, list[Any]] = {
    "tokenizer_open": [_TEXT, _TEXT, ctypes.POINTER(_P), _ERROR],
    "tokenizer_encode": [_P, _TEXT, _I32, _P, _I64, ctypes.POINTER(_I64), _ERROR],
    "tokenizer_decode": [_P, _P, _I64, _P, _SIZE, ctypes.POINTER(_SIZE), _ERROR],
    "decoder_open": [_P, ctypes.POINTER(_P), _ERROR],
    "decoder_push": [_P, _I32, ctypes.POINTER(_TEXT), _ERROR],
    "tokenizer_free": [_P],
    "decoder_free": [_P],
}


def extensions_library() -> Path | None:
    """Return onnxruntime-extensions' library: what the environment names, else that of the installed package."""
    if asked := os.environ.get(EXTENSIONS_VARIABLE):
        return Path(asked)
    spec = find_spec("onnxruntime_extensions")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    found = (path for folder in folders for path in sorted(folder.glob("_extensions_pydll*")))
    return next((path for path in found if path.suffix in (".so", ".pyd", ".dylib")), None)


def is_text_available() -> bool:
    """Return whether there are a native runtime and onnxruntime-extensions here, without loading them."""
    return is_available() and extensions_library() is not None


class NativeTokenizer:
    """The tokenizer of one bundle. It and its decoders are used by one thread at a time."""

    def __init__(self, bundle: Path, *, extensions: Path | None = None) -> None:
        """Read the tokenizer of `bundle`; `extensions` is the library to use instead of the installed one.

        Raises: BundleError when it has none that can be read; RuntimeUnavailable without the libraries.
        """
        self._library, found = _library(), extensions or extensions_library()
        self._handle = _P()
        path = str(found).encode() if found else None
        self._library.check("tokenizer_open", str(bundle).encode(), path, ctypes.byref(self._handle))
        weakref.finalize(self, self._library.call, "tokenizer_free", self._handle)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Return the tokens of `text`; `special` adds those that the bundle puts around a text.

        Raises: RecipeError for a text that C cannot take.
        """
        if "\0" in text:
            raise RecipeError("a text must not hold a zero character")
        given, needed = (self._handle, text.encode(), int(special)), _I64()
        self._library.check("tokenizer_encode", *given, None, 0, ctypes.byref(needed))
        tokens = (_I32 * needed.value)()
        self._library.check("tokenizer_encode", *given, tokens, len(tokens), ctypes.byref(needed))
        return list(tokens)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, without special tokens and characters that are not complete."""
        tokens, needed = (_I32 * len(ids))(*ids), _SIZE()
        given = (self._handle, tokens, len(ids))
        self._library.check("tokenizer_decode", *given, None, 0, ctypes.byref(needed))
        text = ctypes.create_string_buffer(needed.value + 1)
        self._library.check("tokenizer_decode", *given, text, len(text), ctypes.byref(needed))
        return text.raw[: needed.value].decode()

    def decoder(self) -> "NativeDecoder":
        """Return a fresh streaming decoder."""
        return NativeDecoder(self, self._library, self._handle)


class NativeDecoder:
    """Tokens in, text out, one token at a time; made by `NativeTokenizer.decoder`."""

    def __init__(self, tokenizer: NativeTokenizer, library: NativeLibrary, handle: ctypes.c_void_p) -> None:
        self._tokenizer, self._library = tokenizer, library  # the tokenizer must live as long
        self._handle = _P()
        library.check("decoder_open", handle, ctypes.byref(self._handle))
        weakref.finalize(self, library.call, "decoder_free", self._handle)

    def push(self, token: int) -> str:
        """Return the text that `token` completes, often none: always whole characters."""
        text = _TEXT()
        self._library.check("decoder_push", self._handle, token, ctypes.byref(text))
        return (text.value or b"").decode()


@cache
def _library() -> NativeLibrary:
    """Return the native runtime with the functions for text declared."""
    library = native_library()
    try:
        for name, arguments in _SIGNATURES.items():
            library.declare(name, None if name.endswith("_free") else _I32, arguments)
    except AttributeError as fault:
        raise RuntimeUnavailable(f"{library.path}: an older native runtime, which has no text: {fault}") from None
    return library
