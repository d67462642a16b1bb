"""A checkpoint of fewer blocks or heads: what goes is searched for, the rest written, and what was written is tried."""

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgeslim import __version__
from edgeslim.calibration import Calibration
from edgeslim.checkpoint import Checkpoint, Skeleton, quiet_transformers
from edgeslim.errors import CheckpointError, first_line
from edgeslim.gridfile import GRID_FILE
from edgeslim.journal import Journal, resumable_folder
from edgeslim.progress import Progress
from edgeslim.reducer import read_config
from edgeslim.shedding.expressible import Expressible
from edgeslim.shedding.forms import with_heads, without_blocks
from edgeslim.shedding.model import SheddableModel
from edgeslim.shedding.search import Amount, Found, Search, check_amount

REPORT = "shed_report.json"
INDEX = "model.safetensors.index.json"
_NOT_COPIED = {".bin", ".pt", ".pth", ".gguf", ".safetensors"}
_TOLERANCE = 1e-3
"""Of the loss, in nats, between the model searched in and the checkpoint read back: the same weights, float32."""


@dataclass(frozen=True, kw_only=True)
class ShedJob:
    """What to take out, how to choose it, and the calibration windows."""

    amount: Amount
    calibration: Calibration
    method: str = "measured"
    refit: bool = True
    seed: int = 0
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True)
class ShedReport:
    """What went. `blocks` by their numbers in the source, in order of choice; `heads` of the blocks that stay, by the
    blocks' numbers in the source; the losses are mean negative log-likelihoods of the calibration windows, in nats."""

    method: str
    blocks: tuple[int, ...]
    heads: Mapping[int, tuple[int, ...]]
    parameters: int
    dense_parameters: int
    loss: float
    dense_loss: float
    model_type: str
    calibration: str

    @property
    def removed(self) -> float:
        """Share of the source's parameters that went."""
        return 1 - self.parameters / self.dense_parameters

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return json.loads(json.dumps({**asdict(self), "removed": self.removed}))  # type: ignore[no-any-return]


def shed_checkpoint(
    checkpoint: Checkpoint,
    output: Path,
    job: ShedJob,
    *,
    force: bool = False,
    restart: bool = False,
    progress: Progress,
) -> ShedReport:
    """Write `checkpoint` without the blocks and heads that `job` lets go into the new folder `output`.

    Raises: CheckpointError where a smaller one cannot be written or loads as another model; RecipeError, OutputError.
    """
    config = read_config(checkpoint.folder)
    _refuse_later_stages(checkpoint, config)
    progress(0, 1, "loading the model")
    with quiet_transformers(), torch.no_grad():
        tokens = job.calibration.tokens.to(job.device)
        skeleton = Skeleton(checkpoint, checkpoint.load(device=job.device))
        model = SheddableModel(skeleton.model, list(skeleton.blocks), tokens)
        check_amount(model, job.amount, job.method)
        # what cannot be written is refused now rather than after the search
        can_go = Expressible(checkpoint, config, skeleton)
        can_go.check(job.amount, job.method, progress)
        if job.amount.heads:
            _with_fewer_heads(checkpoint, config, job.amount.heads)
        with resumable_folder(output, _arguments(checkpoint, job), force=force, restart=restart) as (journal, content):
            report = _shed(checkpoint, config, skeleton, model, can_go, job, journal, content, progress)
            del skeleton, model
            progress(0, 1, "reading it back")
            report = _tried(Checkpoint(content, checkpoint.trust_remote_code), report, tokens)
            (content / REPORT).write_text(json.dumps(report.to_json(), indent=1) + "\n", encoding="utf-8")
    return report


def _arguments(checkpoint: Checkpoint, job: ShedJob) -> dict[str, Any]:
    """Return what must be equal for a search to be resumed."""
    return {
        "model": str(checkpoint.folder.resolve()),
        "job": {**asdict(job), "calibration": job.calibration.description},
        "windows": list(job.calibration.tokens.shape),
        "versions": {"edgeslim": __version__, "torch": torch.__version__},
    }


