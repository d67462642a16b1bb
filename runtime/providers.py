"""Execution providers of onnxruntime: which of those that a bundle asks for are installed, and which really run.

A provider may be compiled in and still not start (its libraries or its device are missing), start and take no node, or
take some. Each is told apart, and said: a bundle made for a GPU never runs on the CPU without a word.
"""

import hashlib
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Provider = str | tuple[str, dict[str, str]]

CPU = "CPUExecutionProvider"
_SUFFIX = "ExecutionProvider"


def available_providers(ort: Any, asked: Mapping[str, Mapping[str, str]], bundle: Path) -> list[Provider]:
    """Return the providers for a session of `bundle`: those `asked` for that are installed, in order, then the CPU's.

    Options whose name ends in `_path` are folders inside the bundle; they are made where they are missing. Of a bundle
    that cannot be written to they are in the user's cache folder instead.
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


def fallback_warning(asked: Iterable[str], installed: Iterable[str], active: Iterable[str]) -> str | None:
    """Return one sentence where a session does not run on the first of the providers `asked` for; None where it does,
    or where none is. `installed` are onnxruntime's, `active` those that the session has."""
    wanted = [name for name in asked if name != CPU]
    have, compiled = set(active), set(installed)
    if not wanted or wanted[0] in have:
        return None
    missing = [name for name in wanted if name not in have]
    used = next((name for name in wanted if name in have), CPU)
    dead = [name for name in missing if name in compiled]
    why = (
        f"{_names(dead)} did not start (its libraries or the device are missing)"
        if dead
        else f"this onnxruntime has no {_names(missing)}"
    )
    return f"the bundle is made for {_names(wanted)}; {why}, so {_names([used])} runs it"


def placement_warning(asked: Iterable[str], placement: Mapping[str, int]) -> str | None:
    """Return one sentence where the providers `asked` for ran none of the nodes, or only some; `placement` is how many
    nodes each provider ran."""
    total = sum(placement.values())
    taken = sum(placement.get(name, 0) for name in asked if name != CPU)
    if taken == total or not total:
        return None
    said = ", ".join(f"{_names([name])} {count}" for name, count in placement.items())
    part = "none" if not taken else f"{taken}"
    return f"{part} of {total} nodes ran on {_names([n for n in asked if n != CPU])} ({said})"


def describe_placement(placement: Mapping[str, int]) -> str:
    """Return e.g. ``Tensorrt 3, CPU 2 nodes``: how many nodes each provider ran, the most first."""
    parts = sorted(placement.items(), key=lambda item: -item[1])
    return ", ".join(f"{_names([name])} {count}" for name, count in parts) + " nodes"


def say(warning: str | None) -> None:
    """Print `warning` on stderr, where there is one."""
    if warning is not None:
        print(f"warning: {warning}", file=sys.stderr)


def _names(providers: Iterable[str]) -> str:
    return ", ".join(name.removesuffix(_SUFFIX) or name for name in providers)


def _placed(key: str, value: str, bundle: Path) -> str:
    if not key.endswith("_path"):
        return value
    folder = bundle / value
    if not _writable(folder if folder.exists() else bundle):
        cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        mark = hashlib.sha256(str(bundle.resolve()).encode()).hexdigest()[:16]
        folder = Path(cache) / "edgeslim" / value / mark
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder)


def _writable(folder: Path) -> bool:
    return os.access(folder, os.W_OK | os.X_OK)
