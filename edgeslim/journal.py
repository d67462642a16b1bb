"""What a long run has finished, so that the same arguments go on where a kill stopped it.

The journal is one JSON object a line: the arguments first, then a record for each finished step. A line is written
and synced only after everything that it speaks of is on disk; a torn last line is a step that did not finish.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgeslim.errors import OutputError
from edgeslim.output import JOURNAL, content_folder, publish, refuse_existing, working_folder

Record = dict[str, Any]


class Journal:
    """The finished steps of one run, in order."""

    def __init__(self, path: Path, steps: dict[str, Record]) -> None:
        self._path = path
        self.steps = steps

    @classmethod
    def open(cls, folder: Path, arguments: Record) -> "Journal":
        """Open or begin the journal in `folder` for `arguments` (plain JSON values).

        Raises: OutputError where the journal there belongs to other arguments; the message says which differ.
        """
        path = folder / JOURNAL
        arguments = json.loads(json.dumps(arguments))
        lines = _whole_lines(path)
        if not lines:
            path.unlink(missing_ok=True)
            journal = cls(path, {})
            journal._append({"arguments": arguments})
            return journal
        _refuse_other(folder, lines[0]["arguments"], arguments)
        _truncate(path, lines)
        return cls(path, {line["step"]: line["record"] for line in lines[1:]})

    def finish(self, step: str, record: Record) -> None:
        """Record that `step` is finished and on disk."""
        self._append({"step": step, "record": record})
        self.steps[step] = record

    def _append(self, line: Record) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def resumable_folder(
    output: Path, arguments: Record, *, force: bool = False, restart: bool = False
) -> Iterator[tuple[Journal, Path]]:
    """Yield the journal of the run that writes `output` and the folder that becomes `output` when the block ends.

    An exception or a kill leaves both as they are, for the next call with equal `arguments`; `restart` empties them.

    Raises: OutputError where `output` exists and not `force`, or the run waiting there has other arguments.
    """
    refuse_existing(output, force=force)
    with working_folder(output) as partial:
        content = content_folder(output)
        if restart or not content.is_dir():
            for entry in partial.iterdir():
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        content.mkdir(exist_ok=True)
        yield Journal.open(partial, arguments), content
        publish(output)


def _whole_lines(path: Path) -> list[Record]:
    """Return the lines up to the first that a kill cut short."""
    lines: list[Record] = []
    if not path.exists():
        return lines
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        if not text.endswith("\n"):
            break
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def _truncate(path: Path, lines: list[Record]) -> None:
    """Cut a torn last line off, so that the next append starts a line of its own."""
    whole = "".join(json.dumps(line) + "\n" for line in lines)
    os.truncate(path, len(whole.encode()))


def _refuse_other(folder: Path, before: Record, now: Record) -> None:
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if changed:
        differences = ", ".join(f"{key} was {before.get(key)!r}, now {now.get(key)!r}" for key in changed)
        raise OutputError(
            f"{folder}: an interrupted run with other arguments waits there ({differences}); "
            "give the same arguments to resume it, or --restart to begin anew"
        )
