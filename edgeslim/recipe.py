"""Recipes: what to do to a model, as frozen dataclasses and as TOML with the same keys.

model = "examples/models/tiny-llama"

[prune]
method = "mrp"
sparsity = 0.5

[export]
weights = "int8"
"""

import tomllib
import types
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from edgeslim.errors import RecipeError, did_you_mean

SHED_METHODS = ("measured", "random", "last", "magnitude")
METHODS = ("magnitude", "wanda", "sparsegpt", "mrp")
EFFORTS = ("fast", "best")
MASK_RULES = ("s", "m", "progressive", "admm")
SOLVERS = ("cholesky", "cg")
TARGETS = ("pruned", "dense")
SCOPES = ("row", "layer")
WEIGHTS = ("auto", "fp32", "fp16", "int8", "int4", "int3")
LOWERINGS = ("auto", "kernel", "gather", "dense", "tensorrt")
ENGINES = ("auto", "genai", "ort", "native")
RULES = ("edgeslim", "reference")
SUITES = ("perplexity", "reduction")

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class LayerRecipe:
    """Settings of the linears whose names `match` (as "*.down_proj"), in place of the recipe's own.

    Of `sparsity` and `pattern` at most one; neither means the recipe's, as `quantize` None does ("none": no grid).
    """

    match: str
    sparsity: float | None = None
    pattern: str | None = None
    quantize: str | None = None

    def __post_init__(self) -> None:
        _check_sparsity(self.sparsity, self.pattern)


@dataclass(frozen=True, kw_only=True)
class PruneRecipe:
    """How to prune a checkpoint.

    One of `sparsity` (share of each linear's weights) and `pattern` ("2:4": 2 kept of every 4 inputs), or both with a
    pattern "block:64" (every 64 outputs share their inputs, of which `sparsity` is pruned); neither means 50 %. `calib`
    None is the bundled text; `seqlen` None the model's context, at most 2048. `effort` picks measured combinations of
    `mask_rule`, `solver`, `target` and `sequential`; each of these, where given, overrides it.
    `quantize` ("int3:64": 3 bits, 64 inputs a scale) puts the kept weights on a grid of integers; with sparsity 0 that
    is GPTQ. `layers` are other settings for some linears; the first whose `match` fits a linear's name holds.
    """

    method: str = "mrp"
    sparsity: float | None = None
    pattern: str | None = None
    quantize: str | None = None
    scope: str = "row"
    calib: str | None = None
    samples: int = 128
    seqlen: int | None = None
    seed: int = 0
    device: str = "auto"
    effort: str = "best"
    mask_rule: str | None = None
    solver: str | None = None
    target: str | None = None
    sequential: bool | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    layers: tuple[LayerRecipe, ...] = ()

    def __post_init__(self) -> None:
        _check_sparsity(self.sparsity, self.pattern)
        for name, choices in _PRUNE_CHOICES.items():
            _check_choice(name, getattr(self, name), choices)
        _check_least("samples", self.samples, 1)
        _check_least("seqlen", self.seqlen, 2)


_PRUNE_CHOICES = {
    "method": METHODS,
    "scope": SCOPES,
    "effort": EFFORTS,
    "mask_rule": MASK_RULES,
    "solver": SOLVERS,
    "target": TARGETS,
}


@dataclass(frozen=True, kw_only=True)
class ShedRecipe:
    """What to take out of a checkpoint for good.

    `blocks` whole decoder blocks, and `heads` of every Mamba-2 mixer; or as many blocks, then heads, as fit the share
    `parameters` of all parameters. `method` measured takes, one by one, what the loss on the calibration windows misses
    least; random, last and magnitude are what it is compared with. `refit` solves the output projections of mixers
    with fewer heads for their former outputs. `calib` None is the bundled text.
    """

    blocks: int | None = None
    heads: int | None = None
    parameters: float | None = None
    method: str = "measured"
    refit: bool = True
    calib: str | None = None
    samples: int = 32
    seqlen: int = 256
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        counts = [count for count in (self.blocks, self.heads) if count is not None]
        if bool(counts) == (self.parameters is not None):
            raise RecipeError("say how much to take out: blocks and heads, or parameters")
        if self.parameters is not None and not 0 < self.parameters < 1:
            raise RecipeError(f"parameters must be in (0, 1), got {self.parameters:g}")
        if counts and not sum(counts):
            raise RecipeError("say how much to take out: blocks and heads are 0")
        for name, least in (("blocks", 0), ("heads", 0), ("samples", 1), ("seqlen", 2)):
            _check_least(name, getattr(self, name), least)
        _check_choice("method", self.method, SHED_METHODS)


