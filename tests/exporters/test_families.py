"""Every supported family computes what transformers computes, through each engine."""

from collections.abc import Callable
from pathlib import Path

import families
import numpy as np
import pytest
import torch
from families import VOCAB, save_tiny, tiny_model

from edgeslim.errors import BundleError, ExportError
from edgeslim.exporters import FAMILIES
from edgeslim.exporters.parity import sample_tokens
from edgeslim.runtime.generate import generate
from edgeslim.runtime.manifest import Manifest
from edgeslim.runtime.native_library import is_available
from edgeslim.runtime.native_session import NativeSession
from edgeslim.runtime.session import GenaiSession, OrtSession

TOLERANCE = 1e-5  # float32 sums in another order; logits are between 1 and 5
Bundle = Callable[..., Path]


def test_the_test_families_are_those_supported() -> None:
    assert set(families.FAMILIES) == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_agree_whole_split_and_stepwise(bundle: Bundle, family: str) -> None:
    errors = Manifest.read(bundle(family)).parity["max_abs_error"]

    assert set(errors) == {"whole", "split", "step", "all_positions"}
    assert max(errors.values()) <= TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_equal_transformers_generate(bundle: Bundle, family: str) -> None:
    prompt = np.random.default_rng(1).integers(3, VOCAB, 17).tolist()
    model = tiny_model(family)
    with torch.inference_mode():
        expected = model.generate(  # type: ignore[operator]
            torch.tensor([prompt]), max_new_tokens=32, do_sample=False, eos_token_id=None, pad_token_id=0
        )[0, len(prompt) :].tolist()

    assert list(generate(GenaiSession(bundle(family), threads=1), prompt, 32)) == expected
    assert list(generate(OrtSession(bundle(family), threads=1), prompt, 32)) == expected


NEED_ONNXRUNTIME = {"jamba": "Einsum"}
"""Families whose packed graphs keep an operator that the native runtime lacks: a router's."""


@pytest.mark.skipif(not is_available(), reason="no kernel library: installed without a compiler")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_bundle_runs_without_onnxruntime_unless_it_says_why_not(bundle: Bundle, family: str) -> None:
    folder = bundle(family, "fp16", "kernel")  # float activations: no entry that lies between two codes
    if missing := NEED_ONNXRUNTIME.get(family):
        with pytest.raises(BundleError, match=rf"\({missing}\): only ONNX Runtime has this operator"):
            NativeSession(folder, threads=1, onnxruntime=False)
        return
    alone, stock = NativeSession(folder, threads=2, onnxruntime=False), OrtSession(folder, threads=1)
    tokens = np.random.default_rng(2).integers(3, VOCAB, (1, 19))
    for piece in (tokens[:, :13], tokens[:, 13:18], tokens[:, 18:]):
        np.testing.assert_allclose(alone.feed(piece), stock.feed(piece), atol=TOLERANCE)


