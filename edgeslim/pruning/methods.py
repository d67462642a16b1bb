"""One layer in, one pruned layer out: the methods side by side, behind one configuration.

References
[1] Sun et al., Wanda (arXiv 2306.11695).
[2] Frantar & Alistarh, SparseGPT (arXiv 2301.00774).
[3] Pruning Foundation Models for High Accuracy without Retraining (arXiv 2410.15567): MRP.

Letters
    w        weight [out, in]
    t        target: the weight that the pruned one shall come close to; w itself, or what best repeats the dense
             model's output on the inputs that the pruned model sees [out, in]
    H, C     moments of the inputs, see statistics.py [in, in]
    γ        damping
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from edgeslim.errors import PruneError, RecipeError, did_you_mean
from edgeslim.pruning.mrp import MASK_RULES
from edgeslim.pruning.patterns import NM, Blocks, Pattern, Unstructured, keep_mask
from edgeslim.pruning.product import times_transposed
from edgeslim.pruning.scores import magnitude_scores, wanda_scores
from edgeslim.pruning.solve import MEMORY, solve_cg, solve_exact
from edgeslim.pruning.sparsegpt import reference_pattern, sweep
from edgeslim.pruning.statistics import Factored, InputStatistics, factor
from edgeslim.quantize.grid import Grid
from edgeslim.quantize.solve import OnGrid, quantize

Method = Literal["magnitude", "wanda", "sparsegpt", "mrp"]
Rule = Literal["s", "m", "progressive", "admm"]
Solver = Literal["cholesky", "cg"]
Effort = Literal["fast", "best"]
Target = Literal["pruned", "dense"]
Precision = Literal["float32", "float64"]

EFFORTS: dict[str, tuple[Rule, Solver, float]] = {"fast": ("progressive", "cg", 2e-2), "best": ("admm", "cg", 5e-4)}
"""Mask rule, solver and tolerance of conjugate gradients for each effort."""


@dataclass(frozen=True, kw_only=True)
class PruneConfig:
    """How to prune one matrix. `mask_rule`, `solver` and `cg_tolerance` are MRP's; where None, `effort` decides.

    With a `grid` the kept weights end on it, whatever the method: mask and solution are where the joint search starts.
    `target` is MRP's too: "pruned" repeats w on the inputs seen, "dense" also repairs what earlier pruned layers have
    changed in them, for which the statistics must carry C.
    """

    method: Method = "mrp"
    pattern: Pattern = field(default_factory=lambda: Unstructured(sparsity=0.5))
    grid: Grid | None = None
    effort: Effort = "best"
    mask_rule: Rule | None = None
    solver: Solver | None = None
    target: Target = "pruned"
    target_strength: float = 1.0
    damping: float = 0.01
    cg_tolerance: float | None = None
    precision: Precision = "float32"
    memory: int = MEMORY

    def __post_init__(self) -> None:
        _check_choice("method", self.method, METHODS)
        _check_choice("effort", self.effort, EFFORTS)
        _check_choice("target", self.target, ("pruned", "dense"))
        _check_choice("precision", self.precision, ("float32", "float64"))
        _check_choice("mask_rule", self.rule, MASK_RULES)
        _check_choice("solver", self.solve_by, ("cholesky", "cg"))
        if self.rule == "m" and not isinstance(self.pattern, NM):
            raise RecipeError(f"mask_rule m needs an n:m pattern, got {self.pattern}")
        if not 0 <= self.target_strength <= 1:
            raise RecipeError(f"target_strength must be in [0, 1], got {self.target_strength}")
        for name, value in (("damping", self.damping), ("cg_tolerance", self.tolerance)):
            if not 0 < value < 1:
                raise RecipeError(f"{name} must be in (0, 1), got {value}")

    @property
    def rule(self) -> str:
        """The mask rule that MRP uses; for blocks of rows, whose masks come in rounds, at any effort the same."""
        return self.mask_rule or ("progressive" if isinstance(self.pattern, Blocks) else EFFORTS[self.effort][0])

    @property
    def solve_by(self) -> str:
        """The solver that MRP uses; for blocks of rows Cholesky's, since one factorisation serves a block."""
        return self.solver or ("cholesky" if isinstance(self.pattern, Blocks) else EFFORTS[self.effort][1])

    @property
    def tolerance(self) -> float:
        """Where MRP's conjugate gradients stop: what is left to gain, as a share of the objective."""
        return EFFORTS[self.effort][2] if self.cg_tolerance is None else self.cg_tolerance

    @property
    def needs_cross_moment(self) -> bool:
        """Whether the statistics must relate the dense model's inputs to the pruned one's."""
        return self.method == "mrp" and self.target == "dense" and self.target_strength > 0


@dataclass(frozen=True, kw_only=True)
class PrunedMatrix:
    """A pruned weight [out, in] in its first dtype, its mask [out, in], and ‖(w' - w)X‖² / ‖wX‖² of what is stored.

    `on_grid` has the integers and scales whose product the weight is, where a grid was asked for.
    """

    weight: Tensor
    keep: Tensor
    relative_error: float
    on_grid: OnGrid | None = None


