"""Single tensors of safetensors files, against the library as the reference."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from edgeslim.errors import CheckpointError
from edgeslim.tensorfile import read_entries, read_tensor, write_tensor

TENSORS = {
    "a": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "b": torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16),
    "empty": torch.empty(0, 3, dtype=torch.float16),
    "scalar": torch.tensor(2.5, dtype=torch.float64),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "t.safetensors", metadata={"format": "pt"})
    return tmp_path / "t.safetensors"


def test_every_tensor_reads_as_the_library_reads_it(file: Path) -> None:
    entries = read_entries(file)
    assert entries.keys() == TENSORS.keys()
    for name, expected in load_file(file).items():
        assert torch.equal(read_tensor(entries[name]), expected)


def test_a_written_tensor_changes_and_its_neighbours_do_not(file: Path) -> None:
    entries = read_entries(file)
    write_tensor(entries["b"], torch.zeros(5, 7, dtype=torch.bfloat16))
    after = load_file(file)
    assert not after["b"].any()
    assert all(torch.equal(after[name], TENSORS[name]) for name in ("a", "empty", "scalar"))


@pytest.mark.parametrize("wrong", [torch.zeros(4, 3), torch.zeros(3, 4, dtype=torch.float16)])
def test_another_shape_or_dtype_is_refused(file: Path, wrong: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="expected"):
        write_tensor(read_entries(file)["a"], wrong)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_but_never_crash(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    file = tmp_path_factory.mktemp("fuzz") / "x.safetensors"
    file.write_bytes(data)
    try:
        for entry in read_entries(file).values():
            read_tensor(entry)
    except CheckpointError:
        pass


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 400]}},
        {"a": {"dtype": "F32", "shape": [100], "data_offsets": [0, 400]}},
        {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}},
        {"a": {"dtype": "F32", "shape": [1]}},
        {"a": 3},
        [],
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, header: object) -> None:
    text = json.dumps(header).encode()
    (tmp_path / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 16)
    with pytest.raises(CheckpointError):
        read_entries(tmp_path / "x.safetensors")


def test_a_truncated_file_is_refused(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match="truncated"):
        read_entries(file)
