"""What a bundle says of itself: `edgeslim.json`, and the names of the files a bundle consists of.

A bundle is an onnxruntime-genai model folder with this manifest beside the graphs. Nothing here needs torch.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from edgeslim.errors import BundleError

MANIFEST = "edgeslim.json"
GRAPH = "model.onnx"
SCORING = "scoring.onnx"
DATA = "model.onnx.data"
GENAI_CONFIG = "genai_config.json"
ENGINES = ("genai", "ort")
FORMAT = 1
"""Version of the manifest's keys; another version is refused."""

_CHUNK = 1 << 20  # bytes hashed at a time


@dataclass(frozen=True, kw_only=True)
class Source:
    """The checkpoint a bundle was made from; `config_sha256` is that of its config.json."""

    id: str
    model_type: str
    config_sha256: str


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One linear of the graph: shape [outputs, inputs], the part of its weights that is exactly 0, bytes on disk.

    `form` says how it is stored, such as fp32, int8 in blocks of 128, or bitmap_int8; `stored` which part of its
    weights is; `reason` why, where there was a choice.
    """

    name: str
    shape: tuple[int, int]
    sparsity: float
    bytes: int
    form: str = ""
    stored: float = 1.0
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """Size and checksum of one file of the bundle."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The contents of `edgeslim.json`.

    `weights` is fp32, fp16, int8, int4 or int3; `lowering` kernel, gather, dense or tensorrt, and `reason` why;
    `weight_bytes` the size of the data file; `libraries` the kernel libraries by architecture; `engines` those that can
    run the bundle, and `session_options` what onnxruntime is told where no genai_config.json says it; `providers` the
    execution providers of onnxruntime to prefer to the CPU's, in this order, with their options (paths are inside the
    bundle); `parity` holds the largest differences to transformers' logits and their tolerance; `recipe` the effective
    recipe of every stage, empty where unknown.
    """

    source: Source
    weights: str
    weight_bytes: int
    layers: tuple[Layer, ...]
    files: Mapping[str, FileRecord]
    recipe: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    parity: Mapping[str, Any] = field(default_factory=dict)
    lowering: str = "dense"
    reason: str = ""
    libraries: Mapping[str, str] = field(default_factory=dict)
    engines: tuple[str, ...] = ENGINES
    session_options: Mapping[str, str | bool] = field(default_factory=dict)
    providers: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def bundle_bytes(self) -> int:
        """Bytes of all files of the bundle, this manifest aside."""
        return sum(record.bytes for record in self.files.values())

    @classmethod
    def read(cls, bundle: Path) -> "Manifest":
        """Return the manifest of the folder `bundle`.

        Raises: BundleError when it is missing, damaged or of another format version.
        """
        path = bundle / MANIFEST
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise BundleError(f"{bundle}: no {MANIFEST}; expected a folder written by `edgeslim export`") from None
        except ValueError as fault:
            raise BundleError(f"{path}: not valid JSON: {fault}") from None
        found = content.get("format") if isinstance(content, dict) else None
        if found != FORMAT:
            raise BundleError(f"{path}: has format {found!r}, this edgeslim reads format {FORMAT}; export it again")
        try:
            return _from_json(content)
        except (KeyError, TypeError, ValueError) as fault:
            raise BundleError(f"{path}: damaged: {type(fault).__name__}: {fault}") from None

    def to_json(self) -> dict[str, Any]:
        """Return the manifest as plain objects for json.dumps."""
        return asdict(self)

    def write(self, bundle: Path) -> None:
        """Write `edgeslim.json` into the folder `bundle`."""
        text = json.dumps(self.to_json(), indent=1, ensure_ascii=False)
        (bundle / MANIFEST).write_text(text + "\n", encoding="utf-8")

    def verify(self, bundle: Path) -> None:
        """Compare every file of `bundle` with its recorded size and checksum.

        Raises: BundleError naming the first file that is missing or differs.
        """
        for name, record in self.files.items():
            path = bundle / name
            if not path.is_file():
                raise BundleError(f"{path}: missing; {MANIFEST} lists it with {record.bytes} bytes")
            size = path.stat().st_size
            if size != record.bytes:
                raise BundleError(f"{path}: has {size} bytes; {MANIFEST} says {record.bytes}")
            if sha256(path) != record.sha256:
                raise BundleError(f"{path}: changed since it was exported (its sha256 differs from {MANIFEST}'s)")


def record_files(bundle: Path) -> dict[str, FileRecord]:
    """Return size and checksum of every file in the folder `bundle` but the manifest, by its path inside it."""
    paths = sorted(path for path in bundle.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {
        path.relative_to(bundle).as_posix(): FileRecord(bytes=path.stat().st_size, sha256=sha256(path))
        for path in paths
    }


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of the file at `path`."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _from_json(content: dict[str, Any]) -> Manifest:
    known = {f.name for f in fields(Manifest)}
    plain = {key: value for key, value in content.items() if key in known}
    return Manifest(
        **{
            **plain,
            "source": Source(**content["source"]),
            "layers": tuple(Layer(**{**layer, "shape": tuple(layer["shape"])}) for layer in content["layers"]),
            "engines": tuple(content.get("engines", ENGINES)),
            "libraries": {arch: _inside(name) for arch, name in content.get("libraries", {}).items()},
            "files": {_inside(name): FileRecord(**record) for name, record in content["files"].items()},
        }
    )


def _inside(name: str) -> str:
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"names the file {name!r} outside the bundle")
    return name
