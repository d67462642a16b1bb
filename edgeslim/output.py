"""Outputs, folders and single files, that appear whole or not at all.

Work happens in `.NAME.partial/` beside the output `NAME`; what is to be kept grows in its `content/` folder, which is
renamed to `NAME` as the last step. A process killed at any moment leaves no half-written `NAME`.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeslim.errors import OutputError

try:
    import fcntl
except ImportError:  # Windows has no flock; there two runs on one output are not told apart
    fcntl = None  # type: ignore[assignment]

JOURNAL = "journal.jsonl"


def partial_folder(output: Path) -> Path:
    """Return the working folder of `output`: `.NAME.partial` beside it."""
    output = output.absolute()
    return output.parent / f".{output.name}.partial"


def content_folder(output: Path) -> Path:
    """Return the folder inside the working folder that becomes `output`."""
    return partial_folder(output) / "content"


def refuse_existing(output: Path, *, force: bool) -> None:
    """Raise OutputError where `output` is a file, or a folder with anything in it and not `force`."""
    if output.is_file():
        raise OutputError(f"{output}: is a file; expected a folder to write")
    if output.is_dir() and not force and any(output.iterdir()):
        raise OutputError(
            f"{output}: already exists and is not empty; choose another name or give --force to replace it"
        )


def refuse_existing_file(output: Path, *, force: bool) -> None:
    """Raise OutputError where `output` is a folder, stands in no folder, or is a file and not `force`."""
    if output.is_dir():
        raise OutputError(f"{output}: is a folder; expected a file to write")
    if not output.absolute().parent.is_dir():
        raise OutputError(f"{output}: there is no folder {output.parent}; make it, or choose another place")
    if output.exists() and not force:
        raise OutputError(f"{output}: already exists; choose another name or give --force to replace it")


def write_file(output: Path, text: str, *, force: bool = False) -> None:
    """Write `text` to the file `output`, which appears whole or not at all.

    Raises: OutputError as `refuse_existing_file`.
    """
    refuse_existing_file(output, force=force)
    partial = output.absolute().parent / f".{output.name}.{os.getpid()}.partial"
    try:
        partial.write_text(text, encoding="utf-8")
        _sync(partial)
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)


def publish(output: Path) -> None:
    """Turn the finished content of `output`'s working folder into `output`, replacing what stands there."""
    content, replaced = content_folder(output), output.absolute().parent / f".{output.name}.replaced"
    for file in content.rglob("*"):
        if file.is_file():
            _sync(file)
    shutil.rmtree(replaced, ignore_errors=True)
    if output.exists():
        output.rename(replaced)
    content.rename(output)
    _sync(output.absolute().parent)
    shutil.rmtree(replaced, ignore_errors=True)
    shutil.rmtree(partial_folder(output), ignore_errors=True)


@contextmanager
def working_folder(output: Path) -> Iterator[Path]:
    """Hold the working folder of `output` for this process alone.

    Raises: OutputError where another process holds it.
    """
    partial = partial_folder(output)
    partial.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(partial, os.O_RDONLY) if fcntl else None
    try:
        if descriptor is not None:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise OutputError(f"{output}: another process is writing it; wait for it to end") from None
        yield partial
    finally:
        if descriptor is not None:
            os.close(descriptor)


@contextmanager
def new_folder(output: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield an empty folder that becomes `output` when the block ends, and vanishes when it raises.

    Raises: OutputError where `output` exists and not `force`, or where an interrupted prune of that name waits.
    """
    refuse_existing(output, force=force)
    with working_folder(output) as partial:
        if (partial / JOURNAL).exists():
            raise OutputError(
                f"{output}: an interrupted prune of this name waits in {partial}; finish or delete it first"
            )
        content = content_folder(output)
        shutil.rmtree(content, ignore_errors=True)
        content.mkdir()
        try:
            yield content
            publish(output)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
