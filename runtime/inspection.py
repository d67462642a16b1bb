"""What a bundle consists of, layer by layer, and what will run it on this machine."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeslim.runtime.bundle_library import BODIES, bundle_library
from edgeslim.runtime.library import KernelLibrary
from edgeslim.runtime.manifest import Layer, Manifest

STOCK = "onnxruntime"
_PACKED = ("dense_", "bitmap_", "nm")


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """A bundle's manifest, checked against its files, and by what its operators of ours run here: `kernels` is an
    instruction set, "function bodies", or None where there are no such operators."""

    bundle: str
    manifest: Manifest
    kernels: str | None
    library: str | None
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
    return Inspection(
        bundle=str(bundle),
        manifest=manifest,
        kernels=kernels,
        library=None if library.path is None else str(library.path),
        warnings=(library.warning,) if library.warning else (),
    )
