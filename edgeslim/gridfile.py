"""The grid that a checkpoint's weights lie on, kept beside them: what lets an export pack them without rounding again.

A checkpoint pruned onto a grid still holds ordinary floating-point tensors; `edgeslim_grid.safetensors` in the same
folder has the scales of each linear, float16 [outputs, groups], under the linear's name, and in its metadata under
`grids` a JSON object from that name to the grid ("int3:64"). The integers are weight / scale, rounded: a tensor stored
in half precision is off by less than a third of a step.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from edgeslim.errors import CheckpointError, RecipeError
from edgeslim.quantize.grid import Grid, parse_grid

GRID_FILE = "edgeslim_grid.safetensors"


@dataclass(frozen=True)
class LinearGrid:
    """Grid and scales (float16 [outputs, groups]) of one linear."""

    grid: Grid
    scales: npt.NDArray[np.float16]


def write_grids(path: Path, grids: Mapping[str, LinearGrid]) -> None:
    """Write the grids of linears, by name, to the file `path`, and sync it."""
    names = json.dumps({name: str(entry.grid) for name, entry in sorted(grids.items())})
    tensors = {name: np.ascontiguousarray(entry.scales) for name, entry in grids.items()}
    save_file(tensors, path, metadata={"grids": names})
    with path.open("rb") as file:
        os.fsync(file.fileno())


def read_grids(path: Path) -> dict[str, LinearGrid]:
    """Return the grids of linears, by name, that the file `path` holds; none where there is no such file.

    Raises: CheckpointError where the file is damaged.
    """
    if not path.is_file():
        return {}
    try:
        with safe_open(path, framework="np") as file:
            names: dict[str, str] = json.loads((file.metadata() or {})["grids"])
            return {name: _entry(parse_grid(text), file.get_tensor(name)) for name, text in names.items()}
    except (SafetensorError, RecipeError, ValueError, KeyError, AttributeError, TypeError) as fault:
        raise CheckpointError(f"{path}: not a file of grids: {fault}") from None


def _entry(grid: Grid, scales: npt.NDArray[Any]) -> LinearGrid:
    if scales.dtype != np.float16 or scales.ndim != 2 or not np.isfinite(scales).all() or not scales.all():
        raise ValueError(f"scales must be float16 [outputs, groups], finite and not zero, got {scales.dtype}")
    return LinearGrid(grid, scales)
