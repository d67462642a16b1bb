"""How fast each kernel is, per instruction set: what `auto` decides by, and `edgeslim bench kernels` refreshes.

A table is a JSON object: instruction set → form → density → 10⁹ weights a second, for one token on a matrix too large
for the caches. The table beside this file was measured on the machines that it names; a refreshed one lies in the
user's cache folder and takes its place, instruction set by instruction set.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgeslim.runtime.config import read_object

SHIPPED = Path(__file__).with_name("kernel_costs.json")
Table = Mapping[str, Mapping[str, float]]


def refreshed_path() -> Path:
    """Return where this user's own table lies."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "edgeslim" / "kernel_costs.json"


def read_costs(isa: str) -> Table:
    """Return form → density → Gweights/s for `isa`, empty where nobody has measured it."""
    tables = {**read_object(SHIPPED), **read_object(refreshed_path())}
    found: Any = tables.get(isa, {}).get("speeds", {})
    return dict(found)


def write_costs(isa: str, machine: str, speeds: Table) -> Path:
    """Write a measured table into the user's cache folder and return its path."""
    path = refreshed_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {**read_object(path), isa: {"machine": machine, "speeds": speeds}}
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    partial.replace(path)
    return path


def speed(costs: Table, form: str, density: float) -> float | None:
    """Return Gweights/s of `form` at `density`, interpolated between what was measured; None where nothing was."""
    points = sorted((float(at), value) for at, value in costs.get(form, {}).items())
    if not points:
        return None
    return float(np.interp(density, [at for at, _ in points], [value for _, value in points]))
