"""Bundles that reduce their prompts run without ONNX Runtime, and as onnxruntime and PyTorch run them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from edgeslim.exporters import export_checkpoint
from edgeslim.runtime.bundle_library import VARIABLE
from edgeslim.runtime.native_library import is_available
from edgeslim.runtime.native_session import NativeSession
from edgeslim.runtime.session import OrtSession, open_session
from edgeslim.tokens.plan import ReductionPlan
from edgeslim.tokens.prefill import extend, reduced_prefill

pytestmark = pytest.mark.skipif(not is_available(), reason="no kernel library: installed without a compiler")

MODELS = Path(__file__).parents[2] / "examples" / "models"
SHORTEST = 24
METRICS = {"tiny-llama": "attention", "tiny-mamba2": "clip"}


class Reduced:
    """A bundled model that reduces prompts of `SHORTEST` tokens and more; its bundles, by the form of the weights."""

    def __init__(self, name: str, root: Path) -> None:
        options = {"layers": (2, 4, 6), "ratios": (0.8, 0.8, 0.8), "metric": METRICS[name], "min_tokens": SHORTEST}
        self.plan, self.root = ReductionPlan(**options), root
        self.model = AutoModelForCausalLM.from_pretrained(MODELS / name, dtype=torch.float32).eval()
        for module in self.model.modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
                module.weight.data = module.weight.half().float()  # as the bundle in fp16 has it
        self.checkpoint = root / "checkpoint"
        shutil.copytree(MODELS / name, self.checkpoint)
        config = json.loads((self.checkpoint / "config.json").read_text())
        config["edgeslim"] = {"reduction": self.plan.to_json()}
        (self.checkpoint / "config.json").write_text(json.dumps(config))

    def bundle(self, weights: str) -> Path:
        folder = self.root / weights
        if not folder.is_dir():
            folder.mkdir()
            export_checkpoint(self.checkpoint, folder, weights=weights, lowering="kernel")
        return folder


@pytest.fixture(scope="module", params=sorted(METRICS))
def reduced(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reduced:
    return Reduced(request.param, tmp_path_factory.mktemp(request.param))


def prompt(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(4096, size=(1, count))


# Whole prompts, shorter ones than are reduced, pieces that go on from a state, single tokens.
PIECES = [[1, 1, 1], [SHORTEST - 1, 1], [SHORTEST, 1, 1], [64, 30, 1], [300, 1, 25, 1], [1] * 40]


@pytest.mark.parametrize("pieces", PIECES)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_reduced_bundle_needs_no_onnx_runtime_and_gives_the_same_bits_without_it(reduced, pieces, threads):
    bundle = reduced.bundle("int8")
    alone = NativeSession(bundle, threads=threads, onnxruntime=False)
    kernels = OrtSession(bundle, threads=threads)

    for count in pieces:
        np.testing.assert_array_equal(alone.feed(prompt(count)), kernels.feed(prompt(count)))


@pytest.mark.parametrize("pieces", PIECES)
def test_function_bodies_of_a_reduced_bundle_give_nearly_the_same(reduced, pieces, monkeypatch):
    bundle = reduced.bundle("fp16")
    alone = NativeSession(bundle, threads=1, onnxruntime=False)
    monkeypatch.setenv(VARIABLE, "none")
    bodies = OrtSession(bundle, threads=1)
    assert bodies.library.path is None

    for count in pieces:
        np.testing.assert_allclose(alone.feed(prompt(count)), bodies.feed(prompt(count)), atol=1e-4, rtol=0)


@pytest.mark.parametrize("count", [SHORTEST - 1, SHORTEST, 100, 300])
def test_a_reduced_bundle_gives_pytorchs_logits_without_onnx_runtime(reduced, count):
    alone = NativeSession(reduced.bundle("fp16"), threads=2, onnxruntime=False)
    tokens, following = prompt(count), prompt(5)
    expected = reduced_prefill(reduced.model, torch.from_numpy(tokens), reduced.plan)

    np.testing.assert_allclose(alone.feed(tokens), expected.logits[:, -1].numpy(), atol=1e-4, rtol=0)
    logits = extend(reduced.model, expected.cache, torch.from_numpy(following))[0]
    np.testing.assert_allclose(alone.feed(following), logits[:, -1].numpy(), atol=1e-4, rtol=0)


def test_auto_takes_the_native_runtime_for_a_reduced_bundle(reduced):
    session = open_session(reduced.bundle("int8"))

    assert isinstance(session, NativeSession)
    assert session.onnxruntime is None
