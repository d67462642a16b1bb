"""Sensitivities against gradients taken one by one, and against the loss that noise really costs."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from families import save_tiny

from edgeslim.checkpoint import Checkpoint
from edgeslim.journal import Record
from edgeslim.search.forms import Form
from edgeslim.search.sensitivity import measure_options, output_sensitivities

TOKENS = torch.randint(300, (6, 16), generator=torch.Generator().manual_seed(0))
SIZE = 0.01  # of the noise: small enough for second order
FORMS = (Form("0", "int2:32"), Form("0.5", "int3:32"), Form("0", "int4:32"))


def _silent(done: int, total: int, label: str) -> None:
    pass


def test_noise_in_an_output_costs_what_its_sensitivity_says(tmp_path: Path) -> None:
    model = Checkpoint.open(save_tiny(tmp_path / "m", "llama")).load()
    names = ["model.layers.0.mlp.up_proj", "model.layers.2.self_attn.o_proj"]
    many = TOKENS.repeat(20, 1)  # drawn labels differ: a mean over many
    found = output_sensitivities(model, many, names, _silent)
    before = model(input_ids=TOKENS).logits.log_softmax(-1)
    generator = torch.Generator().manual_seed(1)
    for name in names:
        module, costs = model.get_submodule(name), []
        for _ in range(40):

            def disturb(_module: object, _args: object, out: torch.Tensor) -> torch.Tensor:
                return out + SIZE * torch.randn(out.shape, generator=generator)

            handle = module.register_forward_hook(disturb)
            after = model(input_ids=TOKENS).logits.log_softmax(-1)
            handle.remove()
            costs.append(float((before.exp() * (before - after)).sum(-1).mean()))
        expected = found[name] * SIZE**2 * module.weight.shape[0]  # E|δ|² of all outputs
        assert 0.7 < sum(costs) / len(costs) / expected < 1.4  # both are means over draws


def test_every_linear_has_an_option_for_every_form_and_more_bits_lose_less(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(save_tiny(tmp_path / "m", "llama"))
    options, sizes = measure_options(checkpoint, TOKENS, FORMS, tmp_path, "cpu", _silent)
    assert len(options) == 21 and options.keys() == sizes.keys()
    for name, found in options.items():
        assert [option.form for option in found] == [str(form) for form in FORMS]
        assert sizes[name] > 0 and all(option.loss > 0 for option in found)
        assert found[2].loss < found[1].loss and found[2].loss < found[0].loss
        assert 2 < found[0].bits <= 2.5 and 2.5 < found[1].bits <= 3.01


def test_blocks_that_a_run_before_has_tried_are_not_tried_again(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(save_tiny(tmp_path / "m", "llama"))
    kept: dict[str, Record] = {}
    tried: list[str] = []

    def keep(step: str, work: Callable[[], Record]) -> Record:
        if step not in kept:
            tried.append(step)
            kept[step] = json.loads(json.dumps(work()))  # as a journal keeps it
        return kept[step]

    first = measure_options(checkpoint, TOKENS, FORMS, tmp_path, "cpu", _silent, keep)
    assert tried == [f"forms of model.layers.{number}" for number in range(len(tried))] and len(tried) > 1
    del kept[tried[-1]]
    assert measure_options(checkpoint, TOKENS, FORMS, tmp_path, "cpu", _silent, keep) == first
    assert tried[-1] == tried[-2] and len(tried) == len(kept) + 1
