"""What a bundle consists of, layer by layer, and what will run it on this machine."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeslim.errors import BundleError, RuntimeUnavailable
from edgeslim.runtime.bundle_library import BODIES, bundle_library
from edgeslim.runtime.engines import is_installed
from edgeslim.runtime.library import KernelLibrary
from edgeslim.runtime.manifest import Layer, Manifest
from edgeslim.runtime.session import best_engine

STOCK = "onnxruntime"
_PACKED = ("dense_", "bitmap_", "nm")


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """A bundle's manifest, checked against its files, and by what its operators of ours run here: `kernels` is an
    instruction set, "function bodies", or None where there are no such operators. `engine` is what ``auto`` takes here,
    None where none is installed, and `engine_reason` why it is not the native runtime."""

    bundle: str
    manifest: Manifest
    kernels: str | None
    library: str | None
    engine: str | None = None
    engine_reason: str | None = None
    warnings: tuple[str, ...] = ()

    def runs_on(self, layer: Layer) -> str:
        """Return what runs the products of `layer` on this machine."""
        return (self.kernels or STOCK) if layer.form.startswith(_PACKED) else STOCK

    def to_json(self) -> dict[str, Any]:
        """Return the inspection as a JSON object."""
        manifest = self.manifest
        return {
            "bundle": self.bundle,
            "source": asdict(manifest.source),
            "weights": manifest.weights,
            "lowering": manifest.lowering,
            "reason": manifest.reason,
            "kernels": self.kernels,
            "library": self.library,
            "engine": self.engine,
            "engine_reason": self.engine_reason,
            "providers": {name: dict(options) for name, options in manifest.providers.items()},
            "libraries": dict(manifest.libraries),
            "bundle_bytes": manifest.bundle_bytes,
            "weight_bytes": manifest.weight_bytes,
            "layers": [{**asdict(layer), "runs_on": self.runs_on(layer)} for layer in manifest.layers],
            "files": {name: asdict(record) for name, record in manifest.files.items()},
            "verified": True,
            "warnings": list(self.warnings),
        }


def inspect_bundle(bundle: Path) -> Inspection:
    """Return what `bundle` consists of, after comparing every file with its recorded size and checksum.

    Raises: BundleError where the manifest or a file is missing, damaged or changed; RuntimeUnavailable where the kernel
    library does not load.
    """
    manifest = Manifest.read(bundle)
    manifest.verify(bundle)
    library = bundle_library(bundle)
    kernels = None
    if library.needed:
        kernels = BODIES if library.path is None else KernelLibrary(library.path).chosen
    engine, reason = _engine(bundle)
    return Inspection(
        bundle=str(bundle),
        manifest=manifest,
        kernels=kernels,
        library=None if library.path is None else str(library.path),
        engine=engine,
        engine_reason=reason,
        warnings=(library.warning,) if library.warning else (),
    )


def _engine(bundle: Path) -> tuple[str | None, str | None]:
    """Return the engine that ``auto`` takes for `bundle` on this machine, and why that is not the native runtime."""
    try:
        engine = best_engine(bundle)
    except RuntimeUnavailable as fault:
        return None, str(fault)
    if engine == "native":
        return engine, None
    if not is_installed("native"):
        return engine, "edgeslim was installed without the native runtime"
    from edgeslim.runtime.native_session import NativeSession  # it builds on the session's module

    try:
        NativeSession(bundle, threads=1, onnxruntime=False).close()
    except BundleError as fault:
        return engine, str(fault).partition("does not load: ")[2] or str(fault)
    return engine, "the bundle is made for a provider of onnxruntime's that is here"
