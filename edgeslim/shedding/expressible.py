"""Which blocks a checkpoint can do without, as far as its configuration can say so.

Most families' blocks are all alike, or config.json lists the kind of each. Where it gives a rule instead (Jamba: every
eighth block attends), a missing block makes others of those behind it; Zamba2's hold weights for each other. So
transformers is asked: a model of the smaller configuration, on the meta device, must have the parameters of the rest.
"""

import json
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgeslim.checkpoint import Checkpoint, Skeleton
from edgeslim.errors import CheckpointError
from edgeslim.progress import Progress
from edgeslim.shedding.forms import without_blocks
from edgeslim.shedding.search import Amount

Signature = dict[str, tuple[tuple[int, ...], str]]
"""Of each parameter: its shape, and the first name under which the model has it."""


class Expressible:
    """Says which blocks can go together; `config` is config.json of `checkpoint`, `skeleton` its model."""

    def __init__(self, checkpoint: Checkpoint, config: Mapping[str, Any], skeleton: Skeleton) -> None:
        self._checkpoint, self._config = checkpoint, config
        self._model, self._prefix = type(skeleton.model), f"{skeleton.blocks_name}."
        self._depth = len(skeleton.blocks)
        self._signature = _signature(skeleton.model)
        self._uniform = _uniform(skeleton)
        self._known: dict[frozenset[int], bool] = {}

    def __call__(self, gone: Collection[int]) -> bool:
        """Return whether transformers makes of the configuration without `gone` the blocks that are left."""
        if self._uniform:
            return True
        key = frozenset(gone)
        if key not in self._known:
            self._known[key] = self._built(key) == self._rest(key)
        return self._known[key]

    def check(self, amount: Amount, method: str, progress: Progress) -> None:
        """Raise CheckpointError where so many blocks cannot go, or `method` would have none to choose from."""
        if self._uniform or not (amount.blocks or amount.parameters):
            return
        if method == "last":
            self._check_end(amount.blocks)
            return
        able = []
        for index in range(self._depth):
            progress(index, self._depth, "which blocks can go")
            able += [index] if self({index}) else []
        if len(able) < max(1, amount.blocks) or able == [self._depth - 1]:
            instead = "; --method last takes the end off" if able else ""
            raise CheckpointError(
                f"{self._name()} without some of its blocks cannot be written for transformers: config.json can "
                f"leave out {able or 'none'} of its {self._depth} blocks; expected more to choose from{instead}"
            )

    def _check_end(self, count: int) -> None:
        gone: set[int] = set()
        for _ in range(count):
            able = [index for index in range(self._depth) if index not in gone and self(gone | {index})]
            if not able:
                raise CheckpointError(
                    f"{self._name()} without {count} blocks cannot be written for transformers: config.json can "
                    f"leave out {sorted(gone) or 'none'} of its {self._depth} blocks"
                )
            gone.add(able[-1])

    def _name(self) -> str:
        return f"{self._checkpoint.folder}: a {self._config['model_type']}"

    def _rest(self, gone: Collection[int]) -> Signature:
        """Return what is left of the model, by the names that it has then."""
        names = {name: self._renamed(name, gone) for name in self._signature}
        return {
            names[name]: (shape, names[first])
            for name, (shape, first) in self._signature.items()
            if names[name]  # of a shared weight the first name may be gone: then nothing holds it
        }

    def _renamed(self, name: str, gone: Collection[int]) -> str:
        if not name.startswith(self._prefix):
            return name
        number, _, rest = name.removeprefix(self._prefix).partition(".")
        index = int(number)
        return "" if index in gone else f"{self._prefix}{index - sum(other < index for other in gone)}.{rest}"

    def _built(self, gone: Collection[int]) -> Signature:
        """Return what transformers makes of the smaller configuration; nothing where it makes no model."""
        checkpoint = self._checkpoint
        depth_key = checkpoint.config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
        smaller = without_blocks(self._config, gone, self._depth, depth_key)
        try:
            with tempfile.TemporaryDirectory() as folder, torch.device("meta"):
                (Path(folder) / "config.json").write_text(json.dumps(smaller), encoding="utf-8")
                return _signature(self._model(type(checkpoint.config).from_pretrained(folder)))
        except (RuntimeError, LookupError, ValueError, TypeError, AttributeError):
            return {}


def _signature(model: nn.Module) -> Signature:
    first: dict[int, str] = {}
    parameters = model.named_parameters(remove_duplicate=False)
    return {name: (tuple(value.shape), first.setdefault(id(value), name)) for name, value in parameters}


def _uniform(skeleton: Skeleton) -> bool:
    """Return whether every block has the same parameters and shares none with another."""
    kinds = [{name: tuple(value.shape) for name, value in block.named_parameters()} for block in skeleton.blocks]
    return not skeleton.first_names and all(kind == kinds[0] for kind in kinds)
