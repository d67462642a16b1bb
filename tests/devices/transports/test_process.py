"""Programs of this machine are fed, heard and ended."""

import sys

import psutil
import pytest

from edgeslim.devices.transports.process import Output, TimedOut, run_program


def test_what_a_program_says_is_heard_as_it_comes() -> None:
    heard: list[str] = []

    done = run_program(["sh", "-c", "echo one; echo two >&2; exit 3"], on_text=heard.append)

    assert (done.status, done.text) == (3, "one\ntwo\n")
    assert "".join(heard) == done.text


def test_pieces_go_in_and_a_program_that_stops_reading_ends_that() -> None:
    assert run_program(["wc", "-c"], pieces=[b"x" * 100_000] * 7).text.strip() == "700000"
    assert run_program(["sh", "-c", "exit 5"], pieces=(b"x" * 100_000 for _ in range(1000))).status == 5


def test_a_program_that_takes_too_long_is_not_left_running() -> None:
    with pytest.raises(TimedOut, match=r"did not end within 0.2 s"):
        run_program(["sleep", "60"], timeout=0.2)

    assert not [child for child in psutil.Process().children() if child.name() == "sleep"]


def test_who_waits_is_called_while_nothing_is_said() -> None:
    waits: list[int] = []

    run_program([sys.executable, "-c", "import time; time.sleep(1.5)"], on_wait=lambda: waits.append(1))

    assert waits


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a\nb\n\n", "b"),
        ("\rrun 1 of 2\rrun 2 of 2\nerror: no\n", "error: no"),
        ("  \n", "it said nothing"),
        ("", "it said nothing"),
    ],
)
def test_the_last_line_is_the_last_that_says_something(text: str, line: str) -> None:
    assert Output(status=1, text=text).last_line == line