@dataclass(frozen=True, kw_only=True)
class ReduceRecipe:
    """How to reduce the tokens of prompts; see `edgeslim.tokens.plan.ReductionPlan` for the rules.

    `flops` is the share of a prefill's FLOPs to save at prompts of `prompt_tokens`, and gives the ratio; or `ratio` is
    the share of tokens kept at each layer. Neither means flops 0.2. `layers` () are chosen by the model's depth: as
    late as keeps enough tokens, or with `measure` those of the late schedules that cost least on `samples` windows of
    `calib` (None: the bundled text). `metric` None is clip in state-space models, attention in transformers.
    """

    method: str = "utrc"
    flops: float | None = None
    layers: tuple[int, ...] = ()
    ratio: float | None = None
    metric: str | None = None
    q: float = 0.5
    hidden: str = "hybrid"
    residual: str = "merge"
    merge: str = "pairwise"
    protect_last: int = 4
    protect_first: bool = False
    min_tokens: int = 128
    prompt_tokens: int = 1024
    measure: bool = False
    calib: str | None = None
    samples: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if self.flops is not None and self.ratio is not None:
            raise RecipeError(f"flops and ratio exclude each other, got {self.flops} and {self.ratio}")
        if self.measure and (self.layers or self.ratio is not None or self.method == "truncate"):
            raise RecipeError("measure chooses layers; it goes with flops alone, not with layers, ratio or truncate")
        _check_least("samples", self.samples, 1)
        _check_least("prompt_tokens", self.prompt_tokens, 1)


@dataclass(frozen=True, kw_only=True)
class ExportRecipe:
    """How to turn a checkpoint, or an ONNX model, into a bundle.

    `weights` auto means the checkpoint's grid of integers where it has one, else int8 (gather: fp32, tensorrt: fp16).
    `lowering` "kernel" packs matrices for the operators of ours, "dense" uses stock ones alone, "auto" is kernel where
    a kernel library is at hand; "gather" skips what blocks of a pattern block:ROWS do not read, "tensorrt" is for
    NVIDIA devices and pattern 2:4. `embedding` is the form of the token embedding and of a head tied to it; auto is
    int8 where weights are narrower. `arch` names the architectures whose kernel library goes into the bundle (none:
    this machine's); `library` false leaves it out.
    """

    weights: str = "auto"
    lowering: str = "auto"
    embedding: str = "auto"
    arch: tuple[str, ...] = ()
    library: bool = True

    def __post_init__(self) -> None:
        _check_choice("weights", self.weights, WEIGHTS)
        _check_choice("embedding", self.embedding, WEIGHTS)
        _check_choice("lowering", self.lowering, LOWERINGS)
        if self.arch and not self.library:
            raise RecipeError(f"arch names libraries to take along and library is false, got {', '.join(self.arch)}")


@dataclass(frozen=True, kw_only=True)
class RunRecipe:
    """What to generate. Temperature 0 is greedy; `raw` leaves a chat template aside; 0 tokens: the prompt is read."""

    prompt: str = "Once upon a time"
    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    raw: bool = False
    engine: str = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        _check_choice("engine", self.engine, ENGINES)
        _check_least("max_new_tokens", self.max_new_tokens, 0)
        _check_least("threads", self.threads, 1)


