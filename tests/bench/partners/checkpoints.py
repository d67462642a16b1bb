"""Checkpoints of random weights in the shapes that the partners are compared on: dense, and with zeros at random."""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from edgeslim.output import new_folder

SHAPES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "llama": {
            "hidden_size": 960,
            "intermediate_size": 2560,
            "num_hidden_layers": 32,
            "num_attention_heads": 15,
            "num_key_value_heads": 5,
            "vocab_size": 49152,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": True,
        },
        "llama-1024": {
            "hidden_size": 1024,
            "intermediate_size": 2816,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "vocab_size": 49152,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": True,
        },
        "mamba": {
            "hidden_size": 768,
            "num_hidden_layers": 24,
            "state_size": 16,
            "expand": 2,
            "conv_kernel": 4,
            "initializer_range": 0.02,
            "vocab_size": 50288,
            "tie_word_embeddings": False,
        },
        "mamba2": {
            "hidden_size": 768,
            "num_hidden_layers": 24,
            "state_size": 128,
            "head_dim": 64,
            "num_heads": 24,
            "expand": 2,
            "n_groups": 1,
            "conv_kernel": 4,
            "initializer_range": 0.02,  # at the default, 0.1, rounding to 8 bits changes the logits beyond recognition
            "vocab_size": 50288,
            "tie_word_embeddings": False,
        },
    }
)
"""Llama of 362 M parameters; one of 321 M whose rows are multiples of 256, as llama.cpp's K forms want them; Mamba and
Mamba-2 of 168 M. The fields of their config.json, by family and name."""

PRUNED: Mapping[str, float | None] = MappingProxyType(
    {"pruned40": 0.4, "pruned50": 0.5, "pruned60": 0.6, "pruned70": 0.7, "pruned2of4": None}
)
"""Folder name and the part of each decoder block's linears that is zero; None: two of every four inputs."""

_MODELS = Path(__file__).parents[3] / "examples" / "models"
_TOKENIZERS = {"llama": "tiny-llama", "mamba": "recall-mamba", "mamba2": "tiny-mamba2"}
_SEED = 0


def make_checkpoints(shape: str, work: Path, pruned: Iterable[str] = PRUNED) -> None:
    """Write `work`/dense and the `pruned` copies of it, in bfloat16; those that are there stay."""
    logging.disable_progress_bar()
    dense = work / "dense"
    if not dense.is_dir():
        with new_folder(dense, force=False) as folder:
            _save(random_model(shape), shape, folder)
    for name in pruned:
        if not (work / name).is_dir():
            with new_folder(work / name, force=False) as folder:
                _save_pruned(dense, folder, PRUNED[name])


def _family(shape: str) -> str:
    return shape.partition("-")[0]


def random_model(shape: str) -> PreTrainedModel:
    """Return a freshly initialised model of `shape` in bfloat16, the same at every call."""
    torch.manual_seed(_SEED)
    config = AutoConfig.for_model(_family(shape), bos_token_id=1, eos_token_id=2, pad_token_id=0, **SHAPES[shape])
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    return model


def _save(model: PreTrainedModel, shape: str, folder: Path) -> None:
    """Write `model` with the tokenizer of the bundled model of the same family, which stands in for one."""
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(_MODELS / _TOKENIZERS[_family(shape)] / name, folder / name)


def _save_pruned(dense: Path, folder: Path, sparsity: float | None) -> None:
    for file in dense.iterdir():
        if file.suffix != ".safetensors":
            shutil.copyfile(file, folder / file.name)
    torch.manual_seed(_SEED + 1)
    tensors = load_file(dense / "model.safetensors")
    pruned = {name: zeroed(t, sparsity) if _is_block_linear(name, t) else t for name, t in tensors.items()}
    save_file(pruned, folder / "model.safetensors", metadata={"format": "pt"})


def _is_block_linear(name: str, tensor: torch.Tensor) -> bool:
    return ".layers." in name and tensor.ndim == 2


def zeroed(weight: torch.Tensor, sparsity: float | None) -> torch.Tensor:
    """Return `weight` with exactly round(sparsity * size) entries zero, or two of every four inputs, at random."""
    if sparsity is None:
        fours = weight.clone().reshape(-1, 4)
        return fours.scatter(1, torch.rand(fours.shape).argsort(1)[:, :2], 0).reshape(weight.shape)
    flat = weight.clone().reshape(-1)
    flat[torch.randperm(flat.numel())[: round(sparsity * flat.numel())]] = 0
    return flat.reshape(weight.shape)


def model_type(checkpoint: Path) -> str:
    """Return the family of a checkpoint folder."""
    found: str = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))["model_type"]
    return found
