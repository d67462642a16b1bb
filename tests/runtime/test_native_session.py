"""The native runtime gives what onnxruntime's own session and transformers give, and says clearly what is wrong."""

import gc
import threading
from pathlib import Path

import numpy as np
import pytest

from edgeslim.errors import BundleError, RecipeError, RuntimeUnavailable
from edgeslim.runtime import engines, library, native_session
from edgeslim.runtime.generate import generate, keep_top_k, keep_top_p, softmax
from edgeslim.runtime.inspection import inspect_bundle
from edgeslim.runtime.manifest import Manifest
from edgeslim.runtime.memory import current_rss
from edgeslim.runtime.native_library import Cancelled, is_available, native_library
from edgeslim.runtime.native_session import GREEDY, NativeSampling, NativeSession, native_sample, native_uniform
from edgeslim.runtime.session import OrtSession, open_session

pytestmark = pytest.mark.skipif(not is_available(), reason="no kernel library: installed without a compiler")

MODELS = Path(__file__).parents[2] / "examples" / "models"
PROMPT = [5, 60, 7, 200, 11, 9]
ALL = NativeSampling(temperature=1.3, top_k=40, top_p=0.9, min_p=0.02, repetition_penalty=1.2, seed=5)


@pytest.fixture(scope="session", params=["tiny-llama", "tiny-mamba2"])
def packed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundled model as packed int8."""
    from edgeslim.exporters.bundle import export_checkpoint

    folder = tmp_path_factory.mktemp(request.param)
    export_checkpoint(MODELS / request.param, folder, weights="int8", lowering="kernel")
    return folder


def edit(file: Path, old: str, new: str) -> None:
    """Replace text in a file that holds it."""
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_a_packed_bundle_gives_the_bits_of_onnxruntimes_own_session(packed):
    ort, native = OrtSession(packed, threads=1), NativeSession(packed, threads=1)

    for piece in ([5, 60, 7, 200], [11, 9], [33], [1]):
        tokens = np.array([piece], np.int64)
        np.testing.assert_array_equal(native.feed(tokens), ort.feed(tokens))
    assert native.position == 8
    assert native.isa == library.kernel_library().chosen


def test_inspect_names_the_engine_and_what_keeps_a_bundle_from_running_by_itself(packed, llama):
    own, stock = inspect_bundle(packed), inspect_bundle(llama.bundle)
    assert (own.engine, own.engine_reason) == ("native", None)
    assert stock.engine == "genai" and "only ONNX Runtime has this operator" in str(stock.engine_reason)


def test_auto_loads_a_bundle_that_runs_by_itself_once(packed, monkeypatch):
    loads = []
    load = native_session._load
    monkeypatch.setattr(native_session, "_load", lambda *given: loads.append(given) or load(*given))

    assert isinstance(open_session(packed, threads=1), NativeSession)
    assert len(loads) == 1


def test_auto_still_says_what_is_wrong_with_its_arguments(packed):
    with pytest.raises(RecipeError, match="threads"):
        open_session(packed, threads=-1)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_packed_bundle_needs_no_onnx_runtime_and_gives_the_same_bits_without_it(packed, threads):
    alone = NativeSession(packed, threads=threads, onnxruntime=False)
    inside = NativeSession(packed, threads=threads, onnxruntime=True)

    assert (alone.onnxruntime, NativeSession(packed).onnxruntime) == (None, None)
    assert inside.onnxruntime is not None
    for piece in (PROMPT * 9, [11, 9], [33], [1]):
        tokens = np.array([piece], np.int64)
        np.testing.assert_array_equal(alone.feed(tokens), inside.feed(tokens))


def test_a_state_goes_on_with_and_without_onnx_runtime(packed):
    alone = NativeSession(packed, threads=1, onnxruntime=False)
    inside = NativeSession(packed, threads=1, onnxruntime=True)
    alone.generate(PROMPT, 0)

    inside.restore(alone.save())

    assert inside.generate([3], 12, eos_ids=[]) == alone.generate([3], 12, eos_ids=[])


def test_a_graph_of_other_operators_says_that_it_needs_onnx_runtime(exported):
    with pytest.raises(BundleError, match="only ONNX Runtime has this operator"):
        NativeSession(exported.bundle, onnxruntime=False)
    assert NativeSession(exported.bundle).onnxruntime is not None


def test_auto_takes_the_native_runtime_where_it_runs_a_bundle_by_itself(packed, exported):
    assert isinstance(open_session(packed), NativeSession)
    assert not isinstance(open_session(exported.bundle), NativeSession)


@pytest.mark.slow
def test_generation_writes_what_transformers_writes_for_the_bundled_models(packed, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    from edgeslim.exporters.bundle import export_checkpoint

    checkpoint = Path(Manifest.read(packed).source.id)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    expected = model.generate(torch.tensor([PROMPT]), max_new_tokens=24, do_sample=False, eos_token_id=None)
    export_checkpoint(checkpoint, tmp_path, weights="fp32", lowering="dense")

    tokens, end = NativeSession(tmp_path, threads=1).generate(PROMPT, 24, eos_ids=[])

    assert tokens == expected[0, len(PROMPT) :].tolist()
    assert end == "length"


def test_operators_run_by_their_function_bodies_too(packed):
    kernels, bodies = NativeSession(packed, threads=1), NativeSession(packed, threads=1, bodies=True)

    assert bodies.isa == "function bodies"
    tokens = np.array([PROMPT], np.int64)
    np.testing.assert_allclose(bodies.feed(tokens), kernels.feed(tokens), atol=0.25)  # int8 against float activations


def test_a_saved_state_goes_on_exactly_in_another_session(packed):
    first, second = NativeSession(packed, threads=1), NativeSession(packed, threads=1, max_length=100)
    first.generate(PROMPT, 0)
    state = first.save()
    expected = first.generate([3], 20, ALL, eos_ids=[])

    second.restore(state)
    assert second.position == len(PROMPT)
    assert second.generate([3], 20, ALL, eos_ids=[]) == expected
    first.restore(state)
    assert first.generate([3], 20, ALL, eos_ids=[]) == expected


def test_a_state_that_is_damaged_or_of_another_bundle_is_refused(packed, exported):
    session = NativeSession(packed, threads=1)
    session.generate(PROMPT, 0)
    state = session.save()
    with pytest.raises(BundleError, match="damaged"):
        session.restore(state[:-9] + b"x" + state[-8:])
    with pytest.raises(BundleError, match="damaged"):
        session.restore(b"")
    with pytest.raises(BundleError, match="of another model"):
        NativeSession(exported.bundle, threads=1).restore(state)
    assert session.position == len(PROMPT)


def test_a_cancelled_session_stops_and_goes_on_once_resumed(exported):
    session = NativeSession(exported.bundle, threads=1)
    expected, _ = session.generate(PROMPT, 40, eos_ids=[])
    session.reset()
    seen: list[int] = []

    def stop_after_five(token: int) -> None:
        seen.append(token)
        if len(seen) == 5:
            thread = threading.Thread(target=session.cancel)
            thread.start()
            thread.join()

    with pytest.raises(Cancelled, match="cancelled"):
        session.generate(PROMPT, 40, eos_ids=[], on_token=stop_after_five)
    assert seen == expected[:5]
    with pytest.raises(Cancelled):
        session.feed(np.array([[1]], np.int64))
    session.resume()
    assert session.position == len(PROMPT) + 4  # the fifth was drawn and not fed
    assert session.generate(seen[4:], 35, eos_ids=[])[0] == expected[5:]


def test_tokens_arrive_one_by_one_and_the_listener_may_end_the_text(exported):
    session = NativeSession(exported.bundle, threads=1)
    positions: list[int] = []

    tokens, end = session.generate(
        PROMPT, 40, eos_ids=[], on_token=lambda token: (positions.append(session.position), len(positions) < 3)[1]
    )

    assert (len(tokens), end) == (3, "callback")
    assert positions == [6, 7, 8]


def test_what_the_listener_raises_arrives(exported):
    def fail(token: int) -> None:
        raise KeyError(token)

    with pytest.raises(KeyError):
        NativeSession(exported.bundle, threads=1).generate(PROMPT, 4, eos_ids=[], on_token=fail)


def test_end_tokens_and_a_full_room_end_a_text(llama):
    session = NativeSession(llama.bundle, threads=1, max_length=20)
    expected, end = session.generate(PROMPT, 40, eos_ids=[])
    assert (len(expected), end) == (15, "room")  # the last one needs no place
    session.reset()
    assert session.generate(PROMPT, 40, eos_ids=[expected[3], 1]) == (expected[: expected.index(expected[3])], "token")


def test_the_prompt_in_chunks_gives_the_logits_of_the_whole(exported):
    whole = NativeSession(exported.bundle, threads=1).feed(np.array([PROMPT * 5], np.int64))
    for chunk in (1, 7, 29):
        pieces = NativeSession(exported.bundle, threads=1, chunk=chunk).feed(np.array([PROMPT * 5], np.int64))
        np.testing.assert_allclose(pieces, whole, atol=1e-4)  # float32 sums in another order


def test_caches_that_differ_in_length_are_kept_one_by_one(bundle_copy):
    """A graph whose caches grow by copies, as a reduced transformer's do."""
    config = bundle_copy / "genai_config.json"
    config.write_text(
        config.read_text().replace('"past_present_share_buffer": true', '"past_present_share_buffer": false')
    )
    grown, shared = NativeSession(bundle_copy, threads=1), OrtSession(bundle_copy, threads=1)

    expected = list(generate(shared, PROMPT, 20))
    assert grown.generate(PROMPT, 20, eos_ids=[])[0] == expected
    grown.reset()
    grown.generate(PROMPT, 0)
    state = grown.save()
    assert grown.generate([4], 9, eos_ids=[]) == (grown.restore(state), grown.generate([4], 9, eos_ids=[]))[1]


