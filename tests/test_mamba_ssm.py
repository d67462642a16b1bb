"""Checkpoints of mamba_ssm: the same model, bit by bit, in transformers' form; everything else refused by name."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import tiny_tokenizer
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from edgeslim.checkpoint import Checkpoint
from edgeslim.conversion import cache_folder
from edgeslim.errors import CheckpointError

HIDDEN, DEPTH, VOCAB = 32, 2, 331
Weights = dict[str, Tensor]


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    torch.set_num_threads(1)


def _config(kind: str, **changes: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"Mamba1": {}, "Mamba2": {"layer": "Mamba2", "headdim": 8, "ngroups": 2, "d_state": 12}}[
        kind
    ]
    return {
        "d_model": HIDDEN,
        "n_layer": DEPTH,
        "vocab_size": VOCAB,
        "ssm_cfg": options,
        "rms_norm": True,
        "residual_in_fp32": True,
        "fused_add_norm": True,
        "pad_vocab_size_multiple": 16,
        "tie_embeddings": True,
        **changes,
    }


def _weights(kind: str) -> Weights:
    """Random weights under mamba_ssm's names, with the shapes its modules make of `_config(kind)`."""
    generator = torch.Generator().manual_seed(0)
    inner, rows = 2 * HIDDEN, 336

    def random(*shape: int, scale: float = 0.2) -> Tensor:
        return torch.randn(shape, generator=generator) * scale

    if kind == "Mamba1":
        mixer = {
            "in_proj.weight": (2 * inner, HIDDEN),
            "conv1d.weight": (inner, 1, 4),
            "conv1d.bias": (inner,),
            "x_proj.weight": (2 + 2 * 16, inner),
            "dt_proj.weight": (inner, 2),
            "dt_proj.bias": (inner,),
            "A_log": (inner, 16),
            "D": (inner,),
            "out_proj.weight": (HIDDEN, inner),
        }
    else:
        mixed = inner + 2 * 2 * 12
        mixer = {
            "in_proj.weight": (inner + mixed + 8, HIDDEN),
            "conv1d.weight": (mixed, 1, 4),
            "conv1d.bias": (mixed,),
            "dt_bias": (8,),
            "A_log": (8,),
            "D": (8,),
            "norm.weight": (inner,),
            "out_proj.weight": (HIDDEN, inner),
        }
    weights = {
        "backbone.embedding.weight": random(rows, HIDDEN, scale=1.0),
        "backbone.norm_f.weight": 1 + random(HIDDEN),
    }
    for layer in range(DEPTH):
        weights[f"backbone.layers.{layer}.norm.weight"] = 1 + random(HIDDEN)
        weights.update({f"backbone.layers.{layer}.mixer.{name}": random(*shape) for name, shape in mixer.items()})
    weights["lm_head.weight"] = weights["backbone.embedding.weight"]
    return weights


def _save(folder: Path, kind: str, *, pickled: bool = False, weights: Weights | None = None, **changes: Any) -> Path:
    folder.mkdir()
    weights = _weights(kind) if weights is None else weights
    (folder / "config.json").write_text(json.dumps(_config(kind, **changes)))
    if pickled:
        torch.save(weights, folder / "pytorch_model.bin")
    else:
        save_file({name: tensor.clone() for name, tensor in weights.items()}, folder / "model.safetensors")
    return folder


# What mamba_ssm computes, from its paper and module, in float64 and one token at a time.


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def _conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x [T, C]: each channel's last four inputs, weighted."""
    padded = torch.cat([x.new_zeros(3, x.shape[1]), x])
    windows = torch.stack([padded[k : k + len(x)] for k in range(4)])
    return functional.silu((windows * weight[:, 0].T[:, None]).sum(0) + bias)


