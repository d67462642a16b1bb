"""The kernel libraries that travel in a bundle: the top of the folder for its own architecture, others below `lib/`."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from edgeslim.errors import ExportError, did_you_mean
from edgeslim.runtime.library import ARCHITECTURES, architecture, find_library, library_name


def find_libraries(architectures: Sequence[str] | None) -> dict[str, Path]:
    """Return the library of each of `architectures`; None: of this machine's alone, where it has one.

    Raises: ExportError for an architecture that is not known, or whose library has not been built.
    """
    if architectures is None:
        own = find_library()
        return {} if own is None else {architecture(): own}
    found = {}
    for name in architectures:
        if name not in ARCHITECTURES:
            raise ExportError(f"arch {name!r} is not known{did_you_mean(name, ARCHITECTURES)}")
        path = find_library(name)
        if path is None:
            hint = "`make cross` builds it" if name == "aarch64" else "install edgeslim where a C++ compiler is"
            raise ExportError(f"no kernel library for {name} is at hand; {hint}, or export with --no-library")
        found[name] = path
    return found


def copy_libraries(libraries: dict[str, Path], bundle: Path) -> dict[str, str]:
    """Copy `libraries`, by architecture, into the folder `bundle`; return their places in it.

    The first one is that of the bundle's own architecture.
    """
    places = {}
    for index, (name, path) in enumerate(libraries.items()):
        place = library_name() if index == 0 else f"lib/{name}/{library_name()}"
        (bundle / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, bundle / place)
        places[name] = place
    return places
