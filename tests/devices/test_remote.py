"""Profiles of a bundle on machines behind ssh: what they say, what travels and when, and every fault in one line."""

import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import pytest
from ssh_server import TOOLS, SshServer

from edgeslim.devices.kit import Kit
from edgeslim.devices.remote import profile_on
from edgeslim.errors import DeviceError, RecipeError
from edgeslim.runtime.memory import bundle_bytes
from edgeslim.runtime.profiler import Profile

ROOT = Path(__file__).parents[2]
SHORT = {"prompt_tokens": 4, "new_tokens": 4, "repeats": 2, "threads": 1}
Board = Callable[..., SshServer]


class Watcher:
    """A progress bar that remembers what it was called for, and may do something at a share of it."""

    def __init__(self, label: str = "", act: Callable[[], None] = lambda: None) -> None:
        self.labels: dict[str, int] = {}
        self._label, self._act = label, act

    def __call__(self, done: int, total: int, label: str) -> None:
        self.labels[label] = max(done, self.labels.get(label, 0))
        if self._label and label.startswith(self._label) and 0.2 * total < done < 0.9 * total:
            self._label = ""
            self._act()


def _command(bundle: Path) -> list[str]:
    run = [sys.executable, "-c", "from edgeslim.cli import main; main()"]
    return [*run, "profile", str(bundle), "--device", "ssh://board", "--json"]


def _store(board: SshServer) -> list[str]:
    return sorted(path.relative_to(board.store).as_posix() for path in board.store.rglob("*") if path.is_file())


def test_a_profile_over_ssh_says_what_the_local_one_says_and_the_second_copies_nothing(
    boards: Board, tiny_bundle: Path, kit: Kit
) -> None:
    board = boards()
    options = [part for name, value in SHORT.items() for part in (f"--{name.replace('_', '-')}", str(value))]

    done = subprocess.run([*_command(tiny_bundle), *options], capture_output=True, text=True, cwd=ROOT)

    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    profile = Profile.from_json(value)
    assert {"phases", "samples"}.isdisjoint(value)
    assert profile.measured and profile.engine.startswith("edgeslim ")
    assert (profile.prompt_tokens, profile.new_tokens, profile.repeats, profile.threads) == (4, 4, 2, 1)
    assert profile.bundle_bytes == bundle_bytes(tiny_bundle)
    assert profile.decode_tok_s_p50 > 0 and profile.peak_rss_bytes > profile.base_rss_bytes > 0
    before = {path: path.stat().st_mtime_ns for path in board.store.rglob("*") if path.is_file()}
    assert all(path.parent.name == "blobs" for path in before), "what a run needs is removed after it"

    watcher = Watcher()
    again = profile_on("ssh://board", tiny_bundle, **SHORT, progress=watcher)

    assert not [label for label in watcher.labels if label.startswith("copying")]
    assert watcher.labels["profiling on ssh://board"] == 3
    assert {path: path.stat().st_mtime_ns for path in board.store.rglob("*") if path.is_file()} == before
    assert again.isa == profile.isa
    assert not (board.bin / "python3").exists() and not (board.bin / "python").exists()


def test_a_bundle_of_stock_operators_runs_in_the_onnxruntime_that_went_along(
    board: SshServer, stock_bundle: Path, kit: Kit
) -> None:
    profile = profile_on("ssh://board", stock_bundle, **SHORT)

    assert profile.engine.endswith(f", onnxruntime {metadata.version('onnxruntime')}")
    assert profile.weight_bytes == (stock_bundle / "model.onnx.data").stat().st_size


def test_only_what_changed_is_copied(board: SshServer, bundle: Path, kit: Kit) -> None:
    profile_on("ssh://board", bundle, **SHORT)
    before = set(_store(board))
    (bundle / "more.txt").write_bytes(b"x" * 5_000)
    watcher = Watcher()

    profile_on("ssh://board", bundle, **SHORT, progress=watcher)

    assert watcher.labels["copying to ssh://board, kB"] == 5
    assert len(set(_store(board)) - before) == 1


def test_kernel_libraries_stay_here_as_the_program_has_the_kernels(board: SshServer, bundle: Path, kit: Kit) -> None:
    manifest = json.loads((bundle / "edgeslim.json").read_text())
    assert manifest["libraries"], "the bundle has one"

    profile = profile_on("ssh://board", bundle, **SHORT)

    sizes = {(board.store / name).stat().st_size for name in _store(board)}
    assert all((bundle / place).stat().st_size not in sizes for place in manifest["libraries"].values())
    assert profile.isa != "function bodies"


def test_a_machine_without_sha256sum_hashes_by_the_program(boards: Board, bundle: Path, kit: Kit) -> None:
    board = boards(tools=[tool for tool in TOOLS if tool != "sha256sum"])

    assert profile_on("ssh://board", bundle, **SHORT).measured

    assert not (board.bin / "sha256sum").exists()


