"""A mixer without some heads computes what the whole one computes in the heads that stay."""

import pytest
import torch
from families import tiny_model
from torch import Tensor

from edgeslim.errors import PruneError
from edgeslim.pruning.heads import HeadShape, fitted_outputs, kept_parts, norm_gain
from edgeslim.shedding.search import shrink_mixer_

SHAPE = HeadShape(heads=8, size=16, groups=2, state=16)
KEEP = [0, 3, 5, 6]  # two heads of each group
CHANNELS = torch.cat([torch.arange(head * 16, head * 16 + 16) for head in KEEP])


def hidden(seed: int = 0) -> Tensor:
    return torch.randn(2, 20, 64, generator=torch.Generator().manual_seed(seed))


def norm_inputs(mixer: torch.nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """What the gated norm of `mixer` gets for `x`: scanned heads and gate."""
    seen: list[tuple[Tensor, Tensor]] = []
    handle = mixer.norm.register_forward_pre_hook(lambda _, args: seen.append(args))
    mixer(x)
    handle.remove()
    return seen[0]


@torch.no_grad()
def test_heads_that_stay_are_scanned_as_before():
    mixer = tiny_model("mamba2").backbone.layers[0].mixer
    y, gate = norm_inputs(mixer, hidden())
    shrink_mixer_(mixer, KEEP)
    fewer, fewer_gate = norm_inputs(mixer, hidden())
    torch.testing.assert_close(fewer, y[..., CHANNELS], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(fewer_gate, gate[..., CHANNELS])
    assert mixer(hidden()).shape == (2, 20, 64)


@torch.no_grad()
def test_all_heads_kept_change_nothing():
    mixer = tiny_model("mamba2").backbone.layers[0].mixer
    before = mixer(hidden())
    shrink_mixer_(mixer, range(8))
    torch.testing.assert_close(mixer(hidden()), before, atol=0, rtol=0)


@torch.no_grad()
def test_the_norms_gain_keeps_channels_as_they_were_on_average():
    mixer = tiny_model("mamba2").backbone.layers[0].mixer
    y, gate = norm_inputs(mixer, hidden())
    whole = mixer.norm(y, gate)
    weight = mixer.norm.weight.clone()
    shrink_mixer_(mixer, KEEP)
    mixer.norm.weight.mul_(norm_gain(whole.flatten(0, 1).square().mean(0), weight, SHAPE, KEEP))
    kept = mixer.norm(y[..., CHANNELS], gate[..., CHANNELS])
    for group in (slice(0, 32), slice(32, 64)):
        ratio = kept[..., group].square().mean() / whole[..., CHANNELS[group]].square().mean()
        assert 0.8 < float(ratio) < 1.25  # the mean of quotients is not the quotient of means


def test_fitted_outputs_are_the_ridge_regression_on_fewer_inputs():
    draw = torch.Generator().manual_seed(1)
    x, weight = torch.randn(200, 12, generator=draw), torch.randn(5, 12, generator=draw)
    fewer = x[:, :7] * 1.3 + 0.1 * torch.randn(200, 7, generator=draw)
    start = weight[:, :7]
    found = fitted_outputs(weight, start, fewer.T @ fewer / 200, x.T @ fewer / 200)
    gamma = 0.01 * float((fewer.T @ fewer / 200).diagonal().mean())
    rows = torch.cat([fewer / 200**0.5, gamma**0.5 * torch.eye(7)]).double()
    right = torch.cat([(x @ weight.T) / 200**0.5, gamma**0.5 * start.T]).double()
    torch.testing.assert_close(found.double(), torch.linalg.lstsq(rows, right).solution.T, atol=1e-5, rtol=1e-5)


def test_the_parameters_of_a_head_are_those_that_go_with_it():
    mixer = tiny_model("mamba2").backbone.layers[0].mixer
    before = sum(p.numel() for p in mixer.parameters())
    shrink_mixer_(mixer, KEEP)
    assert before - sum(p.numel() for p in mixer.parameters()) == 4 * SHAPE.parameters(hidden=64, taps=4)


@pytest.mark.parametrize("keep", [[0, 1, 2], [0, 1], [3, 0, 5, 6], [], [0, 0, 5, 6]])
def test_heads_that_leave_groups_unequal_are_refused(keep):
    with pytest.raises(PruneError, match="every group must keep as many heads"):
        kept_parts(SHAPE, keep)
