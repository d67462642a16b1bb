"""edgeslim: make a small language model smaller and faster for its device, and prove it there.

The public functions are imported on first use, so that ``import edgeslim`` loads no torch.
"""

from pathlib import Path

from edgeslim.lazy import lazy_names

__version__ = "0.1.0"

# In a checkout (bare or editable) the packages `edgeslim.exporters`, `edgeslim.runtime` and `edgeslim.devices`
# are the top-level folders beside this one; a wheel holds them inside this package.
if not (Path(__file__).parent / "exporters").is_dir():
    __path__.append(str(Path(__file__).parent.parent))

_HOME = {
    "EdgeslimError": "errors",
    "EvalRecipe": "recipe",
    "ExportRecipe": "recipe",
    "FrontierRecipe": "recipe",
    "LayerRecipe": "recipe",
    "ProfileRecipe": "recipe",
    "PruneRecipe": "recipe",
    "Recipe": "recipe",
    "ReduceRecipe": "recipe",
    "RunRecipe": "recipe",
    "ShedRecipe": "recipe",
    "bench_kernels": "api",
    "compress": "api",
    "estimate": "api",
    "eval": "api",
    "export": "api",
    "frontier": "api",
    "inspect": "api",
    "probe": "api",
    "profile": "api",
    "prune": "api",
    "read_recipe": "recipe",
    "reduce": "api",
    "repeat_profile": "api",
    "report": "api",
    "run": "api",
    "shed": "api",
}

__all__ = sorted(_HOME)
__getattr__, __dir__ = lazy_names(__name__, _HOME)
