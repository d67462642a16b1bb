"""Hugging Face checkpoints: found, checked, loaded whole or block by block.

The one file that knows how transformers names and loads things.
"""

import os
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgeslim.conversion import ready_folder
from edgeslim.cuda_kernels import keep_kernels_to_cuda
from edgeslim.errors import CheckpointError, did_you_mean, first_line
from edgeslim.experts import split_experts_
from edgeslim.tensorfile import TensorEntry, read_entries, read_tensor, write_tensor

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


_OTHER_PREFIXES = ("model.", "backbone.")
"""How base models are called in files, where transformers calls them otherwise today."""
_MAMBA_TOKENIZER = " (state-spaces/mamba-* were trained with that of EleutherAI/gpt-neox-20b)"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder: `config.json`, safetensors files and what lies beside them.

    `source` is the folder that `folder` was converted from, None where it is as it was found.
    """

    folder: Path
    trust_remote_code: bool = False
    source: Path | None = None

    @classmethod
    def open(cls, model: str | Path, *, trust_remote_code: bool = False, allow_pickle: bool = False) -> "Checkpoint":
        """Return the checkpoint at the folder `model`, or download the hub id `model` and return that.

        A checkpoint of mamba_ssm is that of its converted copy; so is one of pickled weights, with `allow_pickle`.

        Raises: CheckpointError where there is neither, or the folder holds no weights that may be read.
        """
        found = _find(model, pickles=allow_pickle)
        folder = ready_folder(found, allow_pickle=allow_pickle)
        return cls(folder, trust_remote_code, None if folder == found else found)

    @cached_property
    def config(self) -> Any:
        """The transformers configuration.

        Raises: CheckpointError for a model type that transformers does not know.
        """
        from transformers import AutoConfig

        try:
            with quiet_transformers():
                config = AutoConfig.from_pretrained(self.folder, trust_remote_code=self.trust_remote_code)
            if getattr(config, "rescale_prenorm_residual", False):
                # It concerns fresh weights alone, but transformers 5.23 also divides loaded output projections by it.
                config.rescale_prenorm_residual = False
            return config
        except (ValueError, KeyError, OSError) as fault:
            raise CheckpointError(f"{self.folder}: transformers cannot read config.json: {first_line(fault)}") from None

    @cached_property
    def entries(self) -> dict[str, TensorEntry]:
        """Where every floating-point tensor lies, by the name it has in the files."""
        return {
            name: entry
            for file in sorted(self.folder.glob("*.safetensors"))
            for name, entry in read_entries(file).items()
        }

    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer.

        Raises: CheckpointError where it has none.
        """
        from transformers import AutoTokenizer

        try:
            with quiet_transformers():
                tokenizer = AutoTokenizer.from_pretrained(self.folder, trust_remote_code=self.trust_remote_code)
        except (ValueError, KeyError, OSError) as fault:
            raise CheckpointError(f"{self.folder}: no usable tokenizer: {first_line(fault)}") from None
        if not tokenizer("text", add_special_tokens=False)["input_ids"]:
            # transformers makes an empty one where a family's files are missing; state-spaces/mamba-* have none.
            hint = _MAMBA_TOKENIZER if self.config.model_type in ("mamba", "mamba2") else ""
            place = self.source or self.folder
            raise CheckpointError(f"{place}: no tokenizer; expected tokenizer.json beside config.json{hint}")
        return tokenizer

    def load(self, *, dtype: torch.dtype = torch.float32, device: str = "cpu") -> nn.Module:
        """Return the whole model in evaluation mode."""
        from transformers import AutoModelForCausalLM

        try:
            with quiet_transformers():
                model: nn.Module = AutoModelForCausalLM.from_pretrained(
                    self.folder,
                    config=self.config,
                    dtype=dtype,
                    trust_remote_code=self.trust_remote_code,
                    use_safetensors=True,
                )
        except (ValueError, KeyError, OSError) as fault:
            raise CheckpointError(f"{self.folder}: transformers cannot load the model: {first_line(fault)}") from None
        keep_kernels_to_cuda(model)
        return model.eval().requires_grad_(False).to(device)

    def skeleton(self) -> "Skeleton":
        """Return the model with its parameters on the meta device, to be filled block by block."""
        from transformers import AutoModelForCausalLM

        try:
            with _meta_parameters(), quiet_transformers():
                model = AutoModelForCausalLM.from_config(
                    self.config, dtype=torch.float32, trust_remote_code=self.trust_remote_code
                )
        except (ValueError, KeyError) as fault:
            raise CheckpointError(f"{self.folder}: no causal language model: {first_line(fault)}") from None
        keep_kernels_to_cuda(model)
        split_experts_(model, self.entries)
        return Skeleton(self, model.eval().requires_grad_(False))


