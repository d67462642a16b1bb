"""Every method behind one function, by name. Letters: B batch, N tokens, C channels."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from edgeslim.tokens.baselines import evit, ltmp, official_code, pumer, random_drop, truncate
from edgeslim.tokens.plan import ReductionPlan
from edgeslim.tokens.step import Step
from edgeslim.tokens.utrc import utrc


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a step may look at: features [B, N, C] to compare by cosine, importance [B, N]."""

    features: Tensor
    importance: Tensor


def choose(plan: ReductionPlan, step: int, seen: Seen) -> Step | None:
    """Return what step number `step` of `plan` does with tokens as `seen`, None where it removes nothing."""
    removed = plan.removed(seen.importance.shape[1], step)
    return _METHODS[plan.method](plan, plan.layers[step], seen, removed) if removed else None


def _random(plan: ReductionPlan, layer: int, seen: Seen, removed: int) -> Step:
    batch, tokens = seen.importance.shape
    return random_drop(batch, tokens, plan, layer, removed, seen.importance.device)


def _truncate(plan: ReductionPlan, layer: int, seen: Seen, removed: int) -> Step:
    batch, tokens = seen.importance.shape
    return truncate(batch, tokens, plan, removed, seen.importance.device)


def _official_code(plan: ReductionPlan, layer: int, seen: Seen, removed: int) -> Step:
    batch, tokens = seen.importance.shape
    return official_code(batch, tokens, removed, seen.importance.device)


_METHODS: dict[str, Callable[[ReductionPlan, int, Seen, int], Step]] = {
    "utrc": lambda plan, layer, seen, removed: utrc(seen.features, seen.importance, plan, removed),
    "evit": lambda plan, layer, seen, removed: evit(seen.importance, plan, removed),
    "pumer": lambda plan, layer, seen, removed: pumer(seen.features, plan, removed),
    "ltmp": lambda plan, layer, seen, removed: ltmp(seen.features, seen.importance, plan, removed),
    "random": _random,
    "truncate": _truncate,
    "official-code": _official_code,
}
