"""Families at the width of published models, with as many layers as show every kind of block: the same logits.

Sizes are those of the checkpoint named; depth and vocabulary are cut, and Jamba's 16 experts to four, of which a
token takes two. Weights are random.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from edgeslim.exporters import export_checkpoint

TOLERANCE = 1e-4
"""Of logits of about 1; of their largest where that is more."""

GRANITE: Mapping[str, Any] = {
    "hidden_size": 2048,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "embedding_multiplier": 12.0,
    "logits_scaling": 8.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.015625,
}
WIDTHS: Mapping[str, Mapping[str, Any]] = {
    "bamba-9b": {
        "model_type": "bamba",
        "num_hidden_layers": 2,
        "attn_layer_indices": [1],
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "mamba_n_heads": 128,
        "mamba_d_head": 64,
        "mamba_d_state": 256,
    },
    "falcon-h1-0.5b": {
        "model_type": "falcon_h1",
        "num_hidden_layers": 1,
        "hidden_size": 1024,
        "intermediate_size": 2048,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "mamba_d_ssm": 1536,
        "mamba_n_heads": 24,
        "mamba_d_head": 64,
        "mamba_d_state": 128,
        "mamba_rms_norm": False,
    },
    "falcon-mamba-7b": {
        "model_type": "falcon_mamba",
        "num_hidden_layers": 1,
        "hidden_size": 4096,
        "intermediate_size": 8192,
        "time_step_rank": 256,
    },
    "gemma-3-270m": {
        "model_type": "gemma3_text",
        "num_hidden_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"],
        "hidden_size": 640,
        "intermediate_size": 2048,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "sliding_window": 512,
    },
    "granite-3.1-2b": {"model_type": "granite", "num_hidden_layers": 1, "intermediate_size": 8192, **GRANITE},
    "granite-4.0-h-micro": {
        "model_type": "granitemoehybrid",
        "num_hidden_layers": 2,
        "layer_types": ["linear_attention", "full_attention"],
        "shared_intermediate_size": 8192,
        "num_local_experts": 0,
        "mamba_n_heads": 64,
        "mamba_d_head": 64,
        "mamba_d_state": 128,
        "position_embedding_type": "nope",
        **GRANITE,
    },
    "jamba-v0.1": {
        "model_type": "jamba",
        "num_hidden_layers": 2,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "num_experts": 4,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "mamba_dt_rank": 256,
    },
    "lfm2-350m": {
        "model_type": "lfm2",
        "layer_types": ["conv", "full_attention"],
        "num_hidden_layers": 2,
        "hidden_size": 1024,
        "intermediate_size": 6656,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
    },
    "mamba-130m": {"model_type": "mamba", "num_hidden_layers": 2, "hidden_size": 768, "time_step_rank": 48},
    "mamba2-130m": {
        "model_type": "mamba2",
        "num_hidden_layers": 2,
        "hidden_size": 768,
        "num_heads": 24,
        "head_dim": 64,
        "state_size": 128,
        "n_groups": 1,
    },
    "nemotron-h-4b": {
        "model_type": "nemotron_h",
        "layers_block_type": ["linear_attention", "mlp", "full_attention"],
        "hidden_size": 3072,
        "intermediate_size": 12288,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "mamba_num_heads": 112,
        "mamba_head_dim": 64,
        "ssm_state_size": 128,
        "n_groups": 8,
        "rescale_prenorm_residual": False,
    },
    "opt-125m": {"model_type": "opt", "num_hidden_layers": 2},
    "phi-1.5": {
        "model_type": "phi",
        "num_hidden_layers": 1,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_attention_heads": 32,
        "partial_rotary_factor": 0.5,
    },
    "pythia-160m": {
        "model_type": "gpt_neox",
        "num_hidden_layers": 2,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "rotary_pct": 0.25,
    },
    "stablelm-2-1.6b": {
        "model_type": "stablelm",
        "num_hidden_layers": 1,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "partial_rotary_factor": 0.25,
        "use_qkv_bias": True,
    },
    "zamba2-1.2b": {
        "model_type": "zamba2",
        "num_hidden_layers": 2,
        "layers_block_type": ["linear_attention", "hybrid"],
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "n_mamba_heads": 64,
        "mamba_d_state": 128,
        "num_mem_blocks": 1,
        "adapter_rank": 128,
        "use_shared_attention_adapter": True,
        "use_mem_rope": True,
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WIDTHS)
def test_logits_agree_at_the_width_of_a_published_model(
    name: str, tmp_path: Path, record_property: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    values = {"vocab_size": 1024, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, **WIDTHS[name]}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**values), dtype=torch.bfloat16)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name and parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(tmp_path / "checkpoint")
    del model
    (tmp_path / "bundle").mkdir()

    parity = export_checkpoint(tmp_path / "checkpoint", tmp_path / "bundle", weights="fp32", lowering="dense").parity

    worst, scale = max(parity["max_abs_error"].values()), parity["logit_scale"]
    record_property("worst", worst)
    with capsys.disabled():
        print(f"\n{name}: logits of at most {scale:.3g} differ by at most {worst:.2g}", flush=True)
    assert worst <= TOLERANCE * max(1.0, scale)