def _shed(
    checkpoint: Checkpoint,
    config: Mapping[str, Any],
    skeleton: Skeleton,
    model: SheddableModel,
    can_go: Expressible,
    job: ShedJob,
    journal: Journal,
    content: Path,
    progress: Progress,
) -> ShedReport:
    """Search, write the smaller checkpoint into `content` and return the report, which still lacks its parameters."""
    if "dense" not in journal.steps:
        journal.finish("dense", {"loss": model.loss()})
    dense_parameters = sum(parameter.numel() for parameter in skeleton.model.parameters())
    files = BlockFiles(checkpoint, skeleton.blocks_name)
    options: dict[str, Any] = {"method": job.method, "refit": job.refit, "seed": job.seed}
    search = Search(model, job.amount, journal, progress, dtype_of=files.dtype_of, can_go=can_go, **options)
    found = search.run()
    progress(0, 1, "writing the smaller checkpoint")
    smaller = _smaller_config(checkpoint, config, found, len(skeleton.blocks))
    tensors = {index: search.smaller_tensors(index) for index in found.heads}
    renamed, tied = smaller["model_type"] != config["model_type"], checkpoint.config.tie_word_embeddings
    files.write(content, found.blocks, tensors, partial(_nemotron_names, tied=tied) if renamed else _same_name)
    shed = {**options, "blocks": found.blocks, "heads": found.heads}
    smaller["edgeslim"] = {**(config.get("edgeslim") or {}), "version": __version__, "shed": shed}
    (content / "config.json").write_text(json.dumps(smaller, indent=2) + "\n", encoding="utf-8")
    return ShedReport(
        method=job.method,
        blocks=tuple(found.blocks),
        heads={index: tuple(heads) for index, heads in found.heads.items()},
        parameters=0,
        dense_parameters=dense_parameters,
        loss=found.loss,
        dense_loss=journal.steps["dense"]["loss"],
        model_type=smaller["model_type"],
        calibration=job.calibration.description,
    )


