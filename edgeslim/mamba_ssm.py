"""Checkpoints of the mamba_ssm package, such as state-spaces/mamba-130m, in the words of transformers.

The two forms hold the same tensors; they differ in the configuration's keys, in the name of the embedding, and in that
mamba_ssm keeps a tied head twice.
"""

from collections.abc import Mapping
from typing import Any

from edgeslim.errors import CheckpointError, did_you_mean

_SHARED = {"d_state": "state_size", "d_conv": "conv_kernel", "expand": "expand"}
_SWITCHES = {"bias": "use_bias", "conv_bias": "use_conv_bias"}
_MAMBA1 = {**_SHARED, **_SWITCHES, "dt_rank": "time_step_rank"}
_MAMBA2 = {**_SHARED, **_SWITCHES, "headdim": "head_dim", "ngroups": "n_groups", "chunk_size": "chunk_size"}
_MAMBA1_DEFAULTS = {"d_state": 16, "d_conv": 4, "expand": 2, "dt_rank": "auto", "bias": False, "conv_bias": True}
_MAMBA2_DEFAULTS = {
    "d_state": 128,
    "d_conv": 4,
    "expand": 2,
    "headdim": 64,
    "ngroups": 1,
    "chunk_size": 256,
    "bias": False,
    "conv_bias": True,
}
_ONLY = {"D_has_hdim": False, "rmsnorm": True, "norm_before_gate": False, "d_ssm": None}
"""Options of Mamba-2 that transformers has no choice in, and what it does."""
_OF_TRAINING = {
    "layer",
    "dt_min",
    "dt_max",
    "dt_init",
    "dt_scale",
    "dt_init_floor",
    "A_init_range",
    "conv_init",
    "use_fast_path",
    "use_mem_eff_path",
    "dt_limit",
}
"""Options that say how weights begin or which kernels run, and those read elsewhere."""
_NORM_EPS = 1e-5
_END_OF_TEXT = 0  # of the GPT-NeoX tokenizer, which all of them use


def is_mamba_ssm(config: Mapping[str, Any]) -> bool:
    """Return whether `config` (config.json) is one of mamba_ssm's."""
    return "model_type" not in config and "d_model" in config and "n_layer" in config


def transformers_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the transformers configuration that means the same as mamba_ssm's `config`; `where` begins messages.

    Raises: CheckpointError for what transformers' Mamba and Mamba-2 do not have.
    """
    options = dict(config.get("ssm_cfg") or {})
    kind = options.get("layer", "Mamba1")
    if kind not in ("Mamba1", "Mamba2"):
        raise CheckpointError(f"{where}: ssm_cfg.layer {kind!r} is not known; expected Mamba1 or Mamba2")
    _refuse_other_parts(config, where)
    names, defaults = (_MAMBA1, _MAMBA1_DEFAULTS) if kind == "Mamba1" else (_MAMBA2, _MAMBA2_DEFAULTS)
    _refuse_other_options(options, {*names, *(_ONLY if kind == "Mamba2" else ())}, where)
    sizes = {ours: options.get(theirs, defaults[theirs]) for theirs, ours in names.items()}
    hidden = int(config["d_model"])
    result = {
        "model_type": kind.lower().removesuffix("1"),
        "architectures": [f"{kind.removesuffix('1')}ForCausalLM"],
        "hidden_size": hidden,
        "num_hidden_layers": int(config["n_layer"]),
        "vocab_size": padded_vocabulary(config),
        "layer_norm_epsilon": _NORM_EPS,
        "residual_in_fp32": bool(config.get("residual_in_fp32", True)),
        "tie_word_embeddings": bool(config.get("tie_embeddings", True)),
        "bos_token_id": _END_OF_TEXT,
        "eos_token_id": _END_OF_TEXT,
        "pad_token_id": _END_OF_TEXT,
        **sizes,
    }
    if kind == "Mamba2":
        result["num_heads"] = sizes["expand"] * hidden // sizes["head_dim"]
        if "dt_limit" in options:
            result["time_step_limit"] = [float(limit) for limit in options["dt_limit"]]
    return result


def padded_vocabulary(config: Mapping[str, Any]) -> int:
    """Return the rows of the embedding: the vocabulary, rounded up to the multiple that the configuration names."""
    multiple = int(config.get("pad_vocab_size_multiple", 8))
    return multiple * -(-int(config["vocab_size"]) // multiple)


def transformers_name(name: str) -> str:
    """Return what transformers calls the parameter that mamba_ssm calls `name`."""
    return "backbone.embeddings.weight" if name == "backbone.embedding.weight" else name


def _refuse_other_parts(config: Mapping[str, Any], where: str) -> None:
    if config.get("attn_layer_idx"):
        raise CheckpointError(f"{where}: attention in layers {config['attn_layer_idx']}; transformers' Mamba has none")
    if config.get("d_intermediate"):
        raise CheckpointError(f"{where}: d_intermediate {config['d_intermediate']}: transformers' Mamba has no MLPs")
    if not config.get("rms_norm", True):
        raise CheckpointError(f"{where}: rms_norm false: transformers' Mamba has no LayerNorm")


def _refuse_other_options(options: Mapping[str, Any], known: set[str], where: str) -> None:
    for key, value in options.items():
        if key in _ONLY and key in known:
            if value != _ONLY[key]:
                raise CheckpointError(
                    f"{where}: ssm_cfg.{key} {value!r}; transformers' Mamba-2 has {_ONLY[key]!r} only"
                )
        elif key not in known | _OF_TRAINING:
            raise CheckpointError(f"{where}: unknown option ssm_cfg.{key}{did_you_mean(key, known)}")
