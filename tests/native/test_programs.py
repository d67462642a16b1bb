"""The native programs: variants compared without Python, the reader fuzzed, the ABI checked by the official header."""

import os
import re
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "runtime" / "native"
HEADER = "onnxruntime_c_api.h"
HEADER_FOLDERS = ("/usr/include/onnxruntime", "/usr/include/onnxruntime/core/session", "/usr/local/include/onnxruntime")


def _run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize(("program", "least"), [(("kernels_test", "3"), 10_000), (("sequences_test",), 1_000)])
def test_every_variant_gives_the_bits_of_the_scalar_one_under_sanitizers(
    sanitized: Path, program: tuple[str, ...], least: int
) -> None:
    printed = _run(sanitized / program[0], *program[1:])

    passed, failed = map(int, re.findall(r"(\d+) passed, (\d+) failed", printed)[0])
    assert passed > least
    assert failed == 0


def test_ten_seconds_of_damaged_matrices_leave_no_finding(sanitized: Path) -> None:
    seed = str(os.getpid())  # another one in every run; a finding names it

    printed = _run(sanitized / "fuzz", seed, "1000000", "--seconds", "10")

    executions, accepted = map(int, re.findall(r"(\d+) executions .* (\d+) accepted, no finding", printed)[0])
    assert 0 < accepted < executions, "the mutator must neither spoil everything nor nothing"


def test_the_declared_abi_is_that_of_the_official_header(compiler: str) -> None:
    folders = [os.environ.get("ONNXRUNTIME_INCLUDE", ""), *HEADER_FOLDERS]
    folder = next((folder for folder in folders if folder and (Path(folder) / HEADER).is_file()), None)
    if folder is None:
        pytest.skip(f"no {HEADER}: install libonnxruntime-dev, or name its folder in ONNXRUNTIME_INCLUDE")

    _run(compiler, "-std=c++17", "-fsyntax-only", "-I", SOURCE, "-I", folder, SOURCE / "tests" / "abi_check.cc")
