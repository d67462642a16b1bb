"""Profiles of a bundle on phones behind adb, the last of them an aarch64 one whose programs run under qemu."""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from phone import Phone

from edgeslim.devices import kit as kits
from edgeslim.devices.kit import Kit
from edgeslim.devices.remote import profile_on
from edgeslim.errors import DeviceError
from edgeslim.runtime.library import architecture
from edgeslim.runtime.profiler import Profile

ROOT = Path(__file__).parents[2]
SHORT = {"prompt_tokens": 4, "new_tokens": 4, "repeats": 2, "threads": 1}
Phones = Callable[..., Phone]


@pytest.fixture
def bench_dir(kit: Kit, tmp_path: Path) -> Path:
    """A folder as one makes for a phone; an emulator's phone is of a computer's architecture."""
    if architecture() != "x86_64":
        pytest.skip("the phone of this test runs programs for x86_64")
    folder = tmp_path / "for-phone"
    folder.mkdir()
    (folder / "edgeslim-bench").symlink_to(kit.program)
    assert kit.onnxruntime is not None
    (folder / "libonnxruntime.so").symlink_to(kit.onnxruntime)
    return folder


@pytest.mark.parametrize("old", [False, True])
def test_a_bundle_is_profiled_on_a_phone_and_copied_once(
    phones: Phones, stock_bundle: Path, bench_dir: Path, old: bool
) -> None:
    phone = phones(old=old)
    phone.most = 256 * 1024  # pieces of 4 KiB take an old phone's quarter of a minute
    labels: set[str] = set()

    first = profile_on(f"adb:{phone.serial}", stock_bundle, bench_dir=bench_dir, **SHORT)
    again = profile_on(
        f"adb:{phone.serial}",
        stock_bundle,
        bench_dir=bench_dir,
        **SHORT,
        progress=lambda done, total, label: labels.add(label),
    )

    assert first.device.startswith("Tiny Phone 1, ")
    assert first.engine == again.engine and ", onnxruntime 1." in first.engine
    assert first.decode_tok_s_p50 > 0 and first.threads == 1 and first.repeats == 2
    assert labels == {"hashing, kB", f"profiling on adb:{phone.serial}"}
    assert {path.parent.name for path in phone.store.rglob("*") if path.is_file()} == {"blobs"}
    assert not any((phone.store / "runs").iterdir())
    assert not any("python" in tool.name for tool in phone.bin.iterdir())


def test_a_phone_that_disappears_in_mid_copy_is_one_line_and_the_next_run_goes_on(
    phones: Phones, tiny_bundle: Path, bench_dir: Path
) -> None:
    phone = phones()
    phone.on_piece = lambda size: phone.stop() if size > 5_000_000 else None

    with pytest.raises(DeviceError, match=rf"^adb:{phone.serial}: the phone is (gone|offline)"):
        profile_on(f"adb:{phone.serial}", tiny_bundle, bench_dir=bench_dir, **SHORT)

    blobs = [path for path in (phone.store / "blobs").iterdir() if not path.name.startswith(".")]
    assert blobs and all(path.stat().st_size < 5_000_000 for path in blobs), "the large file has no name yet"


def test_a_phone_that_disappears_while_it_measures_is_one_line(
    phones: Phones, tiny_bundle: Path, bench_dir: Path
) -> None:
    phone = phones()
    phone.on_program = lambda: threading.Timer(0.05, phone.stop).start()

    with pytest.raises(DeviceError, match=rf"^adb:{phone.serial}: the phone is (gone|offline)"):
        profile_on(f"adb:{phone.serial}", tiny_bundle, bench_dir=bench_dir, new_tokens=100, repeats=1000)


def test_a_phone_that_is_not_allowed_in_ends_the_command_line_with_one_line(phones: Phones, tiny_bundle: Path) -> None:
    phone = phones(allows=False)
    run = [sys.executable, "-c", "from edgeslim.cli import main; main()"]

    done = subprocess.run(
        [*run, "profile", str(tiny_bundle), "--device", f"adb:{phone.serial}"], cwd=ROOT, capture_output=True, text=True
    )

    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith(f"error: adb:{phone.serial}: the phone has not allowed this computer")
    assert done.stderr.count("\n") == 1


def test_a_program_for_a_phone_is_asked_for_by_how_to_make_it(phones: Phones, tiny_bundle: Path) -> None:
    phone = phones(abi="arm64-v8a")

    with pytest.raises(DeviceError, match=r"^no edgeslim-bench for Android arm64-v8a at hand: build .* with the NDK"):
        profile_on(f"adb:{phone.serial}", tiny_bundle)


