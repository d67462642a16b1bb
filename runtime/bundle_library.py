"""Which kernel library a bundle runs with on this machine, if any."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgeslim.runtime.config import read_object
from edgeslim.runtime.library import ISA_VARIABLE, VARIABLE, KernelLibrary, architecture, find_library, library_name
from edgeslim.runtime.manifest import GENAI_CONFIG, MANIFEST

BODIES = "function bodies"
"""What a bundle with operators of ours runs on where there is no library for them."""


@dataclass(frozen=True, kw_only=True)
class BundleLibrary:
    """How the operators of ours in a bundle run here: by the library at `path`, which lies at `inside` in the bundle
    where that is not None; `path` None: by their function bodies. `needed` is False for bundles without any."""

    needed: bool
    path: Path | None = None
    inside: str | None = None

    @property
    def warning(self) -> str | None:
        """One sentence where operators of ours run otherwise than asked for: without kernels, or with other ones."""
        if not self.needed or os.environ.get(VARIABLE) == "none":
            return None
        if self.path is not None:
            return _other_isa(KernelLibrary(self.path))
        return (
            f"the bundle has no kernel library for {architecture()} ({library_name()}): its function bodies run "
            f"instead, slower and with unpacked weights; export it again with --arch {architecture()}"
        )


def bundle_library(bundle: Path) -> BundleLibrary:
    """Return how the operators of ours in `bundle` run on this machine.

    The bundle's own library comes first, then this installation's; the environment variable EDGESLIM_LIBRARY overrides
    both, and ``none`` asks for function bodies.
    """
    manifest = read_object(bundle / MANIFEST)
    needed = manifest.get("lowering") == "kernel"
    if not needed or os.environ.get(VARIABLE) == "none":
        return BundleLibrary(needed=needed)
    inside = manifest.get("libraries", {}).get(architecture())
    usable = inside is not None and Path(inside).name == library_name() and ".." not in Path(inside).parts
    if VARIABLE not in os.environ and usable and (bundle / inside).is_file():
        return BundleLibrary(needed=True, path=bundle / inside, inside=inside)
    return BundleLibrary(needed=True, path=find_library())


def _other_isa(library: KernelLibrary) -> str | None:
    asked = os.environ.get(ISA_VARIABLE)
    if not asked or asked == library.chosen:
        return None
    return (
        f"{ISA_VARIABLE}={asked}: this machine has no such kernels, {library.chosen} runs; "
        f"known here are {', '.join(library.isas)}"
    )


@contextmanager
def without_library(bundle: Path) -> Iterator[Path]:
    """Yield a temporary twin of `bundle`, links to its files, whose genai_config.json names no kernel library.

    onnxruntime-genai loads the library that its configuration names or fails: an overlay can change the name but not
    remove it (0.18).
    """
    with tempfile.TemporaryDirectory(prefix="edgeslim-") as folder:
        twin = Path(folder)
        for file in bundle.iterdir():
            if file.is_file() and file.name != GENAI_CONFIG:
                _link(file.absolute(), twin / file.name)
        config = read_object(bundle / GENAI_CONFIG)
        config["model"]["decoder"]["session_options"].pop("custom_ops_library", None)
        (twin / GENAI_CONFIG).write_text(json.dumps(config), encoding="utf-8")
        yield twin


def _link(source: Path, target: Path) -> None:
    try:
        target.symlink_to(source)
    except OSError:  # Windows without the privilege for symbolic links
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)
