"""The native programs: variants compared and the runtime tried without Python, readers fuzzed, the ABI checked by the
official header."""

import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from edgeslim.runtime import machine
from edgeslim.runtime.generate import generate
from edgeslim.runtime.memory import bundle_bytes
from edgeslim.runtime.native_library import onnxruntime_library
from edgeslim.runtime.profiler import Profile
from edgeslim.runtime.session import OrtSession

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "runtime" / "native"
MODELS = ROOT / "examples" / "models"
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


def test_five_seconds_of_damaged_configurations_leave_no_finding(sanitized: Path) -> None:
    printed = _run(sanitized / "fuzz_bundle", str(os.getpid()), "1000000", "--seconds", "5")

    executions, accepted = map(int, re.findall(r"(\d+) executions .* (\d+) accepted, no finding", printed)[0])
    assert 0 < accepted < executions, "the mutator must neither spoil everything nor nothing"


def test_graphs_run_without_onnx_runtime_under_sanitizers(sanitized: Path) -> None:
    printed = _run(sanitized / "builtin_test")

    passed, failed = map(int, re.findall(r"(\d+) passed, (\d+) failed", printed)[0])
    assert passed > 50
    assert failed == 0


def test_five_seconds_of_damaged_graphs_leave_no_finding(sanitized: Path) -> None:
    printed = _run(sanitized / "fuzz_graph", str(os.getpid()), "1000000", "--seconds", "5")

    executions, accepted = map(int, re.findall(r"(\d+) executions .* (\d+) accepted, no finding", printed)[0])
    assert 0 < accepted < executions, "the mutator must neither spoil everything nor nothing"


@pytest.fixture(scope="module")
def onnxruntime() -> Path:
    found = onnxruntime_library()
    if found is None:
        pytest.skip("onnxruntime is not installed")
    return found


