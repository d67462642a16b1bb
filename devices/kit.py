"""What a bundle needs beside it on another machine: edgeslim-bench and ONNX Runtime's library, for its architecture.

edgeslim-bench holds the native runtime and every kernel of its architecture, so that no other library of ours travels.
The library of ONNX Runtime is the one of the version installed here, so that figures of several devices come from the
same software: a Python that a device may have is left alone, whatever onnxruntime it imports.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from edgeslim.errors import DeviceError
from edgeslim.runtime.library import architecture
from edgeslim.runtime.native_library import onnxruntime_library

PROGRAM = "edgeslim-bench"
FOLDER_VARIABLE = "EDGESLIM_BENCH_DIR"
"""Environment variable: the folder of `--bench-dir`."""

ARCHITECTURES = ("x86_64", "aarch64")

_ANDROID_ABI = {"aarch64": "arm64-v8a", "x86_64": "x86_64"}
_ELF_MACHINES = {3: "i386", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv64"}
_WHEELS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17")


@dataclass(frozen=True, kw_only=True)
class Kit:
    """The program and the library that go along. Without a library, `missing` says why there is none: bundles of our
    operators alone run without it."""

    program: Path
    onnxruntime: Path | None = None
    missing: str = ""


def find_kit(arch: str, *, android: bool = False, folder: Path | None = None) -> Kit:
    """Return the kit for a machine of `arch` that runs Linux or Android; what `folder` has comes first.

    The library for another architecture is fetched once from onnxruntime's own wheel, by pip.
    Raises: DeviceError where the program is not at hand, or a part is for another architecture.
    """
    if folder is None and (named := os.environ.get(FOLDER_VARIABLE)):
        folder = Path(named)
    if folder is not None and not folder.is_dir():
        raise DeviceError(f"bench_dir {folder}: no such folder; expected one with {PROGRAM}")
    program = _find_program(arch, android, folder)
    check_architecture(program, arch)
    try:
        library = _find_onnxruntime(arch, android, folder)
    except DeviceError as fault:
        return Kit(program=program, missing=str(fault))
    check_architecture(library, arch)
    return Kit(program=program, onnxruntime=library)


def check_architecture(path: Path, arch: str) -> None:
    """Raise DeviceError unless the program or library at `path` is made for `arch`."""
    found = elf_architecture(path)
    if found != arch:
        kind = "no ELF file" if found is None else f"made for {found}"
        raise DeviceError(f"{path}: {kind}, and the device is {arch}; name a folder with one for it by --bench-dir")


def elf_architecture(path: Path) -> str | None:
    """Return the architecture that an ELF file is made for, None for any other file.

    Source: System V ABI, ELF header: e_ident, e_type, e_machine.
    """
    with path.open("rb") as file:
        head = file.read(20)
    if len(head) < 20 or head[:4] != b"\x7fELF":
        return None
    machine = int.from_bytes(head[18:20], "little" if head[5] == 1 else "big")
    return _ELF_MACHINES.get(machine, f"machine {machine}")


def _find_program(arch: str, android: bool, folder: Path | None) -> Path:
    places = _own_places(arch) if folder is None and not android else []
    if folder is not None:
        places = [folder / PROGRAM, *([] if android else _own_places(arch))]
    found = next((place for place in places if place.is_file()), None)
    if found is not None:
        return found
    if android:
        raise DeviceError(
            f"no {PROGRAM} for Android {_ANDROID_ABI[arch]} at hand: build runtime/native with the NDK's CMake "
            "toolchain and name its folder by --bench-dir, with libonnxruntime.so or onnxruntime-android's .aar in it"
        )
    hint = "`make cross` builds it in a checkout" if arch == "aarch64" else "install edgeslim where a C++ compiler is"
    raise DeviceError(f"no {PROGRAM} for {arch} at hand; {hint}, or name its folder by --bench-dir")


def _own_places(arch: str) -> list[Path]:
    """Return where this installation may have the program: built in a checkout, in the package, or as installed."""
    package, inside = Path(__file__).parent.parent, "runtime" if _is_own(arch) else f"runtime/lib/{arch}"
    places = [package / "build" / ("native" if _is_own(arch) else arch) / PROGRAM, package / inside / PROGRAM]
    with suppress(metadata.PackageNotFoundError):
        places.append(Path(str(metadata.distribution("edgeslim").locate_file(f"edgeslim/{inside}/{PROGRAM}"))))
    return places


def _is_own(arch: str) -> bool:
    return sys.platform == "linux" and arch == architecture()


def _find_onnxruntime(arch: str, android: bool, folder: Path | None) -> Path:
    if folder is not None:
        found = next(iter(sorted(folder.glob("libonnxruntime.so*"))), None)
        if found is not None:
            return found
        archive = next(iter(sorted(folder.glob("*.aar"))), None)
        if archive is not None:
            member = f"jni/{_ANDROID_ABI[arch]}/libonnxruntime.so"
            return _unpacked(archive, [member], _cache() / f"{archive.stem}-{archive.stat().st_size}-{arch}")
    if android:
        raise DeviceError(
            "no libonnxruntime.so for Android at hand: put it into the folder of --bench-dir, or onnxruntime-android's "
            ".aar (com.microsoft.onnxruntime:onnxruntime-android of Maven Central)"
        )
    if _is_own(arch):
        found = onnxruntime_library()
        if found is None:
            raise DeviceError("onnxruntime's library is not installed here; install edgeslim[cpu], or use --bench-dir")
        return found
    return fetched_onnxruntime(arch)


def fetched_onnxruntime(arch: str) -> Path:
    """Return the library of onnxruntime's wheel for `arch` Linux, of the version installed here, from the cache or by
    pip."""
    version = _installed_version()
    folder = _cache() / f"onnxruntime-{version}-linux-{arch}"
    if (kept := next(folder.glob("libonnxruntime.so*"), None)) is not None:
        return kept
    with tempfile.TemporaryDirectory(prefix="edgeslim-") as wheels:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary=:all:", *(f"--platform={tag}_{arch}" for tag in _WHEELS), "-d", wheels]
        print(f"fetching onnxruntime {version} for {arch} Linux", file=sys.stderr)
        done = subprocess.run([*command, f"onnxruntime=={version}"], capture_output=True, text=True)
        wheel = next(Path(wheels).glob("*.whl"), None)
        if done.returncode != 0 or wheel is None:
            reason = next(iter(reversed(done.stderr.strip().splitlines())), "pip said nothing")
            raise DeviceError(
                f"onnxruntime {version} for {arch} Linux cannot be fetched ({reason}); "
                "name a folder with its libonnxruntime.so by --bench-dir"
            )
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.startswith("onnxruntime/capi/libonnxruntime.so")]
        return _unpacked(wheel, names, folder)


def _installed_version() -> str:
    owners = metadata.packages_distributions().get("onnxruntime")
    if not owners:
        raise DeviceError("onnxruntime is not installed here, whose version a device is to use; install edgeslim[cpu]")
    return metadata.version(owners[0]).partition("+")[0]


def _unpacked(archive: Path, names: Iterable[str], folder: Path) -> Path:
    """Return the first of the members `names` of a zip file, kept in `folder`, which appears whole or not at all."""
    if (kept := next(folder.glob("libonnxruntime.so*"), None)) is not None:
        return kept
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix=".partial-", dir=folder.parent) as partial,
        zipfile.ZipFile(archive) as file,
    ):
        name = next((name for name in names if name in file.namelist()), None)
        if name is None:
            raise DeviceError(f"{archive}: no {' or '.join(names) or 'libonnxruntime.so'} in it")
        made = Path(partial) / "made"
        made.mkdir()
        with file.open(name) as source, (made / Path(name).name).open("wb") as target:
            shutil.copyfileobj(source, target)
        with suppress(OSError):  # another process was first
            made.rename(folder)
    return folder / Path(name).name


def _cache() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "edgeslim" / "onnxruntime"
