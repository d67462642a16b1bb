"""A bundle with next to nothing in it: one layer of attention and logits of a given width.

What `edgeslim profile` measures of it is what an engine takes for itself: its loop, the hand-over of a token, the
logits read back. Every engine runs it; there are no operators of ours in it.
"""

import json
from pathlib import Path

import numpy as np

from edgeslim.devices.onnx_writer import GraphWriter
from edgeslim.runtime.config import HF_CONFIG
from edgeslim.runtime.manifest import GENAI_CONFIG

_SIZE, _CONTEXT, _ROWS = 64, 2048, 64
NODES = 14
"""Operators of its graph."""


def write_micro_bundle(folder: Path, vocab_size: int) -> None:
    """Write the bundle into the empty `folder`."""
    _graph(vocab_size).save(folder)
    (folder / GENAI_CONFIG).write_text(json.dumps(_genai_config(vocab_size)), encoding="utf-8")
    config = {"model_type": "llama", "vocab_size": vocab_size, "max_position_embeddings": _CONTEXT}
    (folder / HF_CONFIG).write_text(json.dumps(config), encoding="utf-8")


def count_tokens(g: GraphWriter) -> None:
    """Add the input attention_mask [B, S] and what attention reads of it: seqlens [B], S - 1, and total_length, S."""
    g.input("attention_mask", "int64", ["batch", "total"])
    one, axis = g.constant("one", np.array(1, np.int64)), g.constant("axis", np.array([1], np.int64))
    g.node("ReduceSum", ["attention_mask", axis], ["length"], attributes={"keepdims": 0})
    g.node("Sub", ["length", one], ["before"])
    g.node("Cast", ["before"], ["seqlens"], attributes={"to": 6})
    g.node("Shape", ["attention_mask"], ["sizes"])
    g.node("Gather", ["sizes", one], ["total_long"])
    g.node("Cast", ["total_long"], ["total_length"], attributes={"to": 6})


def _graph(vocab_size: int) -> GraphWriter:
    g, rng = GraphWriter(), np.random.default_rng(0)
    g.input("input_ids", "int64", ["batch", "sequence"])
    count_tokens(g)
    for kind in ("key", "value"):
        g.input(f"past_key_values.0.{kind}", "float32", ["batch", 1, "past", _SIZE])
    rows = g.constant("rows", np.array(_ROWS, np.int64))
    table = g.constant("table", rng.standard_normal((_ROWS, 3 * _SIZE), np.float32))
    last = g.constant("last", np.array([-1], np.int64))
    shape = g.constant("shape", np.array([1, 1, vocab_size], np.int64))
    g.node("Mod", ["input_ids", rows], ["row"])
    g.node("Gather", [table, "row"], ["qkv"])
    names = ["qkv", "", "", "past_key_values.0.key", "past_key_values.0.value", "seqlens", "total_length"]
    attributes = {"num_heads": 1, "kv_num_heads": 1, "scale": _SIZE**-0.5}
    outputs = ["attended", "present.0.key", "present.0.value"]
    g.node("GroupQueryAttention", names, outputs, domain="com.microsoft", attributes=attributes)
    g.node("Gather", ["attended", last], ["row_last"], attributes={"axis": 1})
    g.node("ReduceMean", ["row_last", g.constant("width", np.array([2], np.int64))], ["mean"])
    g.node("Expand", ["mean", shape], ["wide"])
    g.node("Add", ["wide", g.constant("zero", np.zeros(1, np.float32))], ["logits"])
    g.output("logits", "float32", ["batch", 1, vocab_size])
    for kind in ("key", "value"):
        g.output(f"present.0.{kind}", "float32", ["batch", 1, "total", _SIZE])
    return g


def _genai_config(vocab_size: int) -> dict[str, object]:
    decoder = {
        "session_options": {"log_id": "edgeslim", "provider_options": [], "enable_cpu_mem_arena": False},
        "filename": "model.onnx",
        "hidden_size": _SIZE,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_size": _SIZE,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }
    model = {"type": "decoder", "vocab_size": vocab_size, "context_length": _CONTEXT, "decoder": decoder}
    tokens = {"eos_token_id": [0], "pad_token_id": 0, "bos_token_id": 0}
    search = {"do_sample": False, "max_length": _CONTEXT, "num_beams": 1, "past_present_share_buffer": True}
    return {"model": {**model, **tokens}, "search": search}