def test_a_connection_lost_in_mid_copy_leaves_nothing_half_written(board: SshServer, bundle: Path, kit: Kit) -> None:
    watcher = Watcher("copying", board.drop_connections)

    with pytest.raises(DeviceError, match=r"^ssh://board: the connection was lost"):
        profile_on("ssh://board", bundle, **SHORT, progress=watcher)

    whole = [name for name in _store(board) if not name.endswith(".part")]
    assert all(_hash(board.store / name) == Path(name).name for name in whole)
    assert kit.onnxruntime is not None
    assert f"blobs/{_hash(kit.onnxruntime)}" not in whole, "the largest file was on its way"
    assert profile_on("ssh://board", bundle, **SHORT).measured
    assert not [name for name in _store(board) if name.endswith(".part")]


def test_what_a_killed_copy_leaves_is_removed_by_the_next_run(board: SshServer, bundle: Path, kit: Kit) -> None:
    with (bundle / "large.bin").open("wb") as file:
        file.truncate(400_000_000)
    copying = subprocess.Popen(_command(bundle), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not any(_size(part) > 1 << 20 for part in board.store.glob("blobs/.*.part")):
            assert copying.poll() is None and time.monotonic() < deadline, "it ended before it could be killed"
            time.sleep(0.002)
    finally:
        copying.send_signal(signal.SIGKILL)
        copying.wait()
    (bundle / "large.bin").unlink()
    assert [name for name in _store(board) if name.endswith(".part")]

    profile_on("ssh://board", bundle, **SHORT)

    assert not [name for name in _store(board) if name.endswith(".part")]


def _size(file: Path) -> int:
    """Bytes of a file that may be renamed at any moment; 0 where it is gone."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


@pytest.fixture
def small_disk(board: SshServer) -> Iterator[SshServer]:
    """A machine whose disk holds 4 MiB."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small tmpfs needs root")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "none", board.cache], capture_output=True, text=True
    )
    if done.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    yield board
    subprocess.run(["umount", "-l", board.cache], check=True)


def test_a_full_disk_is_said_before_anything_is_copied(small_disk: SshServer, bundle: Path, kit: Kit) -> None:
    watcher = Watcher()

    with pytest.raises(DeviceError, match=r"^ssh://board: its disk is full: [\d.]+ MB to copy, 4.\d MB free at /"):
        profile_on("ssh://board", bundle, **SHORT, progress=watcher)

    assert not [label for label in watcher.labels if label.startswith("copying")]
    assert _store(small_disk) == []


def test_a_disk_that_fills_up_meanwhile_is_said_and_left_whole(small_disk: SshServer, bundle: Path, kit: Kit) -> None:
    _replace(small_disk.bin / "df", "echo header; echo none 9999999 1 9999998 1% /\n")

    with pytest.raises(DeviceError, match=r"^ssh://board: its disk is full; free some, or remove /\S+/blobs"):
        profile_on("ssh://board", bundle, **SHORT)

    assert not [name for name in _store(small_disk) if name.endswith(".part")]


def test_a_library_for_another_architecture_is_not_sent(
    board: SshServer, bundle: Path, kit: Kit, tmp_path: Path
) -> None:
    shutil.copyfile(kit.program, tmp_path / "edgeslim-bench")
    (tmp_path / "libonnxruntime.so").write_bytes(_elf(183 if _machine(kit.program) != 183 else 62))

    with pytest.raises(DeviceError, match=r"libonnxruntime.so: made for \w+, and the device is \w+; .*--bench-dir$"):
        profile_on("ssh://board", bundle, bench_dir=tmp_path, **SHORT)

    assert _store(board) == []


def test_a_machine_that_runs_other_programs_than_it_says_is_found_out(
    board: SshServer, bundle: Path, tmp_path: Path
) -> None:
    other = "aarch64" if os.uname().machine == "x86_64" else "x86_64"
    _replace(board.bin / "uname", f'[ "$1" = -m ] && echo {other} || echo Linux\n')
    for name in ("edgeslim-bench", "libonnxruntime.so"):
        (tmp_path / name).write_bytes(_elf(183 if other == "aarch64" else 62))

    with pytest.raises(DeviceError, match=f"^ssh://board: it runs no programs for {other}, which it says it is"):
        profile_on("ssh://board", bundle, bench_dir=tmp_path, **SHORT)


@pytest.mark.parametrize("machine", ["armv7l", "riscv64"])
def test_a_machine_that_there_are_no_kernels_for_is_refused(board: SshServer, bundle: Path, machine: str) -> None:
    _replace(board.bin / "uname", f'[ "$1" = -m ] && echo {machine} || echo Linux\n')

    with pytest.raises(
        DeviceError, match=f"^ssh://board: {machine}, for which there are no kernels; expected x86_64 or"
    ):
        profile_on("ssh://board", bundle, **SHORT)


