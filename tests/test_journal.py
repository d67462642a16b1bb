"""A journal survives a kill at any byte."""

from pathlib import Path

import pytest

from edgeslim.errors import OutputError
from edgeslim.journal import Journal, resumable_folder


def test_finished_steps_are_there_after_reopening(tmp_path: Path) -> None:
    Journal.open(tmp_path, {"seed": 0}).finish("one", {"error": 0.5})
    assert Journal.open(tmp_path, {"seed": 0}).steps == {"one": {"error": 0.5}}


def test_other_arguments_are_refused_naming_what_differs(tmp_path: Path) -> None:
    Journal.open(tmp_path, {"seed": 0, "samples": 8})
    with pytest.raises(OutputError, match="seed was 0, now 1") as caught:
        Journal.open(tmp_path, {"seed": 1, "samples": 8})
    assert "samples" not in str(caught.value)


def test_tuples_and_lists_are_the_same_arguments(tmp_path: Path) -> None:
    Journal.open(tmp_path, {"include": ("a", "b")})
    Journal.open(tmp_path, {"include": ["a", "b"]})


def test_a_journal_cut_at_any_byte_keeps_its_whole_lines_and_goes_on(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, {"seed": 0})
    for step in ("one", "two"):
        journal.finish(step, {"linears": [step]})
    path = tmp_path / "journal.jsonl"
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        reopened = Journal.open(tmp_path, {"seed": 0})
        complete = whole[:length].count(b"\n")
        assert list(reopened.steps) == ["one", "two"][: max(0, complete - 1)]
        reopened.finish("next", {})
        assert list(Journal.open(tmp_path, {"seed": 0}).steps)[-1] == "next"


def test_an_interrupted_run_keeps_content_and_journal_for_the_next(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), resumable_folder(tmp_path / "out", {"seed": 0}) as (journal, content):
        (content / "a").write_text("a")
        journal.finish("a", {})
        raise KeyboardInterrupt
    assert not (tmp_path / "out").exists()
    with resumable_folder(tmp_path / "out", {"seed": 0}) as (journal, content):
        assert list(journal.steps) == ["a"]
        assert (content / "a").read_text() == "a"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_restart_forgets_the_interrupted_run(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), resumable_folder(tmp_path / "out", {"seed": 0}) as (journal, content):
        (content / "a").write_text("a")
        raise KeyboardInterrupt
    with resumable_folder(tmp_path / "out", {"seed": 1}, restart=True) as (journal, content):
        assert not journal.steps
        assert list(content.iterdir()) == []


def test_a_journal_whose_content_was_already_published_begins_anew(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), resumable_folder(tmp_path / "out", {}) as (journal, content):
        journal.finish("a", {})
        content.rename(tmp_path / "elsewhere")
        raise KeyboardInterrupt
    with resumable_folder(tmp_path / "out", {}) as (journal, _):
        assert not journal.steps