def prune_matrix(w: Tensor, statistics: InputStatistics, config: PruneConfig) -> PrunedMatrix:
    """Prune one weight by its input statistics, on the device where it lies.  w: [out, in], any float dtype.

    Raises: PruneError where the statistics do not fit the weight or cannot be solved.
    """
    if w.ndim != 2 or w.shape[1] != statistics.h.shape[0] or statistics.tokens == 0:
        raise PruneError(
            f"statistics must cover the weight's inputs, got weight {tuple(w.shape)}"
            f" and {statistics.tokens} tokens of {statistics.h.shape[0]} inputs"
        )
    exact = w.detach().to(torch.float64 if config.precision == "float64" else torch.float32)
    if not bool(torch.isfinite(exact).all()):
        raise PruneError("weights must be finite, got infinity or NaN")
    weight, keep = METHODS[config.method](exact, statistics, config)
    on_grid = None
    if config.grid is not None:
        target, system = _goal(exact, statistics, config)
        on_grid = quantize(weight * keep, keep, target, system, config.pattern, config.grid, config.effort)
        weight, keep = on_grid.weight, on_grid.keep
    stored = (weight * keep).to(w.dtype)
    error = relative_error(exact, stored, statistics.h)
    return PrunedMatrix(weight=stored, keep=keep, relative_error=error, on_grid=on_grid)


def relative_error(w: Tensor, pruned: Tensor, h: Tensor) -> float:
    """‖(w' - w)X‖² / ‖wX‖² by the undamped H; zero where the layer's output is.  w, pruned: [out, in]."""
    through = times_transposed(h.to(w))
    delta = pruned.to(w) - w
    signal, noise = (float(torch.linalg.vecdot(through(x), x).sum()) for x in (w, delta))
    return max(noise, 0.0) / signal if signal > 0 else 0.0


def dense_target(w: Tensor, h: Tensor, c: Tensor, system: Factored, strength: float) -> Tensor:
    """The minimiser of ‖t X_pruned - w X_dense‖² + γ‖t - w‖², or a point on the way there.  all: [out, in].

    t = w + strength · w (C - H)(H + γI)⁻¹, with the undamped H in the middle.
    """
    return w + strength * (((w @ (c - h)) @ system.u.T) @ system.u)


def _magnitude(w: Tensor, statistics: InputStatistics, config: PruneConfig) -> tuple[Tensor, Tensor]:
    keep = keep_mask(magnitude_scores(w), reference_pattern(config.pattern))
    return w, keep


def _wanda(w: Tensor, statistics: InputStatistics, config: PruneConfig) -> tuple[Tensor, Tensor]:
    return w, keep_mask(wanda_scores(w, statistics.mean_square.to(w)), config.pattern)


def _sparsegpt(w: Tensor, statistics: InputStatistics, config: PruneConfig) -> tuple[Tensor, Tensor]:
    h = statistics.h.to(w)
    return sweep(_without_dead(w, h), factor(h, config.damping).u, reference_pattern(config.pattern))


def _goal(w: Tensor, statistics: InputStatistics, config: PruneConfig) -> tuple[Tensor, Factored]:
    """Return the target t and the damped system under which the pruned weight shall be close to it."""
    h = statistics.h.to(w)
    system = factor(h, config.damping)
    target = _without_dead(w, h)
    if config.needs_cross_moment:
        if statistics.c is None:
            raise PruneError("target dense needs statistics with a cross moment, got none")
        target = dense_target(target, h, statistics.c.to(w), system, config.target_strength)
    return target, system


def _mrp(w: Tensor, statistics: InputStatistics, config: PruneConfig) -> tuple[Tensor, Tensor]:
    target, system = _goal(w, statistics, config)
    if config.pattern.sparsity == 0:
        return target, torch.ones_like(target, dtype=torch.bool)
    if config.rule == "admm" and config.solve_by == "cg":
        system = system.without_inverse()
    keep, start = MASK_RULES[config.rule](target, system, config.pattern)
    if config.solve_by == "cholesky":
        return solve_exact(target, system, keep, config.memory), keep
    return solve_cg(target, system.h, keep, start, config.tolerance), keep


def _without_dead(w: Tensor, h: Tensor) -> Tensor:
    return w * (h.diagonal() > 0)


def _check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    known = list(choices)
    if value not in known:
        raise RecipeError(f"{name} must be one of {', '.join(known)}, got {value!r}{did_you_mean(str(value), known)}")


METHODS: dict[str, Callable[[Tensor, InputStatistics, PruneConfig], tuple[Tensor, Tensor]]] = {
    "magnitude": _magnitude,
    "wanda": _wanda,
    "sparsegpt": _sparsegpt,
    "mrp": _mrp,
}
