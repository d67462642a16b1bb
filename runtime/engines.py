"""Which inference engines are installed, and how they are imported: telemetry off, one clear error."""

import os
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import Any, Literal

from edgeslim.errors import RecipeError, RuntimeUnavailable, did_you_mean
from edgeslim.runtime import native_library

Engine = Literal["genai", "ort", "native"]

ENGINES: tuple[Engine, ...] = ("genai", "ort", "native")

_NATIVE = "edgeslim.runtime.native_library"
_MODULES: dict[Engine, str] = {"genai": "onnxruntime_genai", "ort": "onnxruntime", "native": _NATIVE}
_HINT = 'install it with: pip install "edgeslim[cpu]" (on Jetson or CUDA, the build of onnxruntime made for it)'


def is_installed(engine: Engine) -> bool:
    """Return whether `engine` can be imported, without importing it."""
    if engine == "native":
        return native_library.is_available()
    return find_spec(_MODULES[engine]) is not None


def require_engine(engine: Engine) -> None:
    """Raise RuntimeUnavailable when `engine` is not installed, RecipeError when there is no such engine."""
    if engine not in _MODULES:
        raise RecipeError(f"unknown engine {engine!r}{did_you_mean(engine, ['auto', *_MODULES])}")
    if engine == "native" and not is_installed(engine):
        raise RuntimeUnavailable(
            "the native runtime lies in the kernel library, which edgeslim was installed without; "
            "use engine 'genai' or 'ort', or install edgeslim again where there is a C++ compiler"
        )
    if not is_installed(engine):
        raise RuntimeUnavailable(f"{_MODULES[engine]} is not installed; {_HINT}")


def import_engine(engine: Engine) -> Any:
    """Return the engine's module with its telemetry switched off.

    Raises: RuntimeUnavailable when it is not installed or does not load.
    """
    # onnxruntime-genai reads the variable while it is being imported; a user who set it to 0 keeps that.
    telemetry_off = os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1") != "0"
    name = _MODULES[engine]
    try:
        module = import_module(name)
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == name
        reason = "is not installed" if missing else f"does not load ({error})"
        raise RuntimeUnavailable(f"{name} {reason}; {_HINT}") from error
    if telemetry_off and hasattr(module, "disable_telemetry_events"):
        module.disable_telemetry_events()
    return module


def choose_engine(*, has_genai_config: bool) -> Engine:
    """Return ``genai`` where it is installed and the bundle is made for it, else ``ort``.

    Raises: RuntimeUnavailable when neither is installed.
    """
    if has_genai_config and is_installed("genai"):
        return "genai"
    if is_installed("ort"):
        return "ort"
    raise RuntimeUnavailable(f"neither onnxruntime-genai nor onnxruntime is installed; {_HINT}")


def engine_version(engine: Engine) -> str:
    """Return e.g. ``onnxruntime-genai 0.18.0``: the installed distribution's name and version."""
    if engine == "native":
        return f"edgeslim {native_library.native_library().version} native"
    name = _MODULES[engine]
    owners = metadata.packages_distributions().get(name) or [name.replace("_", "-")]
    return f"{owners[0]} {metadata.version(owners[0])}"
