"""FLOPs of a prefill, counted from a model's configuration. Needs no torch.

Counted: every matrix product, the convolution, the scan, attention of each query to the keys it sees, the head on the
last token, and what a reduction itself costs (importance, cosines). Two FLOPs a multiply-add. Not counted: norms,
activations, the embedding's gather, sorting. Letters: N tokens of the prompt, H hidden size, C channels compared.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgeslim.errors import CheckpointError
from edgeslim.tokens.plan import BEFORE_ALL, LOOKING_BACK, ReductionPlan

SCAN_FAMILIES = ("mamba", "mamba2")
ATTENTION_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
FAMILIES = (*SCAN_FAMILIES, *ATTENTION_FAMILIES)


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """What a prefill costs. FLOPs a token: of a block's mixer, of what follows it in the block, of the head.

    `attended` FLOPs a pair of query and key that sees it; `windows` the furthest each layer sees (None: all);
    `compared` channels are compared by a reduction and `scored` FLOPs a token give its importance.
    """

    family: str
    depth: int
    mixer: int
    after: int
    head: int
    attended: int = 0
    windows: tuple[int | None, ...] = ()
    compared: int
    scored: int

    @property
    def is_scan(self) -> bool:
        """Whether the model is a state-space model."""
        return self.family in SCAN_FAMILIES


def shape_of_config(config: Mapping[str, Any]) -> ModelShape:
    """Return the shape of the model whose config.json holds `config`.

    Raises: CheckpointError for a family whose tokens cannot be reduced, or a configuration that lacks a size.
    """
    family = config.get("model_type")
    if family not in FAMILIES:
        raise CheckpointError(f"token reduction knows {', '.join(FAMILIES)}; the model is of type {family!r}")
    try:
        if family == "mamba":
            return _mamba(config)
        return _mamba2(config) if family == "mamba2" else _attention(config)
    except KeyError as fault:
        raise CheckpointError(f"config.json of the {family} model lacks {fault.args[0]!r}") from None


def prefill_flops(shape: ModelShape, tokens: int, plan: ReductionPlan | None = None) -> int:
    """Return the FLOPs of a prefill of N = `tokens` that computes the last token's logits."""
    total, step = shape.head, 0
    layers = plan.layers if plan is not None and plan.reduces(tokens) else ()
    for layer in range(BEFORE_ALL, shape.depth):
        reduces = step < len(layers) and layers[step] == layer
        if layer >= 0:
            total += tokens * shape.mixer + shape.attended * _pairs(tokens, _window(shape, layer))
        if reduces and plan is not None:
            removed = plan.removed(tokens, step)
            total += _choosing(shape, plan, tokens) if removed else 0
            tokens -= removed
            step += 1
        if layer >= 0:
            total += tokens * shape.after
    return total


def _choosing(shape: ModelShape, plan: ReductionPlan, tokens: int) -> int:
    """Return the FLOPs of one step's choice among `tokens`."""
    taking_part = len(plan.unprotected(tokens))
    scoring = tokens * shape.scored if plan.method in ("utrc", "evit", "ltmp") else 0
    if plan.method not in ("utrc", "pumer", "ltmp"):
        return scoring
    normalising = 3 * tokens * shape.compared
    return scoring + normalising + 2 * shape.compared * (taking_part // 2) * (taking_part - taking_part // 2)


def _pairs(tokens: int, window: int | None) -> int:
    """Return how many pairs of a query and a key it sees there are."""
    seen = min(tokens, window or tokens)
    return seen * (seen + 1) // 2 + (tokens - seen) * seen


def _window(shape: ModelShape, layer: int) -> int | None:
    return shape.windows[layer] if shape.windows else None


def _mamba(config: Mapping[str, Any]) -> ModelShape:
    hidden, state, kernel = config["hidden_size"], config["state_size"], config["conv_kernel"]
    inner = config.get("intermediate_size") or int(config["expand"] * hidden)
    rank = config.get("time_step_rank", "auto")
    rank = -(-hidden // 16) if rank == "auto" else rank
    mixer = 2 * hidden * 2 * inner + 2 * kernel * inner + 2 * inner * (rank + 2 * state) + 2 * rank * inner
    mixer += _scan(inner, state) + 2 * inner * hidden
    return _scan_shape("mamba", config, mixer, inner)


def _mamba2(config: Mapping[str, Any]) -> ModelShape:
    hidden, state, kernel = config["hidden_size"], config["state_size"], config["conv_kernel"]
    inner = int(config["expand"] * hidden)
    convolved = inner + 2 * config["n_groups"] * state
    mixer = 2 * hidden * (inner + convolved + config["num_heads"]) + 2 * kernel * convolved
    mixer += _scan(inner, state) + 2 * inner * hidden
    return _scan_shape("mamba2", config, mixer, inner)


def _scan(inner: int, state: int) -> int:
    """Return the FLOPs a token of the scan: 3 a state for ``h = a h + (dt x) B``, 2 for ``y = C h``, and ``D x``."""
    return 5 * inner * state + 2 * inner


def _scan_shape(family: str, config: Mapping[str, Any], mixer: int, inner: int) -> ModelShape:
    head = 2 * config["hidden_size"] * config["vocab_size"]
    depth = config["num_hidden_layers"]
    return ModelShape(family=family, depth=depth, mixer=mixer, after=0, head=head, compared=inner, scored=2 * inner)


def _attention(config: Mapping[str, Any]) -> ModelShape:
    hidden, heads, depth = config["hidden_size"], config["num_attention_heads"], config["num_hidden_layers"]
    key_heads = config.get("num_key_value_heads") or heads
    width = config.get("head_dim") or hidden // heads
    return ModelShape(
        family=config["model_type"],
        depth=depth,
        mixer=2 * hidden * width * (2 * heads + 2 * key_heads),
        after=2 * hidden * 3 * config["intermediate_size"],
        head=2 * hidden * config["vocab_size"],
        attended=4 * heads * width,
        windows=tuple(layer_window(config, layer) for layer in range(depth)),
        compared=key_heads * width,
        scored=2 * LOOKING_BACK * heads * width,
    )


def layer_window(config: Mapping[str, Any], layer: int) -> int | None:
    """Return how many tokens back, itself included, a query of `layer` sees; None: all."""
    window = config.get("sliding_window")
    kinds = config.get("layer_types")
    if window is None or (kinds and kinds[layer] != "sliding_attention"):
        return None
    if not kinds and config.get("model_type") != "mistral" and not config.get("use_sliding_window"):
        return None
    return int(window)