@pytest.fixture
def small_phone(phones: Phones) -> Iterator[Phone]:
    """A phone whose disk holds 4 MiB, and says that it has more."""
    phone = phones()
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(phone.home)]
    if (done := subprocess.run(mount, capture_output=True, text=True)).returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    (phone.bin / "df").unlink()
    (phone.bin / "df").write_text(f"#!{shutil.which('sh')}\necho header; echo none 9999999 1 9999998 1% /\n")
    (phone.bin / "df").chmod(0o755)
    yield phone
    subprocess.run(["umount", "-l", str(phone.home)], check=True)


def test_a_phone_that_fills_up_is_one_line_and_left_whole(
    small_phone: Phone, tiny_bundle: Path, bench_dir: Path
) -> None:
    with pytest.raises(DeviceError, match=rf"^adb:{small_phone.serial}: its disk is full; free some, or remove /data/"):
        profile_on(f"adb:{small_phone.serial}", tiny_bundle, bench_dir=bench_dir, **SHORT)

    assert not list((small_phone.store / "blobs").glob(".*.part"))


@pytest.fixture
def aarch64_phone(phones: Phones, tmp_path: Path) -> Phone:
    """A phone whose programs run under qemu, with a system of aarch64 libraries and processors."""
    qemu, libraries = shutil.which("qemu-aarch64"), Path("/usr/aarch64-linux-gnu/lib")
    if qemu is None:
        pytest.skip("no qemu-aarch64: the Debian package qemu-user has it")
    if not (libraries / "libstdc++.so.6").exists():
        pytest.skip("no aarch64 libraries: the Debian packages libc6-arm64-cross and libstdc++6-arm64-cross have them")
    system = tmp_path / "system"
    (system / "proc").mkdir(parents=True)
    (system / "lib").symlink_to(libraries)
    core = "processor\t: {}\nFeatures\t: fp asimd asimdhp asimddp\nCPU implementer\t: 0x41\nCPU architecture: 8\n"
    core += "CPU variant\t: 0x4\nCPU part\t: 0xd0b\nCPU revision\t: 1\n\n"
    (system / "proc" / "cpuinfo").write_text("".join(core.format(n) for n in range(os.cpu_count() or 1)))
    return phones(abi="arm64-v8a", emulator=[qemu, "-cpu", "max", "-L", str(system)])


@pytest.fixture(scope="session")
def aarch64_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """edgeslim-bench for aarch64, built here, with onnxruntime's library of the same version, from its wheel."""
    if shutil.which("aarch64-linux-gnu-g++") is None or shutil.which("cmake") is None:
        pytest.skip("no aarch64-linux-gnu-g++ or cmake: the Debian packages g++-aarch64-linux-gnu and cmake have them")
    build, folder = ROOT / "build" / "aarch64", tmp_path_factory.mktemp("aarch64")
    for command in (
        [
            "-S",
            ROOT / "runtime" / "native",
            "-B",
            build,
            "--toolchain",
            "cross/aarch64-linux.cmake",
            "-DEDGESLIM_BENCH=ON",
        ],
        ["--build", build, "-j", "2", "--target", "edgeslim-bench"],
    ):
        done = subprocess.run(["cmake", *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (folder / "edgeslim-bench").symlink_to(build / "edgeslim-bench")
    try:
        (folder / "libonnxruntime.so").symlink_to(kits.fetched_onnxruntime("aarch64"))
    except DeviceError as fault:
        pytest.skip(str(fault))
    return folder


@pytest.mark.slow
def test_an_aarch64_phone_runs_its_kernels_and_onnxruntime_for_its_architecture(
    aarch64_phone: Phone, aarch64_dir: Path, tiny_bundle: Path, stock_bundle: Path
) -> None:
    spec = f"adb:{aarch64_phone.serial}"

    packed: Profile = profile_on(spec, tiny_bundle, bench_dir=aarch64_dir, **SHORT)
    stock: Profile = profile_on(spec, stock_bundle, bench_dir=aarch64_dir, **SHORT)

    assert packed.isa == "neon-dot" and stock.isa == "neon-dotprod"
    assert ", onnxruntime 1." in stock.engine
    assert packed.device == stock.device == f"Tiny Phone 1, {len(os.sched_getaffinity(0))} cores"
    assert packed.weight_bytes < stock.weight_bytes
    assert min(packed.decode_tok_s_p50, stock.decode_tok_s_p50) > 0