@pytest.mark.parametrize("family", ["llama", "mamba2"])
def test_the_runtime_holds_under_sanitizers_and_leaks_nothing(
    sanitized: Path, onnxruntime: Path, family: str, tmp_path: Path
) -> None:
    from edgeslim.exporters.bundle import export_checkpoint

    export_checkpoint(MODELS / f"tiny-{family}", tmp_path, weights="int8", lowering="kernel")
    session = OrtSession(tmp_path, threads=1)

    printed = _run(sanitized / "engine_test", tmp_path, onnxruntime)

    passed, failed = map(int, re.findall(r"(\d+) passed, (\d+) failed", printed)[0])
    assert passed > 900
    assert failed == 0
    tokens = re.findall(r"^tokens (.*)$", printed, re.MULTILINE)[0].split()
    assert list(map(int, tokens)) == list(generate(session, [5, 60, 7, 200, 11, 9], 24))


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The bundled models as packed int8."""
    from edgeslim.exporters.bundle import export_checkpoint

    bundles = {family: tmp_path_factory.mktemp(family) for family in ("llama", "mamba2")}
    for family, bundle in bundles.items():
        export_checkpoint(MODELS / f"tiny-{family}", bundle, weights="int8", lowering="kernel")
    return list(bundles.values())


@pytest.mark.slow
def test_sessions_by_the_hundred_keep_memory_flat_and_leak_nothing(
    sanitized: Path, onnxruntime: Path, packed: list[Path]
) -> None:
    printed = _run(sanitized / "soak", onnxruntime, "3000", "400", *packed)

    counts = re.findall(
        r"^(\d+) tokens, 400 sessions, 16 models .* (\d+) restored, (\d+) stopped", printed, re.MULTILINE
    )
    assert [int(number) for number in counts[0]] == [3000, 50, 50]


@pytest.mark.slow
def test_damaged_bundles_are_refused_or_crash_in_onnxruntime_alone(
    sanitized: Path, onnxruntime: Path, packed: list[Path]
) -> None:
    printed = _run(sanitized / "fuzz_load", onnxruntime, str(os.getpid()), "300", *packed)

    refused, loaded, findings = map(int, re.findall(r"(\d+) refused, (\d+) loaded .* (\d+) findings", printed)[0])
    assert findings == 0
    assert 0 < loaded < refused


@pytest.mark.slow
def test_tokens_are_those_of_transformers_dense_packed_and_reduced(
    sanitized: Path, onnxruntime: Path, tmp_path: Path
) -> None:
    script = ROOT / "tests" / "interop" / "native_tokens.py"
    _run(sys.executable, script, tmp_path / "tokens")

    printed = _run(sys.executable, script, tmp_path / "tokens", "--ort", onnxruntime, "--run", sanitized / "tokens")

    assert re.findall(r": (\d+) of (\d+) texts", printed) == [("4", "4")] * 10


def test_the_bench_program_prints_the_keys_of_a_profile(sanitized: Path, onnxruntime: Path, tmp_path: Path) -> None:
    from edgeslim.exporters.bundle import export_checkpoint

    export_checkpoint(MODELS / "tiny-llama", tmp_path, weights="fp32", lowering="dense")
    options = ["--prompt-tokens", "4", "--new-tokens", "3", "--repeats", "2", "--threads", "1", "--ort", onnxruntime]

    printed = json.loads(_run(sanitized / "edgeslim-bench", tmp_path, *options))

    assert list(printed) == [field.name for field in fields(Profile)]
    profile = Profile.from_json(printed)
    assert (profile.prompt_tokens, profile.new_tokens, profile.repeats, profile.warmup) == (4, 3, 2, 1)
    assert profile.device == machine.describe()
    assert profile.isa == machine.isa()
    assert profile.bundle_bytes == bundle_bytes(tmp_path)
    assert profile.weight_bytes == (tmp_path / "model.onnx.data").stat().st_size
    assert profile.peak_rss_bytes > profile.base_rss_bytes > 0


def test_sensors_are_read_from_before_the_load_to_after_the_last_run(
    sanitized: Path, onnxruntime: Path, tmp_path: Path
) -> None:
    from edgeslim.exporters.bundle import export_checkpoint

    bundle, sensor = tmp_path / "bundle", tmp_path / "temp"
    bundle.mkdir()
    export_checkpoint(MODELS / "tiny-llama", bundle, weights="fp32", lowering="dense")
    sensor.write_text('42"000\n')
    options = ["--prompt-tokens", "2", "--new-tokens", "2", "--repeats", "2", "--ort", onnxruntime]

    printed = json.loads(
        _run(sanitized / "edgeslim-bench", bundle, *options, "--sample", sensor, "--sample", tmp_path / "none")
    )

    phases = [(phase["phase"], phase["run"]) for phase in printed["phases"]]
    runs = [(phase, run) for run in (-1, 0, 1) for phase in ("prefill", "decode")]
    assert phases == [("load", 0), *runs], "a warm-up is below 0"
    assert all(one["end"] <= next_["begin"] for one, next_ in itertools.pairwise(printed["phases"]))
    assert {(sample["path"], sample["text"]) for sample in printed["samples"]} == {(str(sensor), '42"000\n')}
    assert printed["samples"][0]["seconds"] <= printed["phases"][0]["end"]
    assert printed["samples"][-1]["seconds"] >= printed["phases"][-1]["end"]


def test_hashes_of_files_are_those_of_sha256sum(sanitized: Path, tmp_path: Path) -> None:
    contents = {size: bytes(i * 7 % 256 for i in range(size)) for size in (0, 1, 55, 56, 63, 64, 65, 119, 120, 200_000)}
    for size, content in contents.items():
        (tmp_path / str(size)).write_bytes(content)

    printed = _run(sanitized / "edgeslim-bench", "--sha256", *(tmp_path / str(size) for size in contents))

    expected = [f"{hashlib.sha256(content).hexdigest()}  {tmp_path / str(size)}" for size, content in contents.items()]
    assert printed.splitlines() == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["/nowhere"], "error: /nowhere: no such bundle folder"),
        (["/nowhere", "--threads", "x"], "an option that is not known, or a value that is no count"),
        ([], "a bundle's folder is missing"),
    ],
)
def test_the_bench_program_says_in_one_line_what_is_wrong(sanitized: Path, options: list[str], message: str) -> None:
    done = subprocess.run([sanitized / "edgeslim-bench", *options], capture_output=True, text=True)

    assert done.returncode in (1, 2)
    assert message in done.stderr


def test_the_declared_abi_is_that_of_the_official_header(compiler: str) -> None:
    folders = [os.environ.get("ONNXRUNTIME_INCLUDE", ""), *HEADER_FOLDERS]
    folder = next((folder for folder in folders if folder and (Path(folder) / HEADER).is_file()), None)
    if folder is None:
        pytest.skip(f"no {HEADER}: install libonnxruntime-dev, or name its folder in ONNXRUNTIME_INCLUDE")

    _run(compiler, "-std=c++17", "-fsyntax-only", "-I", SOURCE, "-I", folder, SOURCE / "tests" / "abi_check.cc")
