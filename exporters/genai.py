"""genai_config.json: what onnxruntime-genai must know of a graph to run it.

Model type ``decoder`` is the engine's generic one: it needs names of inputs and outputs and asks nothing of the
architecture, and it also takes models with recurrent states and no key-value cache.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from edgeslim.runtime.manifest import GRAPH

_STATES = {
    "key": "key_names",
    "value": "value_names",
    "conv_state": "conv_names",
    "recurrent_state": "recurrent_names",
}
MAX_LENGTH = 4096
"""Tokens that generation makes room for unless told otherwise: the engine allocates the whole cache beforehand."""

UNBOUNDED = 1 << 18
"""Context length written for models whose state does not grow; the engine wants a number."""


def genai_config(
    graph: ir.Graph,
    config: Mapping[str, Any],
    generation: Mapping[str, Any],
    *,
    prepack: bool,
    library: str | None = None,
) -> dict[str, Any]:
    """Return the contents of genai_config.json for `graph` of the model that `config` (config.json) describes.

    `generation` is generation_config.json, whose special tokens come first. `prepack` False keeps onnxruntime from
    copying weights into layouts of its own, for fp32: they stay in the mapped file, where one token's products run as
    fast and a prompt's 1.1 times (512 tokens) to 2 times (32 tokens) as long; copied, the whole model is in memory
    twice. Packed integers need the copy. `library` is the kernel library for the bundle's own architecture.
    """
    length = context_length(config)
    states = _states(graph)
    search: dict[str, Any] = {"do_sample": False, "max_length": min(length, MAX_LENGTH), "num_beams": 1}
    search["past_present_share_buffer"] = any(node.op_type == "GroupQueryAttention" for node in graph)
    model: dict[str, Any] = {
        "type": "decoder",
        "vocab_size": config["vocab_size"],
        "context_length": length,
        "eos_token_id": eos_ids(config, generation),
        **_single_tokens(config, generation),
        "decoder": _decoder(graph, config, states, prepack=prepack, library=library),
    }
    return {"model": model, "search": search}


def context_length(config: Mapping[str, Any]) -> int:
    """Return how many tokens the model's state can hold."""
    for key in ("max_position_embeddings", "n_positions"):
        if config.get(key):
            return int(config[key])
    return UNBOUNDED


def eos_ids(config: Mapping[str, Any], generation: Mapping[str, Any]) -> list[int]:
    """Return every token id that ends a text: generation_config.json's, else config.json's."""
    found = generation.get("eos_token_id", config.get("eos_token_id"))
    if found is None:
        return []
    return [int(i) for i in found] if isinstance(found, Sequence) else [int(found)]


def _single_tokens(config: Mapping[str, Any], generation: Mapping[str, Any]) -> dict[str, int]:
    found = {key: generation.get(key, config.get(key)) for key in ("bos_token_id", "pad_token_id")}
    tokens = {key: int(value) for key, value in found.items() if isinstance(value, int)}
    eos = eos_ids(config, generation)
    return {"pad_token_id": eos[0], **tokens} if eos else tokens


def _decoder(
    graph: ir.Graph, config: Mapping[str, Any], states: set[str], *, prepack: bool, library: str | None
) -> dict[str, Any]:
    names = [value.name for value in graph.inputs]
    plain = [name for name in ("input_ids", "attention_mask", "position_ids") if name in names]
    options: dict[str, Any] = {"log_id": "edgeslim", "provider_options": []}
    options |= session_options(prepack=prepack, library=library)
    return {
        "session_options": options,
        "filename": GRAPH,
        **_sizes(graph, config),
        "inputs": {
            **{name: name for name in plain},
            **{f"past_{_STATES[kind]}": f"past_key_values.%d.{kind}" for kind in _STATES if kind in states},
        },
        "outputs": {
            "logits": "logits",
            **{f"present_{_STATES[kind]}": f"present.%d.{kind}" for kind in _STATES if kind in states},
        },
    }


def session_options(*, prepack: bool, library: str | None) -> dict[str, str | bool]:
    """Return what onnxruntime is told, see `genai_config`."""
    options: dict[str, str | bool] = {} if prepack else {"session.disable_prepacking": "1"}
    if library is not None:
        options["custom_ops_library"] = library
        options["enable_mem_pattern"] = False  # an arena grows by less than a pattern of a whole prompt takes
    return options


def _sizes(graph: ir.Graph, config: Mapping[str, Any]) -> dict[str, int]:
    layers = {match.group(1) for value in graph.inputs if (match := re.search(r"\.(\d+)\.", value.name or ""))}
    key = next((v for v in graph.inputs if (v.name or "").endswith((".key", ".recurrent_state"))), None)
    shape = (
        [d if isinstance(d, int) else 1 for d in key.shape] if key is not None and key.shape is not None else [1] * 4
    )
    return {
        "hidden_size": int(config.get("hidden_size") or config["n_embd"]),
        "num_hidden_layers": len(layers),
        "num_attention_heads": int(config.get("num_attention_heads") or config.get("n_head") or shape[1]),
        "num_key_value_heads": shape[1],
        "head_size": shape[-1],
    }


def _states(graph: ir.Graph) -> set[str]:
    """Return which kinds of state the graph carries: key, value, conv_state, recurrent_state."""
    return {kind for value in graph.inputs for kind in _STATES if (value.name or "").endswith(f".{kind}")}
