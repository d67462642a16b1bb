"""What config.json says of a model with fewer blocks or fewer heads.

transformers' Mamba2Config holds `expand`, an integer, and wants hidden_size · expand = num_heads · head_dim: it can
only say head counts that fill whole multiples of the hidden size. Nemotron-H is made of the same mixer and names the
number of heads itself; a Mamba-2 of any other head count is written as a Nemotron-H of state-space layers alone.
"""

from collections.abc import Collection, Mapping
from typing import Any

from edgeslim.errors import RecipeError

Config = dict[str, Any]

PER_BLOCK = ("layer_types", "layers_block_type", "no_rope_layers", "mlp_layer_types")
"""Keys of config.json that hold a value for each block."""
BLOCK_NUMBERS = ("attn_layer_indices", "full_attn_idxs", "hybrid_layer_ids")
"""Keys that hold numbers of blocks."""
LEAST_STEP = 1e-30
"""The time step that Nemotron-H is told as its least one: it takes the logarithm, so 0 is none."""


def without_blocks(config: Mapping[str, Any], gone: Collection[int], depth: int, depth_key: str) -> Config:
    """Return `config` of `depth` blocks without the blocks numbered `gone`."""
    kept = [index for index in range(depth) if index not in gone]
    new = dict(config)
    if depth_key in new:
        new[depth_key] = len(kept)
    for key in PER_BLOCK:
        if isinstance(new.get(key), list) and len(new[key]) == depth:
            new[key] = [new[key][index] for index in kept]
    for key in BLOCK_NUMBERS:
        if isinstance(new.get(key), list):
            new[key] = [kept.index(index) for index in new[key] if index in kept]
    return new


def with_heads(config: Mapping[str, Any], heads: int, whole: Mapping[str, Any]) -> Config:
    """Return `config`, of model type mamba2 or nemotron_h, with `heads` heads; `whole` is it with all defaults.

    Raises: RecipeError where no configuration of transformers says that.
    """
    if config["model_type"] == "nemotron_h":
        return {**config, "mamba_num_heads": heads}
    size, hidden, limits = whole["head_dim"], whole["hidden_size"], whole["time_step_limit"]
    expand, rest = divmod(heads * size, hidden)
    if not rest:
        return {**config, "num_heads": heads, "expand": expand}
    if limits[1] != float("inf"):
        raise RecipeError(
            f"{heads} heads of {size} are no multiple of the hidden size {hidden}, which Mamba2Config needs, and "
            f"Nemotron-H's knows no time_step_limit of {limits[1]:g}; take another number"
        )
    return _as_nemotron_h({**whole, **config}, heads, limits[0])


def _as_nemotron_h(config: Mapping[str, Any], heads: int, least: float) -> Config:
    same = ("vocab_size", "hidden_size", "n_groups", "conv_kernel", "use_conv_bias", "use_bias", "chunk_size", "dtype")
    also = ("layer_norm_epsilon", "residual_in_fp32", "initializer_range", "tie_word_embeddings", "use_cache")
    tokens = ("bos_token_id", "eos_token_id", "pad_token_id", "transformers_version", "edgeslim")
    return {
        "architectures": ["NemotronHForCausalLM"],
        "model_type": "nemotron_h",
        **{key: config[key] for key in (*same, *also, *tokens) if key in config},
        "layers_block_type": ["linear_attention"] * config["num_hidden_layers"],
        "mamba_num_heads": heads,
        "mamba_head_dim": config["head_dim"],
        "ssm_state_size": config["state_size"],
        "mamba_hidden_act": config.get("hidden_act", "silu"),
        "expand": config.get("expand", 2),
        "time_step_min": max(least, LEAST_STEP),
        "time_step_limit": [max(least, LEAST_STEP), {"__float__": "Infinity"}],
        "rescale_prenorm_residual": False,
        "max_position_embeddings": config.get("max_position_embeddings", 1 << 20),
    }
