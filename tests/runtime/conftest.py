"""A tiny exported Llama and Mamba-2, made once for all tests of the runtime."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Exported:
    """A checkpoint and the fp32 bundle made from it."""

    checkpoint: Path
    bundle: Path


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    import torch
    from families import save_tiny

    from edgeslim.exporters.bundle import export_checkpoint

    torch.set_num_threads(1)  # models this small only lose by a second one
    made = {}
    for family in ("llama", "mamba2"):
        root = tmp_path_factory.mktemp(family)
        checkpoint = save_tiny(root / "checkpoint", family)
        (root / "bundle").mkdir()
        export_checkpoint(checkpoint, root / "bundle", weights="fp32", lowering="dense")
        made[family] = Exported(checkpoint, root / "bundle")
    return made


@pytest.fixture(scope="session")
def llama(exports: dict[str, Exported]) -> Exported:
    return exports["llama"]


@pytest.fixture(scope="session", params=["llama", "mamba2"])
def exported(request: pytest.FixtureRequest, exports: dict[str, Exported]) -> Exported:
    """Each family in turn."""
    return exports[request.param]


@pytest.fixture
def bundle_copy(llama: Exported, tmp_path: Path) -> Path:
    """A bundle that a test may spoil."""
    return Path(shutil.copytree(llama.bundle, tmp_path / "bundle"))
