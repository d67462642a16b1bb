"""Device side: run, measure and describe a bundle with numpy and ONNX Runtime, never with torch.

The names below are imported on first use, so that importing this package loads no inference engine.
The function `generate` shares its module's name: `from edgeslim.runtime.generate import generate`.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "GREEDY": "generate",
    "GenaiSession": "session",
    "OrtSession": "session",
    "Profile": "profiler",
    "RunConfig": "config",
    "Sampling": "generate",
    "Session": "session",
    "TextCodec": "text",
    "open_session": "session",
    "profile_bundle": "profiler",
    "read_config": "config",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