def _mamba1(x: Tensor, w: Weights) -> Tensor:
    x, z = (x @ w["in_proj.weight"].T).chunk(2, -1)
    x = _conv(x, w["conv1d.weight"], w["conv1d.bias"])
    step, b, c = (x @ w["x_proj.weight"].T).split([2, 16, 16], -1)
    dt = functional.softplus(step @ w["dt_proj.weight"].T + w["dt_proj.bias"])
    state, outputs = x.new_zeros(x.shape[1], 16), []
    for t in range(len(x)):
        decay = torch.exp(dt[t, :, None] * -torch.exp(w["A_log"]))
        state = decay * state + dt[t, :, None] * b[t] * x[t, :, None]
        outputs.append(state @ c[t] + w["D"] * x[t])
    return torch.stack(outputs) * functional.silu(z) @ w["out_proj.weight"].T


def _mamba2(x: Tensor, w: Weights) -> Tensor:
    z, xbc, raw = (x @ w["in_proj.weight"].T).split([64, 64 + 48, 8], -1)
    x, b, c = _conv(xbc, w["conv1d.weight"], w["conv1d.bias"]).split([64, 24, 24], -1)
    dt = functional.softplus(raw + w["dt_bias"])
    state, outputs = x.new_zeros(8, 8, 12), []
    for t in range(len(x)):
        heads = x[t].view(8, 8)
        keys, queries = (v[t].view(2, 12).repeat_interleave(4, 0) for v in (b, c))
        decay = torch.exp(dt[t] * -torch.exp(w["A_log"]))
        state = decay[:, None, None] * state + (dt[t, :, None] * heads)[:, :, None] * keys[:, None]
        outputs.append(((state * queries[:, None]).sum(-1) + w["D"][:, None] * heads).flatten())
    gated = (torch.stack(outputs) * functional.silu(z)).view(len(x), 2, 32)
    return _norm(gated, w["norm.weight"].view(2, 32)).flatten(1) @ w["out_proj.weight"].T


def _logits(tokens: Tensor, weights: Weights, mixer: Callable[[Tensor, Weights], Tensor]) -> Tensor:
    weights = {name: tensor.double() for name, tensor in weights.items()}
    x = weights["backbone.embedding.weight"][tokens]
    for layer in range(DEPTH):
        prefix = f"backbone.layers.{layer}."
        own = {name.removeprefix(f"{prefix}mixer."): tensor for name, tensor in weights.items() if prefix in name}
        x = x + mixer(_norm(x, weights[f"{prefix}norm.weight"]), own)
    return _norm(x, weights["backbone.norm_f.weight"]) @ weights["lm_head.weight"].T


MIXERS = {"Mamba1": _mamba1, "Mamba2": _mamba2}


