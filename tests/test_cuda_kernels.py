"""Kernels of mamba-ssm and causal-conv1d: used on a CUDA device where they are installed, and never in the way."""

import importlib.util
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from families import save_tiny
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.integrations import use_kernel_func_from_hub_with_fallback
from transformers.models.falcon_mamba import modeling_falcon_mamba
from transformers.models.mamba import modeling_mamba
from transformers.models.mamba2 import modeling_mamba2

from edgeslim import cuda_kernels
from edgeslim.calibration import Calibration
from edgeslim.checkpoint import Checkpoint
from edgeslim.pruner import PruneJob, prune_checkpoint
from edgeslim.pruning.methods import PruneConfig

MODULES = {"mamba": modeling_mamba, "falcon_mamba": modeling_falcon_mamba, "mamba2": modeling_mamba2}
TOKENS = torch.randint(300, (10, 24), generator=torch.Generator().manual_seed(0))
INSTALLED = all(importlib.util.find_spec(package) for package in ("mamba_ssm", "causal_conv1d"))
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
needs_kernels = pytest.mark.skipif(not INSTALLED, reason="no mamba_ssm or causal_conv1d: pip install 'edgeslim[cuda]'")


class Kernel:
    """Stands for an installed kernel: refuses what is not on CUDA, as they do, and notes its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Any, *args: Any) -> str:
        if not x.is_cuda:
            raise RuntimeError("Expected x.is_cuda() to be true, but got false.")
        self.calls += 1
        return "kernel"


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    """Both packages as if installed before transformers was imported, every function of theirs the same kernel."""
    kernel = Kernel()
    for package in ("mamba_ssm", "causal_conv1d"):
        monkeypatch.setitem(sys.modules, package, _Package(package, kernel))
    for module in MODULES.values():
        for name in set(cuda_kernels.KERNELS) & vars(module).keys():
            package = "causal_conv1d" if name.startswith("causal") else "mamba_ssm"
            decorate = use_kernel_func_from_hub_with_fallback(name, package)
            monkeypatch.setattr(module, name, decorate(inspect.unwrap(getattr(module, name))))
    yield kernel


class _Package(ModuleType):
    def __init__(self, name: str, kernel: Kernel) -> None:
        super().__init__(name)
        self._kernel = kernel

    def __getattr__(self, name: str) -> Kernel:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._kernel


def _pruned(folder: Path, output: Path, device: str = "cpu") -> dict[str, torch.Tensor]:
    job = PruneJob(
        config=PruneConfig(method="sparsegpt"), calibration=Calibration(tokens=TOKENS, description=""), device=device
    )
    prune_checkpoint(Checkpoint.open(folder), output, job)
    return load_file(output / "model.safetensors")


@pytest.mark.parametrize("family", MODULES)
def test_calibration_on_a_cpu_is_the_same_beside_installed_kernels(
    family: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = save_tiny(tmp_path / "dense", family)
    expected = _pruned(folder, tmp_path / "without")
    kernel = request.getfixturevalue("kernel")
    with pytest.raises(RuntimeError, match="is_cuda"):  # transformers alone
        AutoModelForCausalLM.from_pretrained(folder)(TOKENS[:1])

    found = _pruned(folder, tmp_path / "with")
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    model = Checkpoint.open(folder).load()
    model(TOKENS[:1])
    assert kernel.calls == 0


def test_a_tensor_on_cuda_goes_to_the_kernel(kernel: Kernel, tmp_path: Path) -> None:
    class OnCuda:
        is_cuda = True

    for family, module in MODULES.items():
        Checkpoint.open(save_tiny(tmp_path / family, family)).load()
        Checkpoint.open(tmp_path / family).load()  # guarded once
        for name in set(cuda_kernels.KERNELS) & vars(module).keys():
            assert getattr(module, name)(OnCuda()) == "kernel"
    assert kernel.calls == 5 * len(MODULES)


def test_every_function_that_a_kernel_stands_in_for_is_known() -> None:
    for module in MODULES.values():
        wrapped = {name for name, value in vars(module).items() if _may_be_a_kernel(value, module)}
        assert wrapped == set(cuda_kernels.KERNELS) & vars(module).keys()


def _may_be_a_kernel(value: Any, module: ModuleType) -> bool:
    own = inspect.isfunction(value) and value.__module__ == module.__name__
    return own and hasattr(value, "__wrapped__")


@pytest.mark.gpu
@needs_gpu
@needs_kernels
@pytest.mark.parametrize("family", MODULES)
def test_calibration_on_a_gpu_runs_the_kernels_and_finds_nearly_the_weights_of_a_cpu(
    family: str, tmp_path: Path
) -> None:
    folder = save_tiny(tmp_path / "dense", family)
    expected = _pruned(folder, tmp_path / "cpu")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        found = _pruned(folder, tmp_path / "gpu", device="cuda")
    ran = " ".join(event.key for event in profile.key_averages())
    assert "causal_conv1d" in ran and ("selective_scan" in ran or "chunk_scan" in ran), ran
    _assert_near(found, expected)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("family", MODULES)
def test_calibration_on_a_gpu_needs_no_kernels(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = MODULES[family]
    for name in set(cuda_kernels.KERNELS) & vars(module).keys():
        monkeypatch.setattr(module, name, inspect.unwrap(getattr(module, name)))
    folder = save_tiny(tmp_path / "dense", family)
    _assert_near(_pruned(folder, tmp_path / "gpu", device="cuda"), _pruned(folder, tmp_path / "cpu"))


def _assert_near(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """The GPU sums in another order, so that a few places of masks that are nearly as good may differ."""
    same = {name: float(((found[name] == 0) == (value == 0)).float().mean()) for name, value in expected.items()}
    assert min(same.values()) > 0.99, same
    away = {name: float((found[name] - value).norm() / value.norm()) for name, value in expected.items()}
    assert max(away.values()) < 0.05, away
