"""Tiny random checkpoints of every supported family, with a byte-level BPE tokenizer trained on the spot.

Shapes are chosen to be awkward on purpose: fewer key heads than query heads, attention windows shorter than the test
prompts, two groups in Mamba-2, a vocabulary that is no multiple of eight. Weights are larger than an initialised
model's, so that logits differ clearly between tokens and greedy decoding has no ties.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging

CORPUS = (
    "Once upon a time there was a small model that lived on a device with two cores.",
    "It read every line of the documentation, one token after another, and kept what mattered.",
    "def decode(session, token, n): return [session.step(token) for _ in range(n)]",
    "The quick brown fox jumps over the lazy dog; 0123456789 (a, b) = [c] {d} é ü 漢字.",
)
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
VOCAB = 331
_ATTENTION: Mapping[str, Any] = MappingProxyType(
    {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 256,
    }
)

_MAMBA: Mapping[str, Any] = MappingProxyType(
    {"hidden_size": 64, "state_size": 12, "num_hidden_layers": 3, "expand": 2, "conv_kernel": 4, "time_step_rank": 6}
)

_HYBRID: Mapping[str, Any] = MappingProxyType(
    {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "pad_token_id": 0,
    }
)
_MIXER: Mapping[str, Any] = MappingProxyType(
    {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 2, "mamba_chunk_size": 8}
)

FAMILIES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "llama": {**_ATTENTION, "tie_word_embeddings": True},
        "mistral": {**_ATTENTION, "sliding_window": 8},
        "qwen2": {
            **_ATTENTION,
            "tie_word_embeddings": True,
            "use_sliding_window": True,
            "sliding_window": 8,
            "max_window_layers": 1,
        },
        "qwen3": {**_ATTENTION, "head_dim": 32},
        "gemma2": {**_ATTENTION, "sliding_window": 8, "query_pre_attn_scalar": 16},
        "phi3": {**_ATTENTION, "sliding_window": 8, "pad_token_id": 0},
        "smollm3": {
            **_ATTENTION,
            "no_rope_layers": [1, 1, 0],
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "use_sliding_window": True,
            "sliding_window": 8,
            "pad_token_id": 0,
        },
        "granite": {
            **_ATTENTION,
            "embedding_multiplier": 3.0,
            "logits_scaling": 2.0,
            "residual_multiplier": 0.5,
            "attention_multiplier": 0.25,
        },
        "olmo2": {**_ATTENTION},
        "gpt2": {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 256},
        "mamba2": {
            "hidden_size": 64,
            "num_heads": 8,
            "head_dim": 16,
            "state_size": 16,
            "n_groups": 2,
            "num_hidden_layers": 3,
            "expand": 2,
            "conv_kernel": 4,
            "chunk_size": 8,
            "tie_word_embeddings": False,
        },
        "gemma3_text": {
            **_ATTENTION,
            "sliding_window": 8,
            "query_pre_attn_scalar": 24,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "pad_token_id": 0,
        },
        "opt": {
            "hidden_size": 64,
            "ffn_dim": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "max_position_embeddings": 256,
            "word_embed_proj_dim": 64,
            "pad_token_id": 0,
        },
        "gpt_neox": {
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "max_position_embeddings": 256,
        },
        "stablelm": {key: value for key, value in _ATTENTION.items() if key != "head_dim"},
        "phi": {
            **{key: value for key, value in _ATTENTION.items() if key != "head_dim"},
            "hidden_size": 128,
            "partial_rotary_factor": 0.5,
            "pad_token_id": 0,
        },
        "mamba": {**_MAMBA, "tie_word_embeddings": True},
        "falcon_mamba": {**_MAMBA, "tie_word_embeddings": False},
        "bamba": {**_HYBRID, **_MIXER, "attn_layer_indices": [1]},
        "granitemoehybrid": {
            **_HYBRID,
            **_MIXER,
            "num_local_experts": 0,
            "shared_intermediate_size": 96,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
            "embedding_multiplier": 3.0,
            "logits_scaling": 2.0,
            "residual_multiplier": 0.5,
            "attention_multiplier": 0.25,
            "tie_word_embeddings": True,
        },
        "falcon_h1": {
            **_HYBRID,
            **_MIXER,
            "mamba_d_ssm": 128,
            "num_hidden_layers": 2,
            "head_dim": 16,
            "mamba_rms_norm": True,
            "mamba_norm_before_gate": False,
            "key_multiplier": 0.7,
            "embedding_multiplier": 3.0,
            "lm_head_multiplier": 0.5,
            "attention_in_multiplier": 0.8,
            "attention_out_multiplier": 0.9,
            "ssm_in_multiplier": 1.2,
            "ssm_out_multiplier": 0.7,
            "ssm_multipliers": [0.8, 0.9, 1.1, 1.2, 0.7],
            "mlp_multipliers": [0.8, 0.6],
        },
        "zamba2": {
            **_HYBRID,
            "num_key_value_heads": 4,
            "num_hidden_layers": 5,
            "layers_block_type": ["linear_attention", "hybrid", "hybrid", "linear_attention", "hybrid"],
            "num_mem_blocks": 2,
            "n_mamba_heads": 8,
            "mamba_ngroups": 2,
            "mamba_d_state": 16,
            "chunk_size": 8,
            "adapter_rank": 8,
            "use_shared_attention_adapter": True,
            "use_mem_rope": True,
        },
        "nemotron_h": {
            **{key: value for key, value in _HYBRID.items() if key != "num_hidden_layers"},
            "layers_block_type": ["linear_attention", "mlp", "full_attention", "mlp"],
            "head_dim": 16,
            "ssm_state_size": 16,
            "mamba_num_heads": 8,
            "mamba_head_dim": 16,
            "n_groups": 2,
            "chunk_size": 8,
            "rescale_prenorm_residual": False,
        },
        "lfm2": {**_HYBRID, "layer_types": ["conv", "full_attention", "conv"], "block_multiple_of": 16},
        "jamba": {
            **_HYBRID,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "mamba_d_state": 12,
            "mamba_dt_rank": 6,
        },
    }
)


_GAINS: Mapping[str, float] = MappingProxyType({"mamba2": 1.5, "mamba": 1.5, "falcon_mamba": 1.5})
"""How much larger a family's matrices are than initialised; a recurrent state amplifies by itself."""


def tiny_config(family: str, **changes: Any) -> Any:
    """The configuration of a tiny `family` model; `changes` override single fields."""
    special = {"bos_token_id": 1, "eos_token_id": 2, "vocab_size": VOCAB}
    return AutoConfig.for_model(family, **{**special, **FAMILIES[family], **changes})


def tiny_model(family: str, *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random `family` model in float32 and evaluation mode, the same for the same arguments."""
    gain = _GAINS.get(family, 4.0)
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(tiny_config(family, **changes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.mul_(gain)
            elif name.endswith(("norm.weight", "layernorm.weight")):
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most `VOCAB` tokens with a chat template: 0 <unk>, 1 <s>, 2 </s>."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        chat_template=CHAT_TEMPLATE,
    )


def save_tiny(
    folder: Path,
    family: str,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    tokenizer: bool = True,
    shard_size: str = "5GB",
    **changes: Any,
) -> Path:
    """Write a tiny `family` checkpoint into `folder` (made if missing) and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    logging.disable_progress_bar()
    tiny_model(family, seed=seed, **changes).to(dtype).save_pretrained(folder, max_shard_size=shard_size)
    if tokenizer:
        tiny_tokenizer().save_pretrained(folder)
    return folder


def add_config(folder: Path, **entries: Any) -> None:
    """Add `entries` to a saved checkpoint's config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))
