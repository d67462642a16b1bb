"""What travels is found, fetched or asked for, and never of another architecture."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from edgeslim.devices import kit as kits
from edgeslim.devices.kit import elf_architecture, fetched_onnxruntime, find_kit
from edgeslim.errors import DeviceError
from edgeslim.runtime.library import architecture


def _elf(machine: int) -> bytes:
    return b"\x7fELF\x02\x01\x01" + bytes(9) + (3).to_bytes(2, "little") + machine.to_bytes(2, "little") + bytes(44)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a program for aarch64."""
    made = tmp_path / "bench"
    made.mkdir()
    (made / "edgeslim-bench").write_bytes(_elf(183))
    return made


def test_the_architecture_is_read_from_the_elf_header(tmp_path: Path) -> None:
    found = {}
    for name, content in {"x": _elf(62), "a": _elf(183), "m": _elf(7), "no": b"#!/bin/sh\n" * 9, "empty": b""}.items():
        (tmp_path / name).write_bytes(content)
        found[name] = elf_architecture(tmp_path / name)

    assert found == {"x": "x86_64", "a": "aarch64", "m": "machine 7", "no": None, "empty": None}
    assert elf_architecture(Path(sys.executable).resolve()) == architecture()


def test_a_program_for_another_architecture_is_refused(folder: Path) -> None:
    with pytest.raises(DeviceError, match=r"edgeslim-bench: made for aarch64, and the device is x86_64; .*--bench-dir"):
        find_kit("x86_64", android=True, folder=folder)


def test_a_phone_s_library_comes_from_the_folder_or_the_aar_in_it(folder: Path) -> None:
    missing = find_kit("aarch64", android=True, folder=folder)
    assert missing.onnxruntime is None and "onnxruntime-android" in missing.missing

    with zipfile.ZipFile(folder / "onnxruntime-android-1.32.0.aar", "w") as archive:
        archive.writestr("jni/arm64-v8a/libonnxruntime.so", _elf(183))
        archive.writestr("jni/x86_64/libonnxruntime.so", _elf(62))
    from_archive = find_kit("aarch64", android=True, folder=folder)
    assert from_archive.onnxruntime is not None and from_archive.onnxruntime.read_bytes() == _elf(183)
    assert find_kit("aarch64", android=True, folder=folder) == from_archive

    (folder / "libonnxruntime.so").write_bytes(_elf(183))
    assert find_kit("aarch64", android=True, folder=folder).onnxruntime == folder / "libonnxruntime.so"


def test_the_folder_may_be_named_by_the_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "libonnxruntime.so").write_bytes(_elf(183))
    monkeypatch.setenv("EDGESLIM_BENCH_DIR", str(folder))

    assert find_kit("aarch64").program == folder / "edgeslim-bench"

    monkeypatch.setenv("EDGESLIM_BENCH_DIR", str(folder / "nowhere"))
    with pytest.raises(DeviceError, match="nowhere: no such folder; expected one with edgeslim-bench"):
        find_kit("aarch64")


class Pip:
    """What pip does, without the network: it downloads the wheel that it is asked for, or fails."""

    def __init__(self, *, works: bool = True) -> None:
        self.calls: list[list[str]] = []
        self._works = works

    def __call__(self, command: list[str], **options: object) -> "subprocess.CompletedProcess[str]":
        self.calls.append(command)
        if self._works:
            wheel = Path(command[command.index("-d") + 1]) / "onnxruntime-1.0-cp311-cp311-manylinux_2_28_aarch64.whl"
            with zipfile.ZipFile(wheel, "w") as archive:
                archive.writestr("onnxruntime/capi/libonnxruntime_providers_shared.so", b"no")
                archive.writestr("onnxruntime/capi/libonnxruntime.so.1.0", _elf(183))
        return subprocess.CompletedProcess(command, 0 if self._works else 1, "", "ERROR: no network\n")


def test_the_library_for_another_architecture_is_fetched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pip = Pip()
    monkeypatch.setattr(kits.subprocess, "run", pip)

    first = fetched_onnxruntime("aarch64")

    assert first.name == "libonnxruntime.so.1.0" and first.read_bytes() == _elf(183)
    assert fetched_onnxruntime("aarch64") == first
    assert len(pip.calls) == 1
    assert "--platform=manylinux_2_28_aarch64" in pip.calls[0] and "--only-binary=:all:" in pip.calls[0]


def test_a_library_that_cannot_be_fetched_is_said_and_nothing_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(kits.subprocess, "run", Pip(works=False))

    with pytest.raises(DeviceError, match=r"onnxruntime [\d.]+ for aarch64 Linux cannot be fetched \(ERROR: no net"):
        fetched_onnxruntime("aarch64")

    assert not any(path.is_file() for path in (tmp_path / "cache").rglob("*"))