def reference_draw(logits: np.ndarray, sampling: NativeSampling, seen: list[int], position: int) -> int:
    """transformers' processors in numpy: penalty, temperature, top-k, top-p, min-p, then the inverse of the sums."""
    row = logits.astype(np.float64)
    ids = np.unique(np.array(seen, np.int64))
    penalty = float(np.float32(sampling.repetition_penalty))
    row[ids] = np.where(row[ids] < 0, row[ids] * penalty, row[ids] / penalty)
    if sampling.temperature == 0:
        return int(row.argmax())
    row = row / float(np.float32(sampling.temperature))
    row = keep_top_p(keep_top_k(row, sampling.top_k), float(np.float32(sampling.top_p)))
    chances = softmax(row)
    row[chances < float(np.float32(sampling.min_p)) * chances.max()] = -np.inf
    sums = np.cumsum(softmax(row))
    return int(np.argmax(sums > native_uniform(sampling.seed, position) * sums[-1]))


@pytest.mark.parametrize("seed", range(40))
def test_draws_are_those_of_a_reference_in_numpy(seed):
    rng = np.random.default_rng(seed)
    vocab = int(rng.integers(1, 3000))
    logits = (rng.standard_normal(vocab) * rng.choice([0.5, 3, 8])).astype(np.float32)
    if seed % 3 == 0:
        logits = np.round(logits)  # many equal ones
    seen = rng.integers(0, vocab, rng.integers(0, 50)).tolist()
    for position in range(20):
        sampling = NativeSampling(
            temperature=float(rng.choice([0, 0.3, 1, 2])),
            top_k=int(rng.choice([0, 1, 5, 100])),
            top_p=float(rng.choice([1.0, 0.01, 0.5, 0.95])),
            min_p=float(rng.choice([0, 0.05, 0.5])),
            repetition_penalty=float(rng.choice([1.0, 1.3, 0.8])),
            seed=int(rng.integers(0, 1 << 63)),
        )
        got = native_sample(logits, sampling, seen=seen, position=position)
        assert got == reference_draw(logits, sampling, seen, position), sampling


