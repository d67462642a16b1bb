"""edgeslim: make a small language model smaller and faster for its device, and prove it there.

The public functions are imported on first use, so that ``import edgeslim`` loads no torch.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

# In a checkout (bare or editable) the packages `edgeslim.exporters`, `edgeslim.runtime` and `edgeslim.devices`
# are the top-level folders beside this one; a wheel holds them inside this package.
if not (Path(__file__).parent / "exporters").is_dir():
    __path__.append(str(Path(__file__).parent.parent))

_HOME = {
    "EdgeslimError": "errors",
    "EvalRecipe": "recipe",
    "ExportRecipe": "recipe",
    "ProfileRecipe": "recipe",
    "PruneRecipe": "recipe",
    "Recipe": "recipe",
    "RunRecipe": "recipe",
    "compress": "api",
    "eval": "api",
    "export": "api",
    "profile": "api",
    "prune": "api",
    "read_recipe": "recipe",
    "run": "api",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
