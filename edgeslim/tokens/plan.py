"""What to reduce, where and by which rule: the plan that `edgeslim reduce` writes into config.json.

It stands under the key `edgeslim` -> `reduction`. Exporters and the runtime read it too, so this file needs no torch.

Letters: N tokens that enter a block; r tokens that a step removes there.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from edgeslim.errors import CheckpointError, RecipeError, did_you_mean

METHODS = ("utrc", "evit", "pumer", "ltmp", "random", "truncate", "official-code")
SCAN_METRICS = ("clip", "l1", "l2", "none")
ATTENTION_METRICS = ("attention", "key-norm")
METRICS = (*SCAN_METRICS, *ATTENTION_METRICS)
BRANCH_RULES = ("hybrid", "merge", "prune")
MERGES = ("pairwise", "mean")

BEFORE_ALL = -1
"""The layer index of a step that takes place before the first block."""

LOOKING_BACK = 16
"""Queries at the end of the prompt whose attention counts for the metric `attention`."""

_MILLION = 1_000_000


@dataclass(frozen=True, kw_only=True)
class ReductionPlan:
    """One reduction: at block `layers[i]` (from 0), the share `ratios[i]` of the tokens is kept.

    method        utrc, evit, pumer, ltmp, random, truncate or official-code (see `edgeslim.tokens.methods`)
    metric        what importance is: clip, l1, l2, none of the mixer's output; attention or key-norm in transformers
    q             share of the removed tokens that a hybrid rule prunes instead of merging
    hidden        what becomes of removed tokens in the branch that leaves the mixer: hybrid, merge or prune
    residual      the same in the residual beside it
    merge         tokens that share a destination: pairwise (one after the other, 1/2, 1/4, …) or mean
    protect_last  that many tokens at the end take part in nothing: never removed, never merged into
    protect_first the same for the first token
    min_tokens    a prompt of fewer tokens is left as it is: short ones have little to spare
    seed          of random
    Cuts of FLOPs are for the record: as the paper counts them, and as counted for a prompt of `prompt_tokens`.
    """

    method: str = "utrc"
    layers: tuple[int, ...] = ()
    ratios: tuple[float, ...] = ()
    metric: str = "clip"
    q: float = 0.5
    hidden: str = "hybrid"
    residual: str = "merge"
    merge: str = "pairwise"
    protect_last: int = 4
    protect_first: bool = False
    min_tokens: int = 1
    seed: int = 0
    flops_cut_formula: float | None = None
    flops_cut_counted: float | None = None
    prompt_tokens: int | None = None

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise RecipeError(
                    f"{name} must be one of {', '.join(choices)}, got {value!r}{did_you_mean(str(value), choices)}"
                )
        if len(self.layers) != len(self.ratios):
            raise RecipeError(f"layers and ratios must be equally many, got {len(self.layers)} and {len(self.ratios)}")
        if list(self.layers) != sorted(set(self.layers)):
            raise RecipeError(f"layers must ascend, got {list(self.layers)}")
        if self.layers and self.layers != (BEFORE_ALL,) and (self.method == "truncate" or self.layers[0] < 0):
            expected = f"[{BEFORE_ALL}] (before the first block)" if self.method == "truncate" else "at least 0"
            raise RecipeError(f"layers of {self.method} must be {expected}, got {list(self.layers)}")
        if self.layers == (BEFORE_ALL,) and self.method != "truncate":
            raise RecipeError(f"layers of {self.method} must be at least 0, got {list(self.layers)}")
        for ratio in self.ratios:
            if not 0.5 <= ratio <= 1:
                raise RecipeError(f"ratio must be in [0.5, 1], since a step removes at most half, got {ratio}")
        if not 0 <= self.q <= 1:
            raise RecipeError(f"q must be in [0, 1], got {self.q}")
        for name, least in (("protect_last", 0), ("min_tokens", 1)):
            if getattr(self, name) < least:
                raise RecipeError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 <= self.seed < 1 << 31:
            raise RecipeError(f"seed must be in [0, 2**31), got {self.seed}")

    @property
    def protected(self) -> int:
        """The most tokens that take no part. The emulation of the released code protects none."""
        return 0 if self.method == "official-code" else self.protect_last + self.protect_first

    def unprotected(self, tokens: int) -> range:
        """Return the positions that take part when `tokens` enter a block; they are contiguous."""
        if self.method == "official-code":
            return range(tokens)
        first = min(int(self.protect_first), tokens)
        return range(first, max(first, tokens - self.protect_last))

    def reduces(self, tokens: int) -> bool:
        """Return whether a prompt of `tokens` is long enough to be reduced."""
        return bool(self.layers) and tokens >= self.min_tokens

    def removed(self, tokens: int, step: int) -> int:
        """Return r, how many of N = `tokens` step number `step` removes: N - ceil(N ratio), at most half that may go.

        The arithmetic is of integers (the ratio in millionths), so that a graph gets the same number.
        """
        keep = -(-tokens * millionths(self.ratios[step]) // _MILLION)
        return min(tokens - keep, len(self.unprotected(tokens)) // 2)

    def kept(self, tokens: int) -> tuple[int, ...]:
        """Return how many of a prompt's `tokens` are left after each step."""
        if not self.reduces(tokens):
            return (tokens,) * len(self.layers)
        left = []
        for step in range(len(self.layers)):
            tokens -= self.removed(tokens, step)
            left.append(tokens)
        return tuple(left)

    def pruned(self, removed: int) -> int:
        """Return how many of the `removed` tokens a hybrid rule prunes: floor(q r)."""
        return removed * millionths(self.q) // _MILLION

    def to_json(self) -> dict[str, Any]:
        """Return the plan as it stands in config.json."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, table: Mapping[str, Any], where: str) -> "ReductionPlan":
        """Return the plan in `table`; `where` names its place in messages.

        Raises: RecipeError for an unknown key, a wrong type or a value that cannot be meant.
        """
        names = {entry.name for entry in fields(cls)}
        for key in table:
            if key not in names:
                raise RecipeError(f"{where}: unknown key {key!r}{did_you_mean(key, names)}")
        values = {key: _value(key, value, where) for key, value in table.items()}
        try:
            return cls(**values)
        except RecipeError as fault:
            raise RecipeError(f"{where}: {fault}") from None


_CHOICES = {
    "method": METHODS,
    "metric": METRICS,
    "hidden": BRANCH_RULES,
    "residual": BRANCH_RULES,
    "merge": MERGES,
}
_WHOLE = frozenset({"layers", "protect_last", "min_tokens", "seed", "prompt_tokens"})
_REAL = frozenset({"q", "flops_cut_formula", "flops_cut_counted"})
_OPTIONAL = frozenset({"flops_cut_formula", "flops_cut_counted", "prompt_tokens"})


def plan_of_config(config: Mapping[str, Any], where: str | Path = "config.json") -> ReductionPlan | None:
    """Return the plan in a checkpoint's configuration (its JSON object), None where there is none.

    Raises: RecipeError for a plan that cannot be meant, CheckpointError for one that the model is too shallow for.
    """
    table = (config.get("edgeslim") or {}).get("reduction")
    if table is None:
        return None
    plan = ReductionPlan.from_json(table, f"{where}: edgeslim: reduction")
    depth = config.get("num_hidden_layers") or config.get("n_layer")
    if depth is not None and plan.layers and plan.layers[-1] >= depth:
        raise CheckpointError(f"{where}: reduction at layer {plan.layers[-1]}; the model has layers 0 to {depth - 1}")
    return plan


def millionths(share: float) -> int:
    """Return `share` in millionths, the unit in which counts are computed."""
    return round(share * _MILLION)


def _value(key: str, value: Any, where: str) -> Any:
    if value is None and key in _OPTIONAL:
        return None
    whole = key in _WHOLE
    if key in ("layers", "ratios"):
        if isinstance(value, list | tuple) and all(_is_number(v, whole) for v in value):
            return tuple(value if whole else map(float, value))
        raise RecipeError(f"{where}: {key}: expected a list of numbers, got {value!r}")
    if whole or key in _REAL:
        if _is_number(value, whole):
            return value if whole else float(value)
        raise RecipeError(f"{where}: {key}: expected a number, got {value!r}")
    expected: type = bool if key == "protect_first" else str
    if not isinstance(value, expected):
        raise RecipeError(f"{where}: {key}: expected {expected.__name__}, got {value!r}")
    return value


def _is_number(value: Any, whole: bool) -> bool:
    return isinstance(value, int if whole else int | float) and not isinstance(value, bool)
