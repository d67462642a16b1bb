"""What running needs to know of a bundle, read from its own JSON files."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeslim.errors import BundleError
from edgeslim.runtime.manifest import ENGINES, GENAI_CONFIG, GRAPH, MANIFEST

HF_CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The facts of a bundle that sessions, generation and profiling share.

    `context_length` counts tokens and is None where nothing bounds it. `eos_ids` holds every id that ends a text.
    `session_options` are those of onnxruntime-genai's decoder, as they stand in genai_config.json, or the manifest's.
    `engines` are those that can run the bundle. `providers` are onnxruntime's execution providers to prefer to the
    CPU's, with their options.
    """

    vocab_size: int | None = None
    context_length: int | None = None
    bos_id: int | None = None
    eos_ids: frozenset[int] = frozenset()
    session_options: Mapping[str, Any] = field(default_factory=dict)
    has_genai_config: bool = False
    engines: tuple[str, ...] = ENGINES
    providers: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def read_config(bundle: Path) -> RunConfig:
    """Return the run configuration of `bundle`; a missing file only leaves its facts unknown.

    Raises: BundleError when `bundle` is no folder or one of the files is not a JSON object.
    """
    if not bundle.is_dir():
        raise BundleError(f"{bundle}: no such bundle folder")
    genai, hf, generation = (read_object(bundle / name) for name in (GENAI_CONFIG, HF_CONFIG, GENERATION_CONFIG))
    manifest = read_object(bundle / MANIFEST)
    model = genai.get("model", {})
    return RunConfig(
        vocab_size=model.get("vocab_size") or hf.get("vocab_size"),
        context_length=model.get("context_length") or hf.get("max_position_embeddings"),
        bos_id=next(iter(_ids(generation.get("bos_token_id", hf.get("bos_token_id")))), None),
        eos_ids=frozenset(_eos_ids(generation, model, hf)),
        session_options=model.get("decoder", {}).get("session_options") or manifest.get("session_options", {}),
        has_genai_config=bool(genai),
        engines=tuple(manifest.get("engines", ENGINES)),
        providers=manifest.get("providers", {}),
    )


def bundle_file(bundle: Path, name: str = GRAPH) -> Path:
    """Return the path of the file `name` of `bundle`.

    Raises: BundleError when `bundle` is no folder or has no such file; of a checkpoint, what makes a bundle of it.
    """
    if not bundle.is_dir():
        raise BundleError(f"{bundle}: no such bundle folder")
    path = bundle / name
    if not path.is_file():
        exported = "; it is a checkpoint, which `edgeslim export` makes a bundle of" if _is_checkpoint(bundle) else ""
        raise BundleError(f"{bundle}: not a bundle: it has no {name}{exported}")
    return path


def _is_checkpoint(folder: Path) -> bool:
    return (folder / HF_CONFIG).is_file() and not any(folder.glob("*.onnx"))


def _eos_ids(*objects: Mapping[str, Any]) -> list[int]:
    """Return the ids of the first object that names any: generation_config.json is what a model's author means."""
    return next((ids for o in objects if (ids := _ids(o.get("eos_token_id")))), [])


def _ids(value: Any) -> list[int]:
    if value is None:
        return []
    return [int(v) for v in value] if isinstance(value, list) else [int(value)]


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in `path`, empty where there is no such file.

    Raises: BundleError when it holds anything else.
    """
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BundleError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise BundleError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value