class Skeleton:
    """A model whose decoder blocks come and go: parameters on the meta device until filled."""

    def __init__(self, checkpoint: Checkpoint, model: nn.Module) -> None:
        self.checkpoint = checkpoint
        self.model = model
        self.base: nn.Module = model.base_model  # type: ignore[assignment]
        self._prefix = f"{model.base_model_prefix}."
        self.blocks_name, self.blocks = _find_blocks(model, self.base)
        self.block_names = [f"{self.blocks_name}.{index}" for index in range(len(self.blocks))]
        self.first_names = self._find_shared()
        """Parameters that a block shares with one before it: their name there, by their name here."""

    def entry(self, name: str, entries: dict[str, TensorEntry] | None = None) -> TensorEntry:
        """Return where the parameter called `name` in the model lies in the files of the checkpoint (or in `entries`).

        Raises: CheckpointError where no file holds it.
        """
        entries = self.checkpoint.entries if entries is None else entries
        for known in (name, self.first_names.get(name, name), name.replace("lm_head.", "embed_out.")):
            bare = known.removeprefix(self._prefix)
            for candidate in (known, bare, self._prefix + known, *(prefix + bare for prefix in _OTHER_PREFIXES)):
                if candidate in entries:
                    return entries[candidate]
        raise CheckpointError(f"{self.checkpoint.folder}: no weights for {name!r}{did_you_mean(name, entries)[:300]}")

    def fill_outside_blocks(self, device: torch.device) -> None:
        """Load what the base model holds besides its decoder blocks: embeddings, norms, rotary tables."""
        for name, module in self._outside_blocks():
            self._fill_own(module, name, device, None)

    def empty_outside_blocks(self) -> None:
        """Drop the parameters that `fill_outside_blocks` loaded."""
        for _, module in self._outside_blocks():
            drop_parameters(module)

    def fill_block(self, index: int, device: torch.device, entries: dict[str, TensorEntry] | None = None) -> nn.Module:
        """Load block `index` in float32 on `device`, from the checkpoint or from other `entries`, and return it."""
        block = self.blocks[index]
        for name, module in block.named_modules():
            self._fill_own(module, f"{self.block_names[index]}.{name}".strip("."), device, entries)
        return block

    def refill_shared(
        self, index: int, device: torch.device, entries: dict[str, TensorEntry], *, only: Container[str]
    ) -> None:
        """Load from `entries` the weights of the linears `only` that the filled block `index` shares with another."""
        prefix = f"{self.block_names[index]}."
        for name, first in self.first_names.items():
            if not name.startswith(prefix) or first.removesuffix(".weight") not in only:
                continue
            path, _, kind = name.removeprefix(prefix).rpartition(".")
            value = read_tensor(self.entry(name, entries)).to(device=device, dtype=torch.float32)
            setattr(self.blocks[index].get_submodule(path), kind, nn.Parameter(value, requires_grad=False))

    def shared_names(self) -> set[str]:
        """Return the names of parameters that several blocks have, as the first of them calls them."""
        return set(self.first_names.values())

    def empty_block(self, index: int) -> None:
        """Drop the parameters of block `index`."""
        for module in self.blocks[index].modules():
            drop_parameters(module)

    def _outside_blocks(self) -> Iterator[tuple[str, nn.Module]]:
        prefix = _name_of(self.model, self.base)
        for name, module in self.base.named_modules():
            full = f"{prefix}.{name}".strip(".")
            if not f"{full}.".startswith(f"{self.blocks_name}."):
                yield full, module

    def _fill_own(
        self, module: nn.Module, prefix: str, device: torch.device, entries: dict[str, TensorEntry] | None
    ) -> None:
        for name, parameter in list(module.named_parameters(recurse=False)):
            entry = self.entry(f"{prefix}.{name}".strip("."), entries)
            if entry.shape != tuple(parameter.shape):
                raise CheckpointError(
                    f"{entry.file}: {prefix}.{name} has shape {list(entry.shape)}; "
                    f"config.json makes it {list(parameter.shape)}"
                )
            value = read_tensor(entry).to(device=device, dtype=torch.float32)
            setattr(module, name, nn.Parameter(value, requires_grad=False))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, buffer.to(device))

    def _find_shared(self) -> dict[str, str]:
        names: dict[int, str] = {}
        shared: dict[str, str] = {}
        for block_name, block in zip(self.block_names, self.blocks, strict=True):
            own = {f"{block_name}.{name}": parameter for name, parameter in _all_names(block)}
            for name, parameter in own.items():
                first = names.setdefault(id(parameter), name)
                if first != name:
                    shared[name] = first
        return shared


