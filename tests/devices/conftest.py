"""What tests of devices share: a tiny bundle, the program and library that travel, and machines behind ssh."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
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
