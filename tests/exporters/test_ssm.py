"""What the models of ours do to weights on their way into a graph."""

from pathlib import Path

import pytest
import torch
from families import save_tiny, tiny_config, tiny_model

from edgeslim.errors import EdgeslimError, ExportError
from edgeslim.exporters import export_checkpoint
from edgeslim.exporters.ssm import MODELS
from edgeslim.exporters.ssm.attention import head_order, reordered


def _rotated(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Rotate the pairs (i, i + R) of the columns of x [T, D] by `angles` [T, R]."""
    pairs = angles.shape[1]
    first, second, rest = x.split([pairs, pairs, x.shape[1] - 2 * pairs], -1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], -1)


@pytest.mark.parametrize(("head_size", "pairs"), [(80, 10), (16, 4), (64, 9), (48, 17)])
def test_heads_in_another_order_have_the_same_products_with_pairs_eight_apart(head_size: int, pairs: int) -> None:
    order = head_order(head_size, pairs)
    assert order is not None
    assert sorted(order) == list(range(head_size))
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 5, head_size, generator=generator, dtype=torch.float64)
    angles = torch.randn(5, pairs, generator=generator, dtype=torch.float64)
    wider = torch.nn.functional.pad(angles, (0, -pairs % 8))  # what is added stands still

    expected = _rotated(query, angles) @ _rotated(key, angles).T
    found = _rotated(query[:, order], wider) @ _rotated(key[:, order], wider).T
    torch.testing.assert_close(found, expected)


def test_the_order_of_a_head_stays_where_its_pairs_fit() -> None:
    assert head_order(64, 8) is None
    assert head_order(128, 32) is None
    with pytest.raises(ExportError, match="3 rotated pairs of columns in heads of 8"):
        head_order(8, 3)


def test_each_head_is_put_in_order_by_itself() -> None:
    weight = torch.arange(8.0)[:, None] * torch.ones(1, 3)

    assert reordered(weight, 4, [0, 2, 1, 3])[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert reordered(weight[:, 0], 4, [3, 2, 1, 0]).tolist() == [3, 2, 1, 0, 7, 6, 5, 4]


@pytest.mark.parametrize("family", sorted(MODELS.keys() - {"jamba"}))  # whose checkpoints hold experts apart
@pytest.mark.parametrize("prefix", ["kept", "dropped"])
def test_weights_are_found_with_and_without_the_name_of_the_base_model(family: str, prefix: str) -> None:
    model = tiny_model(family)
    tensors = dict(model.state_dict())
    if prefix == "dropped":
        tensors = {name.removeprefix(f"{model.base_model_prefix}."): t for name, t in tensors.items()}
    module = MODELS[family](tiny_config(family))
    named = module.named_weights(tensors)
    parameters = {parameter: name for name, parameter in reversed(list(module.named_parameters()))}
    parameters = {p: name for p, name in parameters.items() if p.const_value is None}  # tables are made, not read

    assert {name: tuple(named[name].shape) for name in parameters.values()} == {
        name: tuple(parameter.shape.numpy()) for parameter, name in parameters.items()
    }


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("gemma3_text", {}),
        ("gpt_neox", {"use_parallel_residual": False}),
        ("mamba", {}),
        ("opt", {}),
        ("stablelm", {}),
    ],
)
def test_the_graph_library_still_gets_wrong_what_has_a_model_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, changes: dict[str, object]
) -> None:
    """Where this fails, the library is mended: its model can take the place of ours."""
    monkeypatch.delitem(MODELS, family)
    (tmp_path / "bundle").mkdir()
    checkpoint = save_tiny(tmp_path / "checkpoint", family, tokenizer=False, **changes)
    with pytest.raises((EdgeslimError, KeyError)):
        export_checkpoint(checkpoint, tmp_path / "bundle", weights="fp32")