def _all_names(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return module.named_parameters(remove_duplicate=False)


def write_weight(entry: TensorEntry, weight: torch.Tensor) -> None:
    """Write a linear's `weight` over its place in a checkpoint's file, in the dtype it has there."""
    write_tensor(entry, weight.to(entry.dtype))


def drop_parameters(module: nn.Module) -> None:
    """Put the parameters that `module` itself owns, not its children's, on the meta device."""
    for name, parameter in list(module.named_parameters(recurse=False)):
        setattr(module, name, nn.Parameter(parameter.to("meta"), requires_grad=False))


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' progress bars and advice off stderr while the block runs."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _find(model: str | Path, *, pickles: bool = False) -> Path:
    folder = Path(model)
    if folder.is_dir():
        return folder
    name = str(model)
    if folder.exists() or folder.is_absolute() or name.startswith(".") or name.count("/") > 1:
        raise CheckpointError(f"{name}: no such folder; expected a Hugging Face checkpoint folder or a hub id")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", *(["*.bin"] if pickles else [])]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as fault:
        raise CheckpointError(
            f"{name}: no such folder, and the hub does not give it ({first_line(fault)}); "
            "expected a checkpoint folder or a reachable hub id"
        ) from None


def _find_blocks(model: nn.Module, base: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return name and list of the decoder blocks: the list as long as the configuration says, else the longest."""
    lists = [(name, module) for name, module in base.named_modules() if isinstance(module, nn.ModuleList)]
    depth = getattr(model.config, "num_hidden_layers", None)
    outermost = [found for found in lists if len(found[1]) == depth] or sorted(lists, key=lambda found: -len(found[1]))
    if not outermost:
        raise CheckpointError(f"{type(model).__name__}: no list of decoder blocks found; this model is not supported")
    name, blocks = outermost[0]
    return f"{_name_of(model, base)}.{name}".strip("."), blocks


def _name_of(model: nn.Module, part: nn.Module) -> str:
    names: Iterator[str] = (name for name, module in model.named_modules() if module is part)
    return next(names)


@contextmanager
def _meta_parameters() -> Iterator[None]:
    """Create parameters on the meta device, but buffers for real: tables such as RoPE's are in no checkpoint."""
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and parameter.device.type != "meta":
            parameter = nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
        register(module, name, parameter)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