def test_a_32_bit_system_on_a_64_bit_kernel_is_refused(board: SshServer, bundle: Path) -> None:
    _replace(board.bin / "getconf", "echo 32\n")

    with pytest.raises(DeviceError, match=r"^ssh://board: a 32-bit system on \w+, for which there are no kernels"):
        profile_on("ssh://board", bundle, **SHORT)


def test_a_library_that_the_machine_lacks_is_named(
    board: SshServer, stock_bundle: Path, kit: Kit, tmp_path: Path
) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    (tmp_path / "empty.c").write_text("int nothing;")
    for made, options in (
        ("libabsent.so.3", ["-Wl,-soname,libabsent.so.3"]),
        ("libonnxruntime.so", ["./libabsent.so.3"]),
    ):
        command = [compiler, "-shared", "-fPIC", "-Wl,--no-as-needed", "-o", made, "empty.c", *options]
        subprocess.run(command, cwd=tmp_path, check=True)
    (tmp_path / "libabsent.so.3").unlink()
    shutil.copyfile(kit.program, tmp_path / "edgeslim-bench")

    with pytest.raises(DeviceError, match=r"^ssh://board: its system lacks libabsent.so.3, which ONNX Runtime needs"):
        profile_on("ssh://board", stock_bundle, bench_dir=tmp_path, **SHORT)


def test_a_file_that_was_damaged_there_is_named_and_copied_again(board: SshServer, bundle: Path, kit: Kit) -> None:
    profile_on("ssh://board", bundle, **SHORT)
    size = (bundle / "model.onnx").stat().st_size
    blob = next(path for path in board.store.glob("blobs/*") if path.stat().st_size == size)
    blob.write_bytes(b"\0" * size)

    with pytest.raises(DeviceError, match=r"^ssh://board: bundle/model.onnx had been damaged there and is removed"):
        profile_on("ssh://board", bundle, **SHORT)

    assert profile_on("ssh://board", bundle, **SHORT).measured


def test_what_the_program_says_is_passed_on(board: SshServer, bundle: Path, kit: Kit) -> None:
    (bundle / "model.onnx").unlink()

    with pytest.raises(DeviceError, match=r"^ssh://board: bundle: not a bundle: it has no model.onnx$"):
        profile_on("ssh://board", bundle, **SHORT)


def test_more_tokens_than_the_model_holds_are_refused_before_anything_travels(tiny_bundle: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"^prompt_tokens \+ new_tokens must be at most \d+, the model's context, got 1"
    ):
        profile_on("ssh://nosuch.invalid", tiny_bundle, prompt_tokens=100_000)


def test_another_engine_does_not_travel(tiny_bundle: Path) -> None:
    with pytest.raises(RecipeError, match="engine must be auto or native on another device"):
        profile_on("ssh://board", tiny_bundle, engine="genai")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("shh://pi", "device 'shh://pi': expected local, ssh://"),
        ("jetson-orin-nan", "or with --estimate a known device; did you mean 'jetson-orin-nano'"),
        ("pi@raspberry", "expected local, ssh://.* or adb.*; did you mean 'ssh://pi@raspberry'"),
        ("localhost", "did you mean 'ssh://localhost'"),
        ("ftp://x/y", r"or with --estimate a known device \(`edgeslim devices list`\)$"),
        (
            "jetson-orin-nano",
            "is a device file, no way to a device: add --estimate to reckon with it, or name local, ssh://",
        ),
    ],
)
def test_a_device_that_is_no_transport_says_what_would_be(tiny_bundle: Path, spec: str, message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        profile_on(spec, tiny_bundle)


def test_this_machine_is_measured_by_a_program_that_is_named(
    tiny_bundle: Path, kit: Kit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    profile = profile_on("local", tiny_bundle, bench_dir=Path(kit.program).parent, **SHORT)

    assert profile.measured and profile.peak_rss_bytes > profile.base_rss_bytes
    assert not any((tmp_path / "cache" / "edgeslim" / "runs").iterdir())


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _elf(machine: int) -> bytes:
    """Return the head of a 64-bit ELF program for `machine`, and nothing that could run."""
    return b"\x7fELF\x02\x01\x01" + bytes(9) + (2).to_bytes(2, "little") + machine.to_bytes(2, "little") + bytes(108)


def _machine(path: Path) -> int:
    return int.from_bytes(path.read_bytes()[18:20], "little")


def _replace(tool: Path, text: str) -> None:
    """Let the machine's program `tool` be a script of its shell."""
    tool.unlink()
    tool.write_text(f"#!{shutil.which('sh')}\n{text}")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
