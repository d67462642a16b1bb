"""Writes a folder that qemu-aarch64 takes for the root of another machine: `aarch64_root.py FOLDER [PIP_ARGUMENT…]`.

It holds the cross compiler's C library, ONNX Runtime for aarch64 in the installed version, from its wheel, and what the
kernel says of one ARM processor: under qemu-user ONNX Runtime would read of the host's and, finding no ARM, crash.
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib.metadata import version
from pathlib import Path

SYSROOT = Path("/usr/aarch64-linux-gnu/lib")
CPU = """processor\t: 0
BogoMIPS\t: 100.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x3
CPU part\t: 0xd0c
CPU revision\t: 1

"""
"""A Neoverse N1, as Linux describes it."""


def main(folder: Path, pip_arguments: list[str]) -> None:
    """Write the folder, unless it is complete."""
    library = folder / "libonnxruntime.so"
    wanted = f"onnxruntime=={version('onnxruntime')}"
    stamp = folder / "version.txt"
    if library.is_file() and stamp.is_file() and stamp.read_text() == wanted:
        return
    if not SYSROOT.is_dir():
        raise SystemExit(f"no {SYSROOT}: install g++-aarch64-linux-gnu")
    shutil.rmtree(folder, ignore_errors=True)
    processors = folder / "sys/devices/system/cpu"
    processors.mkdir(parents=True)
    for name in ("possible", "present"):
        (processors / name).write_text("0\n")
    (folder / "proc").mkdir()
    (folder / "proc/cpuinfo").write_text(CPU)
    (folder / "lib").symlink_to(SYSROOT)
    library.write_bytes(onnxruntime(wanted, pip_arguments))
    stamp.write_text(wanted)


def onnxruntime(wanted: str, pip_arguments: list[str]) -> bytes:
    """Return ONNX Runtime's library from its wheel for aarch64 Linux."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", *pip_arguments]
        platform = ["--platform", "manylinux_2_28_aarch64", "--only-binary=:all:", "--no-deps", "-d", folder, wanted]
        subprocess.run([*command, *platform], check=True)
        wheel = zipfile.ZipFile(next(Path(folder).glob("*.whl")))
        return wheel.read(next(name for name in wheel.namelist() if "capi/libonnxruntime.so" in name))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
