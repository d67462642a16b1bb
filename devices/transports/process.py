"""Run a program of this machine: what it says as it comes, bytes into it, and an end where it hangs."""

import queue
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

_PIECE = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Output:
    """How a command ended and what it said, stdout and stderr together as they came."""

    status: int
    text: str

    @property
    def last_line(self) -> str:
        """The last line that is not blank; what a carriage return has overwritten is left out."""
        lines = [line.strip() for line in self.text.replace("\r", "\n").splitlines()]
        return next((line for line in reversed(lines) if line), "it said nothing")


class TimedOut(Exception):
    """A program that was ended because it took longer than it may."""


def run_program(
    argv: Sequence[str],
    *,
    timeout: float | None = None,
    on_text: Callable[[str], None] | None = None,
    pieces: Iterable[bytes] | None = None,
    on_wait: Callable[[], None] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Output:
    """Run `argv` and return how it ended. The program is not left running, whatever happens here.

    `pieces` goes into its stdin, which is empty otherwise; a program that stops reading ends that. `on_text` is called
    with what it says, `on_wait` about once a second while it says nothing; both on this thread.
    Raises: TimedOut after `timeout` seconds; OSError where the program does not start.
    """
    stdin = subprocess.DEVNULL if pieces is None else subprocess.PIPE
    process = subprocess.Popen(
        argv, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, bufsize=0
    )
    said: queue.Queue[bytes | None] = queue.Queue()
    reader = threading.Thread(target=_read, args=(process, said), daemon=True)
    reader.start()
    try:
        if pieces is not None:
            _feed(process, pieces)
        text = _listen(said, argv[0], timeout, on_text, on_wait)
        return Output(status=process.wait(), text=text)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        reader.join(timeout=1)
        assert process.stdout is not None
        process.stdout.close()


def _read(process: "subprocess.Popen[bytes]", said: "queue.Queue[bytes | None]") -> None:
    assert process.stdout is not None
    with suppress(OSError, ValueError):
        while piece := process.stdout.read(_PIECE):
            said.put(piece)
    said.put(None)


def _feed(process: "subprocess.Popen[bytes]", pieces: Iterable[bytes]) -> None:
    """Write `pieces` until they or the program's patience end."""
    assert process.stdin is not None
    with suppress(BrokenPipeError, ConnectionResetError):
        for piece in pieces:
            view = memoryview(piece)
            while view:
                view = view[process.stdin.write(view) or 0 :]
    with suppress(BrokenPipeError, ConnectionResetError):
        process.stdin.close()


def _listen(
    said: "queue.Queue[bytes | None]",
    name: str,
    timeout: float | None,
    on_text: Callable[[str], None] | None,
    on_wait: Callable[[], None] | None,
) -> str:
    deadline = None if timeout is None else time.monotonic() + timeout
    heard: list[bytes] = []
    while True:
        left = 1.0 if deadline is None else min(1.0, deadline - time.monotonic())
        if left <= 0:
            raise TimedOut(f"{name} did not end within {timeout:g} s")
        try:
            piece = said.get(timeout=left)
        except queue.Empty:
            if on_wait is not None:
                on_wait()
            continue
        if piece is None:
            return b"".join(heard).decode(errors="replace")
        heard.append(piece)
        if on_text is not None:
            on_text(piece.decode(errors="replace"))
