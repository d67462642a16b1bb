"""Execution providers of onnxruntime: which of those that a bundle asks for this installation has."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

Provider = str | tuple[str, dict[str, str]]

CPU = "CPUExecutionProvider"


def available_providers(ort: Any, asked: Mapping[str, Mapping[str, str]], bundle: Path) -> list[Provider]:
    """Return the providers for a session of `bundle`: those `asked` for that are installed, in order, then the CPU's.

    Options whose name ends in `_path` are folders inside the bundle; they are made where they are missing.
    """
    installed = set(ort.get_available_providers())
    chosen: list[Provider] = [
        (name, {key: _placed(key, value, bundle) for key, value in options.items()})
        for name, options in asked.items()
        if name in installed
    ]
    return [*chosen, CPU]


def has_faster_provider(ort: Any, asked: Mapping[str, Mapping[str, str]]) -> bool:
    """Return whether one of the providers `asked` for is installed."""
    return not set(asked).isdisjoint(ort.get_available_providers())


def _placed(key: str, value: str, bundle: Path) -> str:
    if not key.endswith("_path"):
        return value
    folder = bundle / value
    folder.mkdir(exist_ok=True)
    return str(folder)
