"""Calibration text becomes the same windows every time, or one clear line."""

import json
from pathlib import Path

import pytest
import torch
from families import CORPUS, tiny_tokenizer

from edgeslim.calibration import CalibrationText, read_text, sample_windows, tokenize
from edgeslim.errors import CalibrationError

TEXT = CalibrationText(text="\n".join(CORPUS) * 20, description="a test text")


def test_windows_are_pieces_of_the_text_and_the_seed_alone_chooses_them() -> None:
    tokenizer = tiny_tokenizer()
    first = sample_windows(TEXT, tokenizer, samples=5, seqlen=16, seed=3)
    again = sample_windows(TEXT, tokenizer, samples=5, seqlen=16, seed=3)
    other = sample_windows(TEXT, tokenizer, samples=5, seqlen=16, seed=4)
    assert first.tokens.shape == (5, 16)
    assert torch.equal(first.tokens, again.tokens)
    assert not torch.equal(first.tokens, other.tokens)
    whole = " ".join(map(str, tokenize(tokenizer, TEXT.text).tolist()))
    assert all(" ".join(map(str, window.tolist())) in whole for window in first.tokens)


def test_too_little_text_says_how_much_is_needed() -> None:
    with pytest.raises(CalibrationError, match=r"128 samples of 2048 need at least 65,536"):
        sample_windows(TEXT, tiny_tokenizer(), samples=128, seqlen=2048, seed=0)


def test_a_folder_reads_its_text_files_in_order(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.md").write_text("first")
    (tmp_path / "c.bin").write_bytes(b"\xff\xfe")
    assert read_text(str(tmp_path)).text == "first\n\nsecond"


def test_jsonl_reads_its_text_fields(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n\n{"text": "two", "id": 2}\n')
    assert read_text(str(tmp_path / "a.jsonl")).text == "one\n\ntwo"


@pytest.mark.parametrize("line", ['{"txt": "one"}', '{"text": 3}', "one", "[]"])
def test_a_bad_line_of_jsonl_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n' + line + "\n")
    with pytest.raises(CalibrationError, match="line 2"):
        read_text(str(tmp_path / "a.jsonl"))


@pytest.mark.parametrize("content", ["", " \n\t\n"])
def test_an_empty_text_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.txt").write_text(content)
    with pytest.raises(CalibrationError, match="holds no text"):
        read_text(str(tmp_path / "a.txt"))


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"ab\xff")
    with pytest.raises(CalibrationError, match=r"not UTF-8 text \(byte 2\)"):
        read_text(str(tmp_path / "a.txt"))


def test_a_missing_source_is_one_line() -> None:
    with pytest.raises(CalibrationError, match="no such file or folder"):
        read_text("does not exist.txt")


def test_a_local_dataset_reads_through_the_datasets_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets", reason="the datasets library is not installed")
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text("\n".join(json.dumps({"text": f"document {i}"}) for i in range(3)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("edgeslim.calibration.Path", lambda source: Path(tmp_path / "hidden" / source))
    assert read_text("owner/name:train").text == "document 0\n\ndocument 1\n\ndocument 2"


def test_an_unreachable_dataset_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets", reason="the datasets library is not installed")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(CalibrationError, match="no dataset of that id") as caught:
        read_text("no-such-owner/no-such-name")
    assert "\n" not in str(caught.value)


def test_the_bundled_text_says_what_it_is() -> None:
    text = read_text(None)
    assert "standard library" in text.description
    assert len(text.text) > 500_000
