"""The bundled text: its splits, its order, and what the training text must not contain."""

import hashlib
from pathlib import Path
from typing import get_args

import pytest

from edgeslim import corpus
from edgeslim.corpus import SEPARATOR, Split, installed_packages_text, paragraphs, standard_library_text

SPLITS: tuple[Split, ...] = get_args(Split)


def _paragraphs_of(text: str) -> set[str]:
    return {part for document in text.split(SEPARATOR) for part in document.split("\n\n")}


@pytest.fixture(scope="module")
def texts() -> dict[Split, corpus.Text]:
    return {split: standard_library_text(split) for split in SPLITS}


def test_no_paragraph_of_the_heldout_text_is_in_another_split(texts: dict[Split, corpus.Text]) -> None:
    heldout = _paragraphs_of(texts["heldout"].text)
    assert heldout.isdisjoint(_paragraphs_of(texts["train"].text))
    assert heldout.isdisjoint(_paragraphs_of(texts["calibration"].text))


@pytest.mark.parametrize(
    ("name", "split"), [("asyncio.runners", "heldout"), ("argparse", "calibration"), ("topic while", "calibration")]
)
def test_a_document_keeps_its_split_from_run_to_run(name: str, split: Split) -> None:
    assert corpus._Document(name=name, paragraphs=()).split == split


def test_modules_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b", "c", "a"):
        (tmp_path / f"{name}.py").write_text(f'"""Module {name}."""\n')
    assert installed_packages_text(tmp_path).text == SEPARATOR.join(["Module a.", "Module b.", "Module c."])


def test_calibration_text_suffices_for_128_windows_of_2048_tokens(texts: dict[Split, corpus.Text]) -> None:
    bytes_per_token = 3.6  # fewer than this are 4096-token BPE's worst, by the bundled tokenizers
    assert len(texts["calibration"].text.encode()) > 128 * 2048 * bytes_per_token


def test_heldout_text_is_large_enough_to_score(texts: dict[Split, corpus.Text]) -> None:
    assert len(texts["heldout"].text) > 100_000


def test_description_names_python_size_and_hash(texts: dict[Split, corpus.Text]) -> None:
    text = texts["calibration"]
    assert text.sha256 == hashlib.sha256(text.text.encode()).hexdigest()
    assert text.description.startswith("standard library documentation of Python 3.")
    assert f"MB, sha256 {text.sha256[:12]}" in text.description


def test_documents_are_free_of_the_separator(texts: dict[Split, corpus.Text]) -> None:
    assert all(document.strip() for document in texts["train"].text.split(SEPARATOR))


def test_packages_lose_repeated_and_heldout_paragraphs(tmp_path: Path, texts: dict[Split, corpus.Text]) -> None:
    heldout = max(texts["heldout"].text.split(SEPARATOR)[0].split("\n\n"), key=len)
    (tmp_path / "a.py").write_text('"""Only here.\n\nSaid twice."""\n')
    (tmp_path / "b.py").write_text(f"def f():\n    {'Said twice.' + chr(10) * 2 + heldout!r}\n")
    assert installed_packages_text(tmp_path).text == "Only here.\n\nSaid twice."


def test_files_that_do_not_parse_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def (")
    (tmp_path / "whole.py").write_text('"""A whole module."""\n')
    assert installed_packages_text(tmp_path).text == "A whole module."


def test_a_package_and_a_module_of_one_name_share_a_split(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "__init__.py").write_text('"""Grew into a package."""\n')
    (tmp_path / "one.py").write_text('"""Was a module."""\n')
    assert {document.name for document in corpus._modules(tmp_path, frozenset())} == {"one"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One.\n\nTwo.", ["One.", "Two."]),
        ("One.   \n \t\n\n\n    Two,\n    indented.", ["One.", "    Two,\n    indented."]),
        ("One.\n\n----\n\nTwo.", ["One.", "Two."]),
        ("\n\n", []),
    ],
)
def test_paragraphs_are_split_at_empty_lines(text: str, expected: list[str]) -> None:
    assert paragraphs(text) == expected
