"""Which provider runs a bundle is verified by the nodes that it ran; a fall-back to the CPU is always said."""

import json
import os
import shutil
from pathlib import Path

import pytest

from edgeslim.runtime.operators import nodes_by_provider, parse_profile, placement
from edgeslim.runtime.profiler import profile_bundle
from edgeslim.runtime.providers import (
    CPU,
    available_providers,
    describe_placement,
    fallback_warning,
    placement_warning,
)
from edgeslim.runtime.session import open_session

TRT, CUDA, AZURE = "TensorrtExecutionProvider", "CUDAExecutionProvider", "AzureExecutionProvider"
OPTIONS = {"prompt_tokens": 4, "new_tokens": 3, "repeats": 1, "threads": 1}


@pytest.fixture
def made_for(bundle_copy: Path):
    """A bundle whose manifest asks for the given providers."""

    def made(*providers: str) -> Path:
        manifest = json.loads((bundle_copy / "edgeslim.json").read_text())
        manifest["providers"] = {name: {} for name in providers}
        (bundle_copy / "edgeslim.json").write_text(json.dumps(manifest))
        return bundle_copy

    return made


@pytest.mark.parametrize(
    ("installed", "active", "said"),
    [
        ([TRT, CUDA, CPU], [TRT, CUDA, CPU], None),
        ([CPU], [CPU], "made for Tensorrt, CUDA; this onnxruntime has no Tensorrt, CUDA, so CPU runs it"),
        ([CUDA, CPU], [CUDA, CPU], "this onnxruntime has no Tensorrt, so CUDA runs it"),
        ([TRT, CUDA, CPU], [CUDA, CPU], "Tensorrt did not start (its libraries or the device are missing), so CUDA"),
        ([TRT, CUDA, CPU], [CPU], "Tensorrt, CUDA did not start (its libraries or the device are missing), so CPU"),
    ],
)
def test_what_a_session_runs_on_instead_of_what_it_was_made_for_is_said(installed, active, said):
    warning = fallback_warning([TRT, CUDA], installed, active)
    assert warning is None if said is None else said in (warning or "")


def test_a_bundle_that_asks_for_nothing_has_nothing_to_say():
    assert fallback_warning([], [CPU], [CPU]) is None and fallback_warning([CPU], [CPU], [CPU]) is None


def test_nodes_left_to_the_cpu_are_counted():
    assert placement_warning([TRT, CUDA], {TRT: 3, CUDA: 2}) is None
    assert placement_warning([TRT], {CPU: 9}) == "none of 9 nodes ran on Tensorrt (CPU 9)"
    assert placement_warning([TRT], {CPU: 2, TRT: 1}) == "1 of 3 nodes ran on Tensorrt (CPU 2, Tensorrt 1)"
    assert describe_placement({CPU: 2, TRT: 7}) == "Tensorrt 7, CPU 2 nodes"


@pytest.mark.parametrize("engine", ["ort", "genai", "native"])
def test_every_engine_says_that_a_bundle_for_a_gpu_runs_on_the_cpu(made_for, capfd, engine):
    open_session(made_for(TRT, CUDA), engine, threads=1, max_length=8)
    said = capfd.readouterr().err
    assert "warning: the bundle is made for Tensorrt, CUDA; this onnxruntime has no Tensorrt, CUDA" in said


def test_the_profile_of_a_bundle_for_a_gpu_says_it_too(made_for, capsys):
    profile = profile_bundle(made_for(TRT, CUDA), engine="ort", **OPTIONS)
    assert any("made for Tensorrt, CUDA" in warning for warning in profile.warnings)
    assert "so CPU runs it" in capsys.readouterr().err


def test_a_provider_that_starts_and_runs_no_node_is_found_out(made_for):
    """Azure's provider is in the CPU build of onnxruntime: it starts, and takes no node of such a graph."""
    import onnxruntime

    if AZURE not in onnxruntime.get_available_providers():
        pytest.skip(f"this onnxruntime has no {AZURE}")
    profile = profile_bundle(made_for(AZURE), engine="ort", **OPTIONS)
    assert any("nodes ran on Azure (CPU" in w and w.startswith("none of") for w in profile.warnings)
    assert profile.isa.startswith("CPU ") and profile.isa.endswith(" nodes")


def test_a_real_profile_places_every_node_on_the_cpu(llama):
    placed = nodes_by_provider(llama.bundle, threads=1)
    assert set(placed) == {CPU} and placed[CPU] > 10


def test_a_profile_of_a_jetson_places_what_each_provider_took():
    """The form of a session with TensorRT: what it took is one node, what it did not, CUDA's and the CPU's."""

    def node(name: str, op: str, provider: str, at: int) -> dict:
        args = {"op_name": op, "provider": provider, "thread_scheduling_stats": ""}
        return {"cat": "Node", "name": f"{name}_kernel_time", "ts": at, "dur": 5, "ph": "X", "args": args}

    events = [
        {"cat": "Session", "name": "model_run", "ts": 0, "dur": 90, "args": {}},
        node("TRTKernel_graph_main_1_0", "TRTKernel_graph_main_1_0", TRT, 10),
        node("TRTKernel_graph_main_1_1", "TRTKernel_graph_main_1_1", TRT, 30),
        node("MemcpyToHost", "MemcpyToHost", CUDA, 50),
        node("/model/Shape", "Shape", CPU, 60),
    ]
    assert placement(parse_profile(json.dumps(events))) == {CPU: 1, CUDA: 1, TRT: 2}


class _Ort:
    def get_available_providers(self) -> list[str]:
        return [TRT, CPU]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_engines_of_a_bundle_that_cannot_be_written_to_lie_in_the_cache_folder(tmp_path, monkeypatch):
    _check_read_only(tmp_path, monkeypatch)


def test_engines_lie_in_the_cache_folder_where_access_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    _check_read_only(tmp_path, monkeypatch)


def _check_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    bundle.chmod(0o555)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    try:
        found = available_providers(_Ort(), {TRT: {"trt_engine_cache_path": "trt_engines"}}, bundle)
    finally:
        bundle.chmod(0o755)
    folder = Path(found[0][1]["trt_engine_cache_path"])
    assert folder.is_dir() and folder.is_relative_to(tmp_path / "cache" / "edgeslim" / "trt_engines")
    shutil.rmtree(folder)
