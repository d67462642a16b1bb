"""Solutions of the multiple removal problem (MRP): choose a mask, then solve every kept weight jointly for it.

Masks may be chosen progressively on updated weights; the end result still is one solve on the target with the final
mask, so the two concerns stay apart: a mask rule, a solver.

References
[1] Pruning Foundation Models for High Accuracy without Retraining (arXiv 2410.15567).
"""

from collections.abc import Callable

from torch import Tensor

from edgeslim.errors import RecipeError
from edgeslim.pruning.admm import admm
from edgeslim.pruning.blocks import mask_in_rounds
from edgeslim.pruning.patterns import NM, Blocks, Pattern, keep_mask
from edgeslim.pruning.scores import joint_mask, obs_scores
from edgeslim.pruning.sparsegpt import sweep
from edgeslim.pruning.statistics import Factored

Choice = tuple[Tensor, Tensor | None]  # a mask, and a weight on it to start the solver from where the rule has one
MaskRule = Callable[[Tensor, Factored, Pattern], Choice]


def _by_obs_score(target: Tensor, system: Factored, pattern: Pattern) -> Choice:
    return keep_mask(obs_scores(target, system.inverse_diagonal), pattern), None


def _by_joint_loss(target: Tensor, system: Factored, pattern: Pattern) -> Choice:
    if not isinstance(pattern, NM):
        raise RecipeError(f"mask rule m needs an n:m pattern, got {pattern}")
    return joint_mask(target, system.inverse, pattern), None


def _by_rounds(target: Tensor, system: Factored, pattern: Pattern) -> Choice:
    if isinstance(pattern, Blocks):
        return mask_in_rounds(target, system.inverse, pattern), None
    swept, keep = sweep(target, system.u, pattern)
    return keep, swept


def _by_admm(target: Tensor, system: Factored, pattern: Pattern) -> Choice:
    return admm(target, system.h, pattern)


MASK_RULES: dict[str, MaskRule] = {
    "s": _by_obs_score,
    "m": _by_joint_loss,
    "progressive": _by_rounds,
    "admm": _by_admm,
}