@dataclass(frozen=True, kw_only=True)
class ProfileRecipe:
    """What to measure. `threads` None leaves the number to the engine.

    `device` is local, ssh://[user@]host[:port] or adb[:SERIAL]; `bench_dir` a folder with edgeslim-bench and ONNX
    Runtime's library for it, None takes what is at hand.
    """

    device: str = "local"
    bench_dir: str | None = None
    prompt_tokens: int = 128
    new_tokens: int = 64
    threads: int | None = None
    engine: str = "auto"
    repeats: int = 5
    warmup: int = 1

    def __post_init__(self) -> None:
        _check_choice("engine", self.engine, ENGINES)
        for name, least in (("prompt_tokens", 1), ("new_tokens", 2), ("threads", 1), ("repeats", 1), ("warmup", 0)):
            _check_least(name, getattr(self, name), least)


@dataclass(frozen=True, kw_only=True)
class EvalRecipe:
    """What to score. `text` None is the bundled held-out text; `rule` "reference" is the scripts' of the papers.

    `suite` "reduction" compares a model whose tokens are reduced with itself unreduced, over `seeds` seeds, with
    `windows` windows of text and `prompts` prompts of each recall task a seed.
    """

    text: str | None = None
    seqlen: int = 256
    rule: str = "edgeslim"
    suite: str = "perplexity"
    seeds: int = 3
    windows: int = 32
    prompts: int = 32
    device: str = "auto"

    def __post_init__(self) -> None:
        _check_choice("rule", self.rule, RULES)
        _check_choice("suite", self.suite, SUITES)
        for name in ("seeds", "windows", "prompts"):
            _check_least(name, getattr(self, name), 1)
        _check_least("seqlen", self.seqlen, 2)


