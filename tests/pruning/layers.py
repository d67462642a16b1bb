"""Random layers and slow, obvious versions of the algorithms, for the tests to compare with."""

import itertools

import torch
from hypothesis import strategies as st
from torch import Tensor

from edgeslim.pruning.patterns import NM, Blocks, Pattern, Unstructured
from edgeslim.pruning.statistics import Factored, InputStatistics, factor


def random_layer(rows: int, inputs: int, tokens: int, seed: int = 0, decay: float = 1.0) -> tuple[Tensor, Tensor]:
    """A weight [rows, inputs] and correlated inputs [tokens, inputs] with a falling spectrum, float64."""
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(inputs, inputs, generator=g, dtype=torch.float64) / inputs**0.5
    spectrum = torch.arange(1, inputs + 1, dtype=torch.float64) ** -(decay / 2)
    x = torch.randn(tokens, inputs, generator=g, dtype=torch.float64) * spectrum @ mix
    return torch.randn(rows, inputs, generator=g, dtype=torch.float64), x


def system_of(x: Tensor, damping: float = 0.01) -> Factored:
    return factor(InputStatistics.of(x).h, damping)


@st.composite
def layers(draw: st.DrawFn, most_inputs: int = 24) -> tuple[Tensor, Tensor]:
    """A weight and inputs; with fewer tokens than inputs X Xᵀ is singular."""
    rows, inputs = draw(st.integers(1, 7)), draw(st.integers(2, most_inputs))
    tokens, seed = draw(st.integers(1, 3 * inputs)), draw(st.integers(0, 2**20))
    return random_layer(rows, inputs, tokens, seed, draw(st.sampled_from([0.0, 1.0, 2.0])))


@st.composite
def patterns(draw: st.DrawFn) -> Pattern:
    kind = draw(st.sampled_from(["row", "layer", "block", "n:m"]))
    if kind in ("row", "layer"):
        return Unstructured(sparsity=draw(st.sampled_from([0.0, 0.1, 0.5, 0.7, 0.95])), scope=kind)  # type: ignore[arg-type]
    if kind == "block":
        return Blocks(rows=draw(st.integers(1, 4)), sparsity=draw(st.sampled_from([0.0, 0.25, 0.5, 0.9])))
    m = draw(st.integers(2, 6))
    return NM(n=draw(st.integers(1, m - 1)), m=m)


def least_squares(target: Tensor, h: Tensor, keep: Tensor) -> Tensor:
    """Row by row: fit Aw = At on the kept columns by a dense solver, where H = AᵀA.  all: [out, in]."""
    a = torch.linalg.cholesky(h).T
    fitted = torch.zeros_like(target)
    for row, kept in enumerate(keep):
        if kept.any():
            fitted[row, kept] = torch.linalg.lstsq(a[:, kept], (a @ target[row])[:, None]).solution[:, 0]
    return fitted


def naive_sweep(w: Tensor, h: Tensor, keep: Tensor) -> Tensor:
    """SparseGPT with a given mask, row by row: freeze the columns one by one, inverting H on those still free."""
    swept = w.clone()
    for j in range(w.shape[1]):
        inverse = torch.linalg.inv(h[j:, j:])
        for row in range(w.shape[0]):
            if not keep[row, j]:
                swept[row, j:] -= swept[row, j] * inverse[0] / inverse[0, 0]
                swept[row, j] = 0
    return swept


def all_masks(inputs: int, kept: int) -> list[Tensor]:
    """Every mask of one row with `kept` places."""
    masks = []
    for places in itertools.combinations(range(inputs), kept):
        mask = torch.zeros(inputs, dtype=torch.bool)
        mask[list(places)] = True
        masks.append(mask)
    return masks