def test_draws_follow_the_distribution():
    logits = np.log(np.array([0.7, 0.2, 0.1], np.float32))
    drawn = [native_sample(logits, NativeSampling(temperature=1.0, seed=3), position=i) for i in range(4000)]
    np.testing.assert_allclose(np.bincount(drawn) / 4000, [0.7, 0.2, 0.1], atol=0.03)  # four standard errors


def test_penalty_top_k_top_p_and_min_p_are_those_of_transformers(exported):
    """Each rule alone leaves the tokens that transformers' processor leaves."""
    import torch
    from transformers.generation import logits_process as hf

    logits = np.random.default_rng(0).standard_normal(200).astype(np.float32) * 3
    seen = [3, 7, 7, 190]
    row, ids = torch.from_numpy(logits)[None], torch.tensor([seen])
    cases = [
        (hf.TopKLogitsWarper(7), NativeSampling(temperature=1.0, top_k=7)),
        (hf.TopPLogitsWarper(0.8), NativeSampling(temperature=1.0, top_p=0.8)),
        (hf.MinPLogitsWarper(0.1), NativeSampling(temperature=1.0, min_p=0.1)),
    ]
    for processor, sampling in cases:
        left = set(torch.isfinite(processor(ids, row)[0]).nonzero()[:, 0].tolist())
        drawn = {native_sample(logits, sampling, position=i) for i in range(3000)}
        assert drawn <= left
        assert len(drawn) > len(left) / 2
    penalized = hf.RepetitionPenaltyLogitsProcessor(5.0)(ids, row)[0]
    assert native_sample(logits, NativeSampling(repetition_penalty=5.0), seen=seen) == int(penalized.argmax())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature must be at least 0, got -1"),
        ({"temperature": float("nan")}, "temperature must be at least 0, got nan"),
        ({"top_k": -1}, "top_k must be at least 0, got -1"),
        ({"top_p": 1.5}, r"top_p must be in \[0, 1\], got 1.5"),
        ({"min_p": -0.5}, r"min_p must be in \[0, 1\], got -0.5"),
        ({"repetition_penalty": -2.0}, "repetition_penalty must be at least 0, got -2"),
        ({"seed": -1}, r"seed must be in \[0, 2\^64\), got -1"),
    ],
)
def test_sampling_that_cannot_be_meant_is_refused(options, message):
    with pytest.raises(RecipeError, match=message):
        native_sample(np.zeros(4, np.float32), NativeSampling(**options))


