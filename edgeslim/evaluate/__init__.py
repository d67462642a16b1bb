"""What a model is worth after compression. The names below are imported on first use."""

from importlib import import_module
from typing import Any

_HOME = {
    "PerplexityResult": "perplexity",
    "bundle_perplexity": "bundle",
    "model_perplexity": "checkpoint",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
