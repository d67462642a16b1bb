"""Checkpoints in other forms, written anew as safetensors in the form of transformers: pickled ones, mamba_ssm's.

The new folder lies in the user's cache and is found again as long as the old one does not change. Values are copied
bit by bit. Pickles are read with torch's `weights_only`, which runs no code, and only where that was asked for.
"""

import hashlib
import json
import os
import pickle
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgeslim.errors import CheckpointError, did_you_mean, first_line
from edgeslim.mamba_ssm import is_mamba_ssm, transformers_config, transformers_name
from edgeslim.output import new_folder

WEIGHTS = "model.safetensors"
_SUFFIXES = {".json", ".txt", ".model", ".jinja"}
_INDEX = [".index", ".json"]  # suffixes of the list of weight files
_HEAD, _EMBEDDING = "lm_head.weight", "backbone.embeddings.weight"


def ready_folder(folder: Path, *, allow_pickle: bool = False) -> Path:
    """Return `folder` where it holds safetensors in transformers' form, else the folder of its converted copy.

    Raises: CheckpointError for pickles without `allow_pickle`, or weights that the configuration does not describe.
    """
    config = _read_config(folder)
    foreign, pickled = is_mamba_ssm(config), not any(folder.glob("*.safetensors"))
    files = _weight_files(folder, pickled=pickled, allow_pickle=allow_pickle)
    if not foreign and not pickled:
        return folder
    target = cache_folder() / f"{folder.resolve().name}-{_digest(folder, files)}"
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        _convert(folder, files, config, target, foreign=foreign)
    return target


def cache_folder() -> Path:
    """Return where converted checkpoints lie: `$XDG_CACHE_HOME/edgeslim/converted`, or the same under ~/.cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "edgeslim" / "converted"


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder}: no config.json; expected a Hugging Face checkpoint folder")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as fault:
        raise CheckpointError(f"{path}: not JSON: {fault}") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(config).__name__}")
    return config


def _weight_files(folder: Path, *, pickled: bool, allow_pickle: bool) -> list[Path]:
    files = sorted(folder.glob("*.bin" if pickled else "*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder}: no weights; expected *.safetensors")
    if pickled and not allow_pickle:
        raise CheckpointError(
            f"{folder}: only pickled weights (*.bin); expected *.safetensors, or --allow-pickle to read them without "
            "running code"
        )
    return files


def _digest(folder: Path, files: list[Path]) -> str:
    files = sorted({*files, *_companions(folder)})
    facts = [(str(folder.resolve()),), *((f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files)]
    return hashlib.sha256(json.dumps([*facts, _read_config(folder)]).encode()).hexdigest()[:16]


def _companions(folder: Path) -> list[Path]:
    """Return the files beside the weights that go along: tokenizer, configurations, chat template."""
    return [f for f in folder.iterdir() if f.is_file() and f.suffix in _SUFFIXES and f.suffixes[-2:] != _INDEX]


def _convert(folder: Path, files: list[Path], config: Mapping[str, Any], target: Path, *, foreign: bool) -> None:
    from safetensors.torch import save_file

    new = transformers_config(config, f"{folder / 'config.json'}") if foreign else dict(config)
    tensors = {transformers_name(name) if foreign else name: t for name, t in _read_all(files).items()}
    _drop_tied_head(tensors, new, folder)
    if foreign:
        _check_sizes(tensors, new, folder)
        new["dtype"] = str(tensors[_EMBEDDING].dtype).removeprefix("torch.")
    with new_folder(target, force=True) as place:
        for file in _companions(folder):
            shutil.copyfile(file, place / file.name)
        save_file(_apart(tensors), place / WEIGHTS, {"format": "pt"})
        (place / "config.json").write_text(json.dumps(new, indent=2) + "\n", encoding="utf-8")


def _read_all(files: list[Path]) -> dict[str, Tensor]:
    """Return the tensors of all `files`, mapped into memory where their form allows it."""
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for file in files:
        if file.suffix == ".safetensors":
            tensors.update(load_file(file))
            continue
        try:
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except Exception as fault:  # pickle, zip and torch raise errors of many kinds for a damaged or hostile file
            raise CheckpointError(f"{file}: not a file of weights alone: {_reason(fault)}") from None
        if not isinstance(content, dict) or not all(isinstance(t, Tensor) for t in content.values()):
            raise CheckpointError(f"{file}: expected names and tensors, found {type(content).__name__}")
        tensors.update(content)
    return tensors


def _reason(fault: Exception) -> str:
    """Return what is wrong with a file of weights; torch's own words advise to run the code in it."""
    if isinstance(fault, pickle.UnpicklingError):
        asked = re.search(r"GLOBAL (\S+)", str(fault))
        return f"it would call {asked[1]}" if asked else "a damaged pickle, or one that calls functions"
    return first_line(fault)


def _drop_tied_head(tensors: dict[str, Tensor], config: Mapping[str, Any], folder: Path) -> None:
    """Drop a head that is the embedding once more; several names for one tensor are no safetensors."""
    if not config.get("tie_word_embeddings") or _HEAD not in tensors or _EMBEDDING not in tensors:
        return
    if not torch.equal(tensors[_HEAD], tensors[_EMBEDDING]):
        raise CheckpointError(f"{folder}: {_HEAD} is not the embedding, which config.json says it is tied to")
    del tensors[_HEAD]


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return `tensors`, contiguous, none of which is another's memory."""
    seen: set[int] = set()
    apart: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        address = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if address in seen else tensor.contiguous()
        seen.add(address)
    return apart


def _check_sizes(tensors: Mapping[str, Tensor], config: Mapping[str, Any], folder: Path) -> None:
    """Compare names and shapes with those of the model that transformers makes of `config`."""
    from transformers import AutoConfig, AutoModelForCausalLM

    known = {name: value for name, value in config.items() if name != "model_type"}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **known))
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.get("tie_word_embeddings"):
        expected.pop(_HEAD, None)
    for name in expected.keys() - tensors.keys():
        raise CheckpointError(f"{folder}: no weights for {name!r}{did_you_mean(name, list(tensors))[:300]}")
    for name, tensor in tensors.items():
        if name not in expected:
            raise CheckpointError(f"{folder}: unknown weights {name!r}{did_you_mean(name, list(expected))[:300]}")
        if tuple(tensor.shape) != expected[name]:
            raise CheckpointError(
                f"{folder}: {name} has shape {list(tensor.shape)}; config.json makes it {list(expected[name])}"
            )
