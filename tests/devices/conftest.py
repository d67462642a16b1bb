"""What tests of devices share: a tiny bundle, the program and library that travel, machines behind ssh, phones."""

import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from phone import Phone
from ssh_server import SshServer, need_sshd

from edgeslim.devices.kit import Kit, find_kit
from edgeslim.errors import DeviceError
from edgeslim.runtime.library import architecture

Board = Callable[..., SshServer]


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama in packed int8, on operators of ours."""
    import torch
    from families import save_tiny

    from edgeslim.exporters.bundle import export_checkpoint

    torch.set_num_threads(1)  # models this small only lose by a second one
    root = tmp_path_factory.mktemp("tiny")
    (root / "bundle").mkdir()
    export_checkpoint(save_tiny(root / "checkpoint", "llama"), root / "bundle", weights="int8", lowering="kernel")
    return root / "bundle"


@pytest.fixture(scope="session")
def stock_bundle(tiny_bundle: Path) -> Path:
    """The same model in float32, on operators of onnxruntime alone, whose library it needs."""
    from edgeslim.exporters.bundle import export_checkpoint

    made = tiny_bundle.with_name("stock")
    made.mkdir()
    export_checkpoint(tiny_bundle.with_name("checkpoint"), made, weights="fp32", lowering="dense")
    return made


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def kit() -> Kit:
    """What travels to a machine like this one."""
    try:
        return find_kit(architecture())
    except DeviceError as fault:
        pytest.skip(f"nothing to send: {fault}")


@pytest.fixture
def boards(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Board]:
    """Makes machines behind ssh; the last one made is the one that `ssh` finds."""
    need_sshd()
    made: list[SshServer] = []

    def make(**options: Any) -> SshServer:
        made.append(SshServer(tmp_path_factory.mktemp("board"), **options))
        monkeypatch.setenv("PATH", made[-1].path)
        return made[-1]

    yield make
    for server in made:
        server.stop()


@pytest.fixture
def board(boards: Board) -> SshServer:
    """A machine behind ssh with nothing but the programs that a device has to have."""
    return boards()


@pytest.fixture(scope="session")
def adb_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of an adb server of the tests' own: its port, its keys, no emulators, no USB."""
    adb = shutil.which("adb")
    if adb is None:
        pytest.skip("no adb: the Debian package adb has it")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    home = str(tmp_path_factory.mktemp("adb"))
    environment = {"ANDROID_ADB_SERVER_PORT": port, "HOME": home, "ADB_LOCAL_TRANSPORT_MAX_PORT": "5553"}
    yield environment
    subprocess.run([adb, "kill-server"], env={**os.environ, **environment}, capture_output=True)


@pytest.fixture
def phones(
    adb_server: dict[str, str], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Phone]]:
    """Makes phones that listen on loopback; adb has not been told of them."""
    for name, value in adb_server.items():
        monkeypatch.setenv(name, value)
    made: list[Phone] = []

    def make(**options: Any) -> Phone:
        made.append(Phone(tmp_path_factory.mktemp("phone") / "device", **options))
        return made[-1]

    yield make
    for phone in made:
        phone.stop()
    subprocess.run(["adb", "disconnect"], capture_output=True)
