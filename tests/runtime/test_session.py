"""Sessions give the logits transformers gives, however the tokens are fed, and say clearly what cannot be run."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from edgeslim.errors import BundleError, RecipeError, RuntimeUnavailable
from edgeslim.runtime import engines
from edgeslim.runtime.native_library import is_available
from edgeslim.runtime.session import GenaiSession, OrtSession, open_session

ENGINES = ["ort", "genai", *(["native"] if is_available() else [])]
TOKENS = np.array([[5, 60, 7, 200, 11, 9, 33, 120, 14]], np.int64)
TOLERANCE = 1e-4  # float32 sums in another order differ by some 1e-5 on logits of about 10


@pytest.fixture(scope="module")
def expected(exported):
    """transformers' logits [1, T, V] of TOKENS."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(exported.checkpoint).eval()
    with torch.inference_mode():
        return model(torch.from_numpy(TOKENS), use_cache=False).logits.numpy()


@pytest.mark.parametrize("pieces", [[9], [4, 5], [1] * 9, [5, 1, 1, 2]], ids=str)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_prompt_fed_in_pieces_gives_the_logits_of_the_whole(exported, expected, engine, pieces):
    session = open_session(exported.bundle, engine, 1)
    end = 0
    for size in pieces:
        logits = session.feed(TOKENS[:, end : end + size])
        end += size
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, expected[:, end - 1], atol=TOLERANCE)
    assert session.position == 9


def test_the_scoring_graph_gives_the_logits_of_all_positions(exported, expected):
    session = OrtSession(exported.bundle, graph="scoring.onnx")
    np.testing.assert_allclose(session.feed_all(TOKENS), expected, atol=TOLERANCE)


def test_sequences_of_a_batch_do_not_see_each_other(exported, expected):
    session = OrtSession(exported.bundle, graph="scoring.onnx")
    session.reset(2)
    logits = session.feed_all(np.concatenate([TOKENS, TOKENS[:, ::-1]]))
    np.testing.assert_allclose(logits[:1], expected, atol=TOLERANCE)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_reset_session_has_forgotten_everything(exported, engine):
    session = open_session(exported.bundle, engine, 1)
    first = session.feed(TOKENS)
    session.reset()
    assert session.position == 0
    np.testing.assert_array_equal(session.feed(TOKENS), first)


def test_logits_already_given_do_not_change_with_the_next_step(exported):
    session = GenaiSession(exported.bundle)
    first = session.feed(TOKENS)
    kept = first.copy()
    session.feed(TOKENS)
    np.testing.assert_array_equal(first, kept)


def test_the_generation_graph_refuses_to_give_all_positions(llama):
    with pytest.raises(BundleError, match=r"last position's logits only; open the bundle's scoring graph"):
        OrtSession(llama.bundle).feed_all(TOKENS)


@pytest.mark.parametrize("engine", ENGINES)
def test_tokens_beyond_the_context_are_refused(llama, engine):
    session = open_session(llama.bundle, engine, 1)
    with pytest.raises(RecipeError, match="300 tokens do not fit the model's context of 256"):
        session.feed(np.zeros((1, 300), np.int64))


def test_a_recurrent_model_has_no_context_limit_on_onnxruntime(exports):
    assert OrtSession(exports["mamba2"].bundle).context_length is None


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.zeros((1, 0), np.int64), r"shape \[1, at least 1\], got \[1, 0\]"),
        (np.zeros((2, 3), np.int64), r"shape \[1, at least 1\], got \[2, 3\]"),
        (np.array([[3, -1]], np.int64), r"\[0, 331\), got -1"),
        (np.array([[3, 331]], np.int64), r"\[0, 331\), got 331"),
    ],
)
@pytest.mark.parametrize("engine", ENGINES)
def test_tokens_that_cannot_be_meant_are_refused(llama, engine, tokens, message):
    with pytest.raises(RecipeError, match=message):
        open_session(llama.bundle, engine).feed(tokens)


def test_an_unknown_engine_is_refused_with_the_nearest_name(llama):
    with pytest.raises(RecipeError, match="unknown engine 'genia'; did you mean 'genai'"):
        open_session(llama.bundle, "genia")  # type: ignore[arg-type]


def test_zero_threads_are_refused(llama):
    with pytest.raises(RecipeError, match="threads must be at least 1, got 0"):
        OrtSession(llama.bundle, threads=0)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_folder_without_a_graph_is_no_bundle(tmp_path, engine):
    with pytest.raises(BundleError, match="not a bundle"):
        open_session(tmp_path, engine)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(BundleError, match="nowhere: no such bundle folder"):
        open_session(tmp_path / "nowhere")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_damaged_graph_is_one_clear_error(bundle_copy, engine):
    (bundle_copy / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(BundleError, match="does not load"):
        open_session(bundle_copy, engine)


def test_a_missing_custom_operator_library_is_one_clear_error(bundle_copy):
    path = bundle_copy / "genai_config.json"
    config = json.loads(path.read_text())
    config["model"]["decoder"]["session_options"]["custom_ops_library"] = "libnowhere.so"
    path.write_text(json.dumps(config))
    with pytest.raises(BundleError, match=r"does not load.*libnowhere"):
        OrtSession(bundle_copy)


def test_a_configuration_that_is_not_json_is_named(bundle_copy):
    (bundle_copy / "genai_config.json").write_text("{")
    with pytest.raises(BundleError, match=r"genai_config\.json: not valid JSON"):
        open_session(bundle_copy)


def hide(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """Make `modules` look as if they were not installed."""
    monkeypatch.setattr(engines, "find_spec", lambda name: None if name in modules else find_spec(name))
    for name in modules:
        monkeypatch.setitem(sys.modules, name, None)


def test_without_any_engine_the_error_names_the_extra(llama, monkeypatch):
    hide(monkeypatch, "onnxruntime", "onnxruntime_genai")
    with pytest.raises(RuntimeUnavailable, match=r'neither .* is installed; .*pip install "edgeslim\[cpu\]"'):
        open_session(llama.bundle)


@pytest.mark.parametrize(("engine", "module"), [("ort", "onnxruntime"), ("genai", "onnxruntime_genai")])
def test_a_missing_engine_that_was_asked_for_is_named(llama, monkeypatch, engine, module):
    hide(monkeypatch, module)
    with pytest.raises(RuntimeUnavailable, match=rf'{module} .*pip install "edgeslim\[cpu\]"'):
        open_session(llama.bundle, engine)


def test_plain_onnxruntime_is_used_where_genai_is_missing(llama, monkeypatch):
    hide(monkeypatch, "onnxruntime_genai")
    assert isinstance(open_session(llama.bundle), OrtSession)


def test_genai_is_preferred(llama):
    assert isinstance(open_session(llama.bundle), GenaiSession)


def test_importing_the_runtime_loads_no_engine_and_no_torch():
    heavy = ["onnxruntime", "onnxruntime_genai", "torch", "transformers", "tokenizers"]
    code = (
        "import sys, edgeslim.runtime, edgeslim.runtime.session, edgeslim.runtime.text, edgeslim.runtime.profiler;"
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    root = Path(engines.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"


def test_telemetry_is_off_once_an_engine_is_imported(monkeypatch):
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    engines.import_engine("genai")
    import os

    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
