"""Output folders appear whole or not at all."""

from pathlib import Path

import pytest

from edgeslim.errors import OutputError
from edgeslim.output import new_folder, partial_folder, publish, working_folder


def test_a_finished_folder_appears_with_its_files_and_no_leftovers(tmp_path: Path) -> None:
    with new_folder(tmp_path / "out") as folder:
        (folder / "a.txt").write_text("a")
        assert not (tmp_path / "out").exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "a.txt").read_text() == "a"


def test_an_exception_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "out") as folder:
        (folder / "a.txt").write_text("a")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_an_existing_output_is_refused_without_force_and_kept(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old.txt").write_text("old")
    with pytest.raises(OutputError, match="--force"), new_folder(tmp_path / "out"):
        pass
    assert (tmp_path / "out" / "old.txt").read_text() == "old"


def test_force_replaces_the_whole_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old.txt").write_text("old")
    with new_folder(tmp_path / "out", force=True) as folder:
        (folder / "new.txt").write_text("new")
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["new.txt"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_an_empty_existing_folder_needs_no_force(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with new_folder(tmp_path / "out") as folder:
        (folder / "a.txt").write_text("a")
    assert (tmp_path / "out" / "a.txt").exists()


def test_a_file_in_the_way_is_refused_even_with_force(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OutputError, match="is a file"), new_folder(tmp_path / "out", force=True):
        pass


def test_two_writers_of_one_output_are_told_apart(tmp_path: Path) -> None:
    with (
        working_folder(tmp_path / "out"),
        pytest.raises(OutputError, match="another process"),
        working_folder(tmp_path / "out"),
    ):
        pass


def test_a_waiting_journal_is_not_thrown_away_by_another_verb(tmp_path: Path) -> None:
    partial = partial_folder(tmp_path / "out")
    partial.mkdir()
    (partial / "journal.jsonl").write_text("{}\n")
    with pytest.raises(OutputError, match="interrupted"), new_folder(tmp_path / "out"):
        pass
    assert (partial / "journal.jsonl").exists()


def test_publishing_works_for_a_name_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content = partial_folder(Path("out")) / "content"
    content.mkdir(parents=True)
    (content / "a").write_text("a")
    publish(Path("out"))
    assert Path("out/a").read_text() == "a"