def test_sampling_before_feeding_is_said(llama):
    with pytest.raises(Exception, match="there are no logits to sample from: feed tokens first"):
        NativeSession(llama.bundle, threads=1).sample(GREEDY)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("genai_config.json", '{"model": {"decoder": {"filename": "../model.onnx"}}}', "leaves the bundle"),
        ("genai_config.json", '{"model": {"decoder": {"filename": "/etc/passwd"}}}', "leaves the bundle"),
        ("edgeslim.json", '{"format": 1, "files": {"../../x": {}}}', "leaves the bundle"),
        ("edgeslim.json", '{"format": 7}', "another format than 1"),
    ],
)
def test_hostile_configurations_are_refused(bundle_copy, file, text, message):
    (bundle_copy / file).write_text(text)
    with pytest.raises(BundleError, match=message):
        NativeSession(bundle_copy)


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "config.json", "edgeslim.json"])
def test_links_that_leave_the_bundle_are_refused_and_links_inside_are_not(bundle_copy, name):
    (bundle_copy / name).rename(bundle_copy / "there.bin")
    (bundle_copy / name).symlink_to("there.bin")
    NativeSession(bundle_copy).close()
    (bundle_copy / "there.bin").rename(bundle_copy.parent / "there.bin")
    for target in ("../there.bin", bundle_copy.parent / "there.bin", "nowhere"):
        (bundle_copy / name).unlink()
        (bundle_copy / name).symlink_to(target)
        with pytest.raises(BundleError, match="is a link that leaves the bundle"):
            NativeSession(bundle_copy)


