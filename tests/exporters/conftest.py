"""Checkpoints and bundles of every family, made once a run."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families import save_tiny

from edgeslim.exporters import export_checkpoint


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Models this small only lose by a second thread."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function from family to the folder of its tiny checkpoint."""
    root = tmp_path_factory.mktemp("checkpoints")

    def saved(family: str) -> Path:
        folder = root / family
        return folder if folder.is_dir() else save_tiny(folder, family)

    return saved


@pytest.fixture(scope="session")
def bundle(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function from family, weights and lowering to the folder of its bundle. Tests must not change it."""
    root = tmp_path_factory.mktemp("bundles")

    def exported(family: str, weights: str = "fp32", lowering: str = "dense") -> Path:
        folder = root / f"{family}-{weights}-{lowering}"
        if not folder.is_dir():
            folder.mkdir()
            export_checkpoint(checkpoint(family), folder, weights=weights, lowering=lowering)  # type: ignore[arg-type]
        return folder

    return exported