class BlockFiles:
    """The tensors of a checkpoint's files by block and name, and how they are written without some of them."""

    def __init__(self, checkpoint: Checkpoint, blocks_name: str) -> None:
        self._folder = checkpoint.folder
        self._pattern = re.compile(rf"((?:.*\.)?{re.escape(blocks_name.rpartition('.')[2])}\.)(\d+)\.(.+)")
        self._dtypes = {
            (int(match[2]), match[3]): entry.dtype
            for name, entry in checkpoint.entries.items()
            if (match := self._pattern.fullmatch(name))
        }

    def dtype_of(self, index: int, name: str) -> torch.dtype:
        """Return the dtype in which the tensor `name` of block `index` is stored."""
        return self._dtypes[index, name]

    def write(
        self,
        content: Path,
        gone: list[int],
        smaller: Mapping[int, Mapping[str, Tensor]],
        rename: Callable[[str], Sequence[str]],
    ) -> None:
        """Write the folder's files into `content`: without the blocks `gone`, with the tensors `smaller` of others.

        `rename` gives the names under which a tensor is written.
        """
        from safetensors import safe_open
        from safetensors.torch import save_file

        where: dict[str, str] = {}
        for file in sorted(self._folder.iterdir()):
            if file.suffix == ".safetensors":
                with safe_open(file, "pt") as source:
                    tensors: dict[str, Tensor] = {}
                    for name in source.keys():  # noqa: SIM118 -- a handle, which cannot be iterated
                        new = self._name(name, gone)
                        if new is not None:
                            value = self._value(name, source.get_tensor(name), smaller)
                            tensors |= dict.fromkeys(rename(new), value)
                if tensors:
                    save_file(
                        {name: value.clone() for name, value in tensors.items()},
                        content / file.name,
                        metadata={"format": "pt"},
                    )
                    where |= dict.fromkeys(tensors, file.name)
            elif file.is_file() and file.suffix not in _NOT_COPIED and file.name not in ("config.json", INDEX, REPORT):
                shutil.copyfile(file, content / file.name)
        if len(set(where.values())) > 1:
            index = {"metadata": {}, "weight_map": where}
            (content / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def _name(self, name: str, gone: list[int]) -> str | None:
        match = self._pattern.fullmatch(name)
        if match is None:
            return name
        index = int(match[2])
        return None if index in gone else f"{match[1]}{index - sum(other < index for other in gone)}.{match[3]}"

    def _value(self, name: str, value: Tensor, smaller: Mapping[int, Mapping[str, Tensor]]) -> Tensor:
        match = self._pattern.fullmatch(name)
        new = None if match is None else smaller.get(int(match[2]), {}).get(match[3])
        return value if new is None else new.detach().cpu().to(value.dtype).contiguous()


def _refuse_later_stages(checkpoint: Checkpoint, config: Mapping[str, Any]) -> None:
    """Raise CheckpointError where a later stage's results would no longer fit."""
    if (checkpoint.folder / GRID_FILE).is_file():
        raise CheckpointError(f"{checkpoint.folder}: it is quantized, block by block; shed first, then prune")
    if "reduction" in (config.get("edgeslim") or {}):
        raise CheckpointError(f"{checkpoint.folder}: its token reduction names layers; shed first, then reduce")


def _smaller_config(checkpoint: Checkpoint, config: Mapping[str, Any], found: Found, depth: int) -> dict[str, Any]:
    depth_key = checkpoint.config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    new = without_blocks(config, found.blocks, depth, depth_key)
    if not found.heads:
        return new
    return _with_fewer_heads(checkpoint, new, len(next(iter(found.heads.values()))))


def _with_fewer_heads(checkpoint: Checkpoint, config: Mapping[str, Any], count: int) -> dict[str, Any]:
    whole = checkpoint.config.to_dict()
    before = whole["num_heads" if config["model_type"] == "mamba2" else "mamba_num_heads"]
    return with_heads(config, before - count, whole)


def _same_name(name: str) -> list[str]:
    return [name]


def _nemotron_names(name: str, *, tied: bool) -> list[str]:
    """Return what Nemotron-H calls a tensor that Mamba-2 calls `name`.

    transformers has no tied head for it: the embedding is written once more, as the head, where it is `tied`.
    """
    new = re.sub(r"^backbone\.", "model.", name)
    return [new, "lm_head.weight"] if tied and new == "model.embeddings.weight" else [new]


def _tried(written: Checkpoint, report: ShedReport, tokens: Tensor) -> ShedReport:
    """Return `report` with the parameters of the checkpoint `written`, which must be worth what was measured.

    Raises: CheckpointError where transformers makes another model of it.
    """
    cannot = f"a {report.model_type} without blocks {sorted(report.blocks)} cannot be written for transformers"
    try:
        skeleton = Skeleton(written, written.load(device=str(tokens.device)))
        loss = SheddableModel(skeleton.model, list(skeleton.blocks), tokens).loss()
    except (CheckpointError, RuntimeError, LookupError, ValueError, TypeError) as fault:
        raise CheckpointError(f"{cannot}, which fails on it: {type(fault).__name__}: {first_line(fault)}") from None
    if not abs(loss - report.loss) <= _TOLERANCE:
        raise CheckpointError(f"{cannot}: its loss is {loss:.4f} once read back, measured was {report.loss:.4f}")
    parameters = sum(parameter.numel() for parameter in skeleton.model.parameters())
    model: Any = skeleton.model
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if written.config.tie_word_embeddings and embedding.weight is not head.weight:
        parameters -= head.weight.numel()  # a copy, which an export does without
    return replace(report, parameters=parameters)