@pytest.mark.parametrize("kind", MIXERS)
def test_the_converted_model_computes_what_mamba_ssm_computes(tmp_path: Path, kind: str) -> None:
    folder = _save(tmp_path / "model", kind)
    tokens = torch.randint(VOCAB, (1, 19), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found = Checkpoint.open(folder).load()(tokens).logits[0]

    torch.testing.assert_close(found.double(), _logits(tokens[0], _weights(kind), MIXERS[kind]), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_weights_are_copied_bit_by_bit(tmp_path: Path, pickled: bool, dtype: torch.dtype) -> None:
    weights = {name: tensor.to(dtype) for name, tensor in _weights("Mamba1").items()}
    folder = _save(tmp_path / "model", "Mamba1", pickled=pickled, weights=weights)
    checkpoint = Checkpoint.open(folder, allow_pickle=pickled)
    copied = load_file(checkpoint.folder / "model.safetensors")

    assert checkpoint.folder.parent == cache_folder()
    assert len(copied) == len(weights) - 1  # the head is the embedding
    for name, tensor in copied.items():
        assert torch.equal(tensor, weights[name.replace("embeddings", "embedding")])


def test_the_copy_is_found_again_until_the_checkpoint_changes(tmp_path: Path) -> None:
    folder = _save(tmp_path / "model", "Mamba1")
    first = Checkpoint.open(folder).folder
    time = (first / "model.safetensors").stat().st_mtime_ns

    assert Checkpoint.open(folder).folder == first
    assert (first / "model.safetensors").stat().st_mtime_ns == time
    weights = {**_weights("Mamba1"), "backbone.norm_f.weight": torch.zeros(HIDDEN)}
    save_file({name: tensor.clone() for name, tensor in weights.items()}, folder / "model.safetensors")
    changed = Checkpoint.open(folder).folder
    assert changed != first
    assert not load_file(changed / "model.safetensors")["backbone.norm_f.weight"].any()


def test_a_tokenizer_beside_the_weights_goes_along_even_where_it_came_later(tmp_path: Path) -> None:
    folder = _save(tmp_path / "model", "Mamba1")
    expected = r"/model: no tokenizer; expected tokenizer\.json .*EleutherAI/gpt-neox-20b"
    with pytest.raises(CheckpointError, match=expected):
        Checkpoint.open(folder).tokenizer()

    tiny_tokenizer().save_pretrained(folder)
    assert Checkpoint.open(folder).tokenizer()("once")["input_ids"]


def test_pickles_are_read_only_where_that_is_allowed_and_never_run(tmp_path: Path) -> None:
    folder = _save(tmp_path / "model", "Mamba1", pickled=True)
    with pytest.raises(CheckpointError, match=r"only pickled weights .*--allow-pickle"):
        Checkpoint.open(folder)

    torch.save({"backbone.norm_f.weight": _Runs(tmp_path / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"not a file of weights alone: it would call \S+$"):
        Checkpoint.open(folder, allow_pickle=True)
    assert not (tmp_path / "ran").exists()
    assert not list(cache_folder().glob("*"))


class _Runs:
    """Makes a file where it is unpickled by a loader that runs code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_pickled_weights_of_a_transformers_model_are_read_too(tmp_path: Path) -> None:
    from families import save_tiny

    folder = save_tiny(tmp_path / "model", "llama", tokenizer=False)
    dense = load_file(folder / "model.safetensors")
    torch.save({**dense, "lm_head.weight": dense["model.embed_tokens.weight"]}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    model = Checkpoint.open(folder, allow_pickle=True).load()

    for name, tensor in dense.items():
        assert torch.equal(model.state_dict()[name], tensor)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ssm_cfg": {"layer": "Mamba3"}}, "'Mamba3' is not known"),
        ({"ssm_cfg": {"d_stat": 8}}, "unknown option ssm_cfg.d_stat; did you mean 'd_state'"),
        ({"ssm_cfg": {"layer": "Mamba2", "norm_before_gate": True}}, "norm_before_gate True"),
        ({"attn_layer_idx": [1]}, r"attention in layers \[1\]"),
        ({"d_intermediate": 64}, "no MLPs"),
        ({"rms_norm": False}, "no LayerNorm"),
        ({"ssm_cfg": {"d_state": 8}}, r"has shape .*; config.json makes it"),
        ({"n_layer": 3}, "no weights for 'backbone.layers.2"),
        ({"n_layer": 1}, "unknown weights 'backbone.layers.1"),
        ({"vocab_size": 400}, r"has shape \[336, 32\]; config.json makes it \[400, 32\]"),
    ],
)
def test_what_transformers_cannot_be_told_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = _save(tmp_path / "model", "Mamba1", **changes)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(folder)


def test_a_head_that_is_not_the_embedding_it_should_be_tied_to_is_refused(tmp_path: Path) -> None:
    weights = {**_weights("Mamba1"), "lm_head.weight": torch.zeros(336, HIDDEN)}
    with pytest.raises(CheckpointError, match="is not the embedding"):
        Checkpoint.open(_save(tmp_path / "tied", "Mamba1", weights=weights))

    model = Checkpoint.open(_save(tmp_path / "untied", "Mamba1", weights=weights, tie_embeddings=False)).load()
    assert not model.state_dict()["lm_head.weight"].any()


def test_limits_of_the_step_reach_transformers(tmp_path: Path) -> None:
    options = {**_config("Mamba2")["ssm_cfg"], "dt_limit": [0.01, 0.5]}
    config = Checkpoint.open(_save(tmp_path / "model", "Mamba2", ssm_cfg=options)).config

    assert tuple(config.time_step_limit) == (0.01, 0.5)
    assert math.isclose(config.layer_norm_epsilon, 1e-5)