@pytest.mark.parametrize("family", ["llama", "mamba2"])
def test_the_scoring_graph_gives_all_positions_in_any_pieces(bundle: Bundle, family: str) -> None:
    folder = bundle(family)
    tokens = sample_tokens(folder)
    scoring = OrtSession(folder, graph="scoring.onnx", threads=1)
    whole = scoring.feed_all(tokens)
    scoring.reset()
    pieces = [scoring.feed_all(tokens[:, :9]), scoring.feed_all(tokens[:, 9:])]

    assert whole.shape == (1, tokens.shape[1], VOCAB)
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, atol=TOLERANCE)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mamba2", "mamba"])
def test_a_batch_gives_each_row_its_own_logits(bundle: Bundle, family: str) -> None:
    folder = bundle(family)
    tokens = np.concatenate([sample_tokens(folder, seed=seed) for seed in (0, 1)])
    session = OrtSession(folder, threads=1)
    alone = []
    for row in tokens:
        session.reset()
        alone.append(session.feed(row[None])[0])
    session.reset(batch=2)

    np.testing.assert_allclose(session.feed(tokens), np.stack(alone), atol=TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_checkpoints_are_exported_in_full_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    from edgeslim.exporters import export_checkpoint

    checkpoint = save_tiny(tmp_path / "checkpoint", "llama", dtype=dtype, shard_size="100KB")
    assert len(list(checkpoint.glob("*.safetensors"))) > 1  # sharded too
    (tmp_path / "bundle").mkdir()
    manifest = export_checkpoint(checkpoint, tmp_path / "bundle")

    assert max(manifest.parity["max_abs_error"].values()) <= TOLERANCE


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"tie_word_embeddings": False, "attention_bias": True}),
        (
            "llama",
            {
                "rope_parameters": {
                    "rope_type": "llama3",
                    "rope_theta": 5e5,
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 64,
                }
            },
        ),
        ("mistral", {"sliding_window": None}),
        ("qwen2", {"use_sliding_window": False}),
        ("gpt2", {"tie_word_embeddings": False}),
        ("mamba2", {"n_groups": 1, "tie_word_embeddings": True}),
        ("mamba2", {"time_step_limit": (0.02, 0.3), "use_bias": True, "use_conv_bias": False}),
        ("mamba", {"use_bias": True, "use_conv_bias": False, "tie_word_embeddings": False}),
        ("granitemoehybrid", {"position_embedding_type": "rope"}),
        ("falcon_h1", {"mamba_rms_norm": False}),
        ("falcon_h1", {"mamba_norm_before_gate": True, "projectors_bias": True}),
        ("zamba2", {"use_shared_attention_adapter": False, "use_mem_rope": False, "time_step_min": 0.6}),
        ("nemotron_h", {"time_step_min": 0.6, "mlp_bias": True}),
        ("bamba", {"time_step_limit": [0.5, 0.9], "head_dim": 40}),
        ("jamba", {"num_experts": 1}),
        ("lfm2", {"block_auto_adjust_ff_dim": False, "conv_bias": True}),
        ("gpt_neox", {"use_parallel_residual": False, "rotary_pct": 1.0}),
        ("stablelm", {"use_parallel_residual": True, "use_qkv_bias": True}),
        ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 32}),
        ("gemma3_text", {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0}}}),
    ],
    ids=lambda value: value if isinstance(value, str) else "+".join(value),
)
def test_variants_within_a_family_agree(tmp_path: Path, family: str, changes: dict[str, object]) -> None:
    from edgeslim.exporters import export_checkpoint

    (tmp_path / "bundle").mkdir()
    checkpoint = save_tiny(tmp_path / "checkpoint", family, tokenizer=False, **changes)
    manifest = export_checkpoint(checkpoint, tmp_path / "bundle")  # int8, by operators of ours

    assert max(manifest.parity["max_abs_error"].values()) <= TOLERANCE


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("granitemoehybrid", {"num_local_experts": 4}, "with 4 experts cannot be exported; expected 0"),
        ("nemotron_h", {"layers_block_type": ["linear_attention", "moe"]}, "kind 'moe' cannot be exported"),
        ("stablelm", {"qk_layernorm": True}, "qk_layernorm cannot be exported"),
        ("gemma3_text", {"final_logit_softcapping": 30.0}, "final_logit_softcapping 30.0 cannot be exported"),
        ("opt", {"layer_norm_elementwise_affine": False}, "expected norms with weights"),
        ("bamba", {"head_dim": 8}, "2 rotated pairs of columns in heads of 8 do not fit"),
    ],
)
def test_what_a_family_has_beyond_its_graph_is_refused(
    tmp_path: Path, family: str, changes: dict[str, object], message: str
) -> None:
    from edgeslim.exporters import build_graph

    checkpoint = save_tiny(tmp_path, family, tokenizer=False, **changes)
    with pytest.raises(ExportError, match=message):
        build_graph(checkpoint)
