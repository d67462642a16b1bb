"""What an error of each linear's output costs the model, and how large that error is for each form.

An error δ of a linear's output y moves the model's loss, to second order and on text of the model's own, by ½ (g · δ)²
a token, g being the gradient of the log-likelihood of tokens that the model draws: its Fisher information. With δ
spread as evenly over the outputs as we know it,

    ΔL = ½ E|g|² / out · E|δ|²         E|δ|² = ½ tr (w' - w) H (w' - w)ᵀ     by what prune_matrix reports

Adding up linears takes their errors as independent. One backward pass of the whole model gives |g|² of all linears; the
forms are tried block by block on the dense model's own inputs, by the fast effort.

References
[1] Hassibi & Stork, Optimal Brain Surgeon (1993): second order losses.
[2] Li et al., BRECQ (arXiv 2102.05426): Fisher information of outputs as weights of quantization errors.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from edgeslim.activations import Activations
from edgeslim.blockwise import (
    BlockRunner,
    capture_inputs,
    input_groups,
    prunable_linears,
    weight_matrix,
)
from edgeslim.checkpoint import Checkpoint, quiet_transformers
from edgeslim.journal import Record
from edgeslim.memory import release_free_memory
from edgeslim.progress import Progress
from edgeslim.pruning.methods import PruneConfig, prune_matrix
from edgeslim.pruning.statistics import InputStatistics
from edgeslim.quantize.grid import bits_per_weight
from edgeslim.search.allocation import Option
from edgeslim.search.forms import Form

Options = dict[str, list[Option]]


def output_sensitivities(
    model: nn.Module, tokens: Tensor, names: Sequence[str], progress: Progress, seed: int = 0
) -> dict[str, float]:
    """Return ½ E|g|² / out of each linear called `names`: nats a token for an output error of E|δ|² = 1.

    tokens: int64 [samples, seqlen]; `model` is in evaluation mode, on the tokens' device.
    """
    squares = dict.fromkeys(names, 0.0)
    outputs: dict[str, int] = {}
    handles = [model.get_submodule(name).register_forward_hook(_watch(name, squares, outputs)) for name in names]
    embedding: nn.Module = model.get_input_embeddings()  # type: ignore[operator]
    generator = torch.Generator().manual_seed(seed)
    first = embedding.register_forward_hook(lambda module, args, out: out.requires_grad_())
    try:
        for number, window in enumerate(tokens.split(1)):
            progress(number, len(tokens), "measuring sensitivities")
            with torch.enable_grad():
                logits = model(input_ids=window, use_cache=False).logits[0].float()
                drawn = torch.multinomial(logits.detach().softmax(-1).cpu(), 1, generator=generator).to(logits.device)
                logits.log_softmax(-1).gather(1, drawn).sum().backward()
    finally:
        for handle in (*handles, first):
            handle.remove()
    return {name: 0.5 * squares[name] / tokens.numel() / outputs[name] for name in names}


def _watch(name: str, squares: dict[str, float], outputs: dict[str, int]) -> Callable[..., None]:
    def take(gradient: Tensor) -> None:
        squares[name] += float(gradient.double().square().sum())

    def hook(module: nn.Module, args: object, out: Tensor) -> None:
        outputs[name] = out.shape[-1]
        out.register_hook(take)

    return hook


def measure_options(
    checkpoint: Checkpoint,
    tokens: Tensor,
    forms: Sequence[Form],
    folder: Path,
    device: str,
    progress: Progress,
    keep: Callable[[str, Callable[[], Record]], Record] = lambda step, work: work(),
) -> tuple[Options, dict[str, int]]:
    """Return, by the names of all linears that are pruned, their options and their sizes.

    `folder` holds hidden states meanwhile. tokens: int64 [samples, seqlen]. `keep` gets each block's name and the work
    that tries the forms of its linears; it returns what the work gave, now or in a run before.
    """
    with quiet_transformers():
        walk = _Walk(checkpoint, tokens, forms, folder, torch.device(device), progress)
        for index, name in enumerate(walk.skeleton.block_names):
            walk.block(index, partial(keep, f"forms of {name}"))
        weights = output_sensitivities(
            checkpoint.load(device=device), tokens[: max(1, len(tokens) // 2)].to(device), list(walk.tried), progress
        )
    options = {
        name: [Option(form, bits, weights[name] * error) for form, bits, error in found["forms"]]
        for name, found in walk.tried.items()
    }
    return options, {name: found["size"] for name, found in walk.tried.items()}


class _Walk:
    """Goes through the dense model's blocks and tries every form on every linear."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokens: Tensor,
        forms: Sequence[Form],
        folder: Path,
        device: torch.device,
        progress: Progress,
    ) -> None:
        self.skeleton = checkpoint.skeleton()
        self.tried: Record = {}
        self._forms, self._device, self._progress = forms, device, progress
        self._runner = BlockRunner(self.skeleton, tokens, device)
        self._stream = Activations(folder / "dense.hidden")
        self._runner.embed(self._stream)

    @torch.no_grad()
    def block(self, index: int, keep: Callable[[Callable[[], Record]], Record]) -> None:
        """Try the forms on the linears of one block and advance the stream."""
        block = self.skeleton.fill_block(index, self._device)
        linears = prunable_linears(block, self.skeleton.block_names[index])
        if linears:
            self.tried.update(keep(partial(self._try_block, index, block, linears)))
        self._runner.advance(index, block, self._stream)
        self.skeleton.empty_block(index)

    def _try_block(self, index: int, block: nn.Module, linears: dict[str, nn.Module]) -> Record:
        """Return the size of each linear, and of every form the bits a weight and mean squared output error E|δ|²."""
        found: Record = {}
        self._progress(index, len(self.skeleton.block_names), f"trying forms of {self.skeleton.block_names[index]}")
        groups = input_groups(lambda: self._runner.run(index, block, self._stream.read(0), 0), linears)
        statistics = self._gather(index, block, {group[0]: linears[group[0]] for group in groups})
        for group in groups:
            for name in group:
                self._progress(index, len(self.skeleton.block_names), f"trying forms of {name}")
                weight = weight_matrix(linears[name])
                found[name] = {"size": weight.numel(), "forms": self._try_forms(weight, statistics[group[0]])}
            del statistics[group[0]]
            release_free_memory()
        return found

    def _gather(self, index: int, block: nn.Module, firsts: Mapping[str, nn.Module]) -> dict[str, InputStatistics]:
        statistics = {
            name: InputStatistics(weight_matrix(module).shape[1], device=self._device)
            for name, module in firsts.items()
        }
        for batch in range(len(self._stream)):
            run = partial(self._runner.run, index, block, self._stream.read(batch), batch)
            seen, _ = capture_inputs(run, list(firsts.values()))
            for entry, x in zip(statistics.values(), seen, strict=True):
                entry.add(x)
        return statistics

    def _try_forms(self, weight: Tensor, statistics: InputStatistics) -> list[tuple[str, float, float]]:
        signal = 0.5 * float(((weight @ statistics.h) * weight).sum())
        found = []
        for form in self._forms:
            config = replace(PruneConfig(effort="fast"), pattern=form.shape, grid=form.grid)
            pruned = prune_matrix(weight, statistics, config)
            assert pruned.on_grid is not None
            bits = bits_per_weight(pruned.on_grid.codes, form.grid)
            found.append((str(form), bits, pruned.relative_error * signal))
        return found