@dataclass(frozen=True, kw_only=True)
class FrontierRecipe:
    """Which forms to try, and how.

    `bits` is the range of bits a weight (values, mask and scales of the linears). `samples`, `seqlen`, `calib`, `seed`,
    `device` and `effort` are those of each prune, `text` and `eval_seqlen` of each perplexity, `lowering` of each
    export. `max_bytes` (of all packed weights) and `min_tok_s` (decoding) are budgets to name the best form for.
    `samples` and `seqlen` are small because some twenty prunes follow one another; what is chosen can be pruned again
    with more.
    """

    bits: str = "2.2-4.5"
    calib: str | None = None
    samples: int = 64
    seqlen: int = 256
    seed: int = 0
    device: str = "auto"
    effort: str = "best"
    text: str | None = None
    eval_seqlen: int = 256
    lowering: str = "auto"
    profile: bool = True
    plot: bool = True
    max_bytes: int | None = None
    min_tok_s: float | None = None

    def __post_init__(self) -> None:
        _check_choice("effort", self.effort, EFFORTS)
        _check_choice("lowering", self.lowering, LOWERINGS)
        _check_least("samples", self.samples, 1)
        _check_least("seqlen", self.seqlen, 2)
        _check_least("eval_seqlen", self.eval_seqlen, 2)
        _check_least("max_bytes", self.max_bytes, 1)
        if self.min_tok_s is not None and not self.profile:
            raise RecipeError(f"min_tok_s needs profile = true, got min_tok_s {self.min_tok_s:g} without it")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The whole way of a model. A step that is absent is left out; `baseline` also measures the model as it was.

    `eval` with suite "reduction" is for the reduced bundle alone, which it compares with itself unreduced.
    """

    model: str
    prune: PruneRecipe | None = None
    reduce: ReduceRecipe | None = None
    export: ExportRecipe = field(default_factory=lambda: ExportRecipe())
    run: RunRecipe | None = None
    profile: ProfileRecipe | None = None
    eval: EvalRecipe | None = None
    baseline: bool = True


_REQUIRED: dict[Any, dict[str, str]] = {
    Recipe: {"model": "a checkpoint folder or hub id"},
    LayerRecipe: {"match": 'a pattern of linears\' names, such as "*.down_proj"'},
}


def read_recipe(file: Path) -> Recipe:
    """Return the recipe in the TOML `file`.

    Raises: RecipeError naming file, step, key and the nearest valid one.
    """
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{file}: no such recipe") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as fault:
        raise RecipeError(f"{file}: not TOML: {fault}") from None
    return from_table(Recipe, table, str(file))


def from_table(cls: type[T], table: dict[str, Any], where: str) -> T:
    """Return `table` as the recipe dataclass `cls`; `where` names its place in messages.

    Raises: RecipeError for an unknown key, a wrong type or a value that cannot be meant.
    """
    names = [entry.name for entry in fields(cls)]  # type: ignore[arg-type]
    for key in table:
        if key not in names:
            raise RecipeError(f"{where}: unknown key {key!r}{did_you_mean(key, names)}")
    hints = get_type_hints(cls)
    values = {key: _value(hints[key], value, f"{where}: {key}") for key, value in table.items()}
    for key, expected in _REQUIRED.get(cls, {}).items():
        if key not in values:
            raise RecipeError(f"{where}: key {key!r} is missing; expected {expected}")
    try:
        return cls(**values)
    except RecipeError as fault:
        raise RecipeError(f"{where}: {fault}") from None


def from_options(cls: type[T], options: dict[str, Any]) -> T:
    """Return the recipe dataclass `cls` from keyword options; sequences become tuples.

    Raises: RecipeError as `from_table`.
    """
    name = cls.__name__.removesuffix("Recipe").lower()
    return from_table(cls, {key: value for key, value in options.items() if value is not None}, name)


def _value(hint: Any, value: Any, where: str) -> Any:
    """Check `value` against a field's type `hint` and return it as that type."""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for option in options:
        if option is type(None) and value is None:
            return None
        if is_dataclass(option) and isinstance(value, dict):
            return from_table(option, value, where.replace(": ", ": [", 1) + "]")  # type: ignore[arg-type]
        if get_origin(option) is tuple and isinstance(value, list | tuple):
            item = get_args(option)[0]
            if is_dataclass(item) and all(isinstance(v, dict | item) for v in value):
                return tuple(_item(item, v, f"{where}[{number}]") for number, v in enumerate(value))
            if item in (str, int) and all(isinstance(v, item) and not isinstance(v, bool) for v in value):
                return tuple(value)
        if option is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if isinstance(option, type) and isinstance(value, option) and (option is bool) == isinstance(value, bool):
            return value
    expected = " or ".join(_type_name(option) for option in options if option is not type(None))
    raise RecipeError(f"{where}: expected {expected}, got {value!r}")


def _item(cls: Any, value: Any, where: str) -> Any:
    return from_table(cls, value, where) if isinstance(value, dict) else value


def _type_name(option: Any) -> str:
    if is_dataclass(option):
        return "a table"
    if get_origin(option) is tuple:
        return {str: "a list of strings", int: "a list of integers"}.get(get_args(option)[0], "a list of tables")
    return str(option.__name__)


def _check_choice(name: str, value: str | None, choices: tuple[str, ...]) -> None:
    if value is not None and value not in choices:
        raise RecipeError(f"{name} must be one of {', '.join(choices)}, got {value!r}{did_you_mean(value, choices)}")


def _check_sparsity(sparsity: float | None, pattern: str | None) -> None:
    if sparsity is not None and pattern is not None and not pattern.lstrip().startswith("block:"):
        raise RecipeError(f"sparsity and pattern exclude each other, got {sparsity} and {pattern!r}")
    if sparsity is not None and not 0 <= sparsity < 1:
        hint = f"; {sparsity:g} % is {sparsity / 100:g}" if 1 < sparsity < 100 else ""
        raise RecipeError(f"sparsity must be in [0, 1), got {sparsity:g}{hint}")


def _check_least(name: str, value: int | None, least: int) -> None:
    if value is not None and value < least:
        raise RecipeError(f"{name} must be at least {least}, got {value}")
