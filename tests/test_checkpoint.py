"""Checkpoints are found, checked and loaded block by block."""

import json
from pathlib import Path

import pytest
import torch
from families import FAMILIES, save_tiny

from edgeslim.checkpoint import Checkpoint
from edgeslim.errors import CheckpointError
from edgeslim.tensorfile import read_tensor


@pytest.mark.parametrize("family", FAMILIES)
def test_a_skeleton_filled_block_by_block_equals_the_whole_model(tmp_path: Path, family: str) -> None:
    checkpoint = Checkpoint.open(save_tiny(tmp_path, family, tokenizer=False, shard_size="100KB"))
    skeleton = checkpoint.skeleton()
    assert all(parameter.is_meta for parameter in skeleton.model.parameters())
    skeleton.fill_outside_blocks(torch.device("cpu"))
    for index in range(len(skeleton.blocks)):
        skeleton.fill_block(index, torch.device("cpu"))
    tokens = torch.arange(20)[None]
    expected = checkpoint.load().base_model(tokens).last_hidden_state  # type: ignore[operator]
    with torch.no_grad():
        assert torch.equal(skeleton.base(tokens).last_hidden_state, expected)


@pytest.mark.parametrize(("family", "changes"), [("mamba2", {"rescale_prenorm_residual": True}), ("llama", {})])
def test_a_loaded_model_has_the_weights_of_its_file(tmp_path: Path, family: str, changes: dict[str, bool]) -> None:
    checkpoint = Checkpoint.open(save_tiny(tmp_path, family, tokenizer=False, **changes))
    loaded = checkpoint.load().state_dict()
    for name, entry in checkpoint.entries.items():
        assert torch.equal(loaded[name], read_tensor(entry)), name


def test_an_emptied_block_holds_no_memory(tmp_path: Path) -> None:
    skeleton = Checkpoint.open(save_tiny(tmp_path, "llama", tokenizer=False)).skeleton()
    block = skeleton.fill_block(1, torch.device("cpu"))
    assert not any(parameter.is_meta for parameter in block.parameters())
    skeleton.empty_block(1)
    assert all(parameter.is_meta for parameter in block.parameters())


def test_weights_saved_without_the_base_prefix_are_found(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_tiny(tmp_path, "gpt2", tokenizer=False)
    tensors = {name.removeprefix("transformer."): t for name, t in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    Checkpoint.open(folder).skeleton().fill_block(0, torch.device("cpu"))


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    save_tiny(tmp_path, "llama", tokenizer=False)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickled"):
        Checkpoint.open(tmp_path)


def test_a_missing_folder_and_an_empty_one_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        Checkpoint.open(tmp_path / "none")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        Checkpoint.open(tmp_path)


def test_an_unknown_model_type_is_one_line(tmp_path: Path) -> None:
    save_tiny(tmp_path, "llama", tokenizer=False)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llamma"}))
    with pytest.raises(CheckpointError) as caught:
        _ = Checkpoint.open(tmp_path).config
    assert "\n" not in str(caught.value)


def test_a_checkpoint_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(save_tiny(tmp_path, "gpt_neox", tokenizer=False))
    with pytest.raises(CheckpointError, match=r"no tokenizer; expected tokenizer\.json beside config\.json$"):
        checkpoint.tokenizer()


def test_a_config_that_disagrees_with_the_weights_is_named(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, "llama", tokenizer=False)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 128}))
    with pytest.raises(CheckpointError, match=r"mlp\.gate_proj\.weight has shape \[96, 64\]; config.json makes it"):
        Checkpoint.open(folder).skeleton().fill_block(0, torch.device("cpu"))


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, "llama", tokenizer=False)
    config = json.loads((folder / "config.json").read_text())
    layers = {"num_hidden_layers": 4, "layer_types": None}
    (folder / "config.json").write_text(json.dumps({**config, **layers}))
    with pytest.raises(CheckpointError, match=r"no weights for 'model\.layers\.3\."):
        Checkpoint.open(folder).skeleton().fill_block(3, torch.device("cpu"))


def test_what_blocks_share_is_read_under_the_name_that_the_first_of_them_has(tmp_path: Path) -> None:
    skeleton = Checkpoint.open(save_tiny(tmp_path, "zamba2", tokenizer=False)).skeleton()
    first, last = "model.layers.1.shared_transformer", "model.layers.4.shared_transformer"

    assert skeleton.first_names[f"{last}.self_attn.q_proj.weight"] == f"{first}.self_attn.q_proj.weight"
    blocks = [skeleton.fill_block(index, torch.device("cpu")) for index in (1, 4)]
    queries = [block.get_submodule("shared_transformer.self_attn.q_proj").weight for block in blocks]
    assert torch.equal(queries[0], queries[1])  # type: ignore[arg-type]