@pytest.mark.parametrize("location", ["../weights", "{outside}", "a/../../weights", "../bundle/../weights"])
def test_weights_outside_of_the_bundle_are_refused(bundle_copy, location):
    import onnx

    weights = bundle_copy.parent / "weights"
    weights.write_bytes((bundle_copy / "model.onnx.data").read_bytes())
    (bundle_copy / "a").mkdir()
    model = onnx.load(bundle_copy / "model.onnx", load_external_data=False)
    entries = [entry for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location"]
    assert entries
    for entry in entries:
        entry.value = location.format(outside=weights)
    (bundle_copy / "model.onnx").write_bytes(model.SerializeToString())
    (bundle_copy / "edgeslim.json").unlink()
    with pytest.raises(BundleError, match=r"escapes|Absolute path|lies outside"):
        NativeSession(bundle_copy)


def test_a_shortened_weight_file_is_refused_before_it_is_mapped(bundle_copy):
    weights = bundle_copy / "model.onnx.data"
    weights.write_bytes(weights.read_bytes()[:-4096])
    with pytest.raises(BundleError, match=r"model\.onnx\.data does not load: it has \d+ bytes, edgeslim\.json says"):
        NativeSession(bundle_copy)


def test_a_foreign_operator_library_is_not_loaded(bundle_copy):
    config = bundle_copy / "genai_config.json"
    config.write_text(
        config.read_text().replace('"session_options": {', '"session_options": {"custom_ops_library": "x.so",')
    )
    with pytest.raises(BundleError, match=r"wants the operator library x\.so; it is loaded only when asked for"):
        NativeSession(bundle_copy)


def test_without_a_library_or_onnxruntime_the_engine_is_unavailable(llama, monkeypatch, tmp_path):
    monkeypatch.setenv("EDGESLIM_ONNXRUNTIME", str(tmp_path / "libonnxruntime.so"))
    with pytest.raises(RuntimeUnavailable, match="ONNX Runtime does not load"):
        NativeSession(llama.bundle)
    monkeypatch.setenv("EDGESLIM_LIBRARY", "none")
    assert not engines.is_installed("native")
    native_library.cache_clear()
    with pytest.raises(RuntimeUnavailable, match="no native runtime"):
        open_session(llama.bundle, "native")


def _growth(bundle: Path, warm: int, count: int) -> int:
    """Return by how many bytes the process grows over `count` sessions after `warm` others."""

    def open_and_close() -> None:
        session = NativeSession(bundle, threads=1)
        session.generate(PROMPT, 2, eos_ids=[])
        session.close()

    for _ in range(warm):
        open_and_close()
    gc.collect()
    before = current_rss()
    for _ in range(count):
        open_and_close()
    gc.collect()
    return current_rss() - before


def test_sessions_opened_and_closed_leave_no_memory_behind(exported):
    assert _growth(exported.bundle, warm=10, count=20) < 20 * 50_000  # a session that stayed would be 300 kB or more


@pytest.mark.slow
def test_a_thousand_sessions_leave_no_memory_behind(exported):
    assert _growth(exported.bundle, warm=100, count=1000) < 4_000_000


def test_the_library_of_kernels_and_runtime_is_no_larger_than_a_mebibyte():
    path = library.find_library()
    assert path is not None
    content = path.read_bytes()
    if b"__asan_init" in content or b".debug_info" in content:
        pytest.skip("a build for sanitizers or debuggers")
    assert len(content) <= 1 << 20
