"""A saved state goes on exactly as the session that it was saved from, and no other bundle or engine takes it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from families import save_tiny

from edgeslim import api
from edgeslim.errors import BundleError, OutputError, RecipeError
from edgeslim.runtime.generate import Sampling, generate, go_on
from edgeslim.runtime.native_library import is_available
from edgeslim.runtime.saved_state import bundle_identity, read_state, write_state
from edgeslim.runtime.session import OrtSession, open_session

ENGINES = ["ort", *(["native"] if is_available() else [])]
PROMPT = np.array([[5, 60, 7, 200, 11, 9, 33, 120, 14, 8, 61, 3, 250, 44, 17, 90]], np.int64)
FORMS = ["llama", "mamba2", "mamba", "bamba", "jamba", "lfm2", "mamba2 reduced", "llama reduced"]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A packed bundle of each form; the reduced ones drop tokens of prompts."""
    root, made = tmp_path_factory.mktemp("states"), {}
    for form in FORMS:
        family, checkpoint = form.split()[0], root / form.replace(" ", "-")
        save_tiny(checkpoint, family)
        if form.endswith("reduced"):
            api.reduce(checkpoint, root / f"{family}-plan", layers=(1,), ratio=0.5)
            checkpoint = root / f"{family}-plan"
        made[form] = root / f"{checkpoint.name}-bundle"
        api.export(checkpoint, made[form], weights="int8")
    return made


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_state_from_a_file_goes_on_to_the_same_bits(bundles, tmp_path, engine, form):
    first, second = open_session(bundles[form], engine, 1), open_session(bundles[form], engine, 1)
    before = first.feed(PROMPT)
    first.save_state(tmp_path / "state")
    after = [first.feed(PROMPT[:, i : i + 1]) for i in range(3)]

    second.feed(PROMPT[:, :3])  # what it held is forgotten
    np.testing.assert_array_equal(second.load_state(tmp_path / "state"), before)

    assert second.position == PROMPT.shape[1]
    for i, expected in enumerate(after):
        np.testing.assert_array_equal(second.feed(PROMPT[:, i : i + 1]), expected)


def test_several_sequences_are_saved_together(bundles, tmp_path):
    first, second = OrtSession(bundles["llama"], threads=1), OrtSession(bundles["llama"], threads=1)
    first.reset(2)
    first.feed(np.concatenate([PROMPT, PROMPT[:, ::-1]]))
    first.save_state(tmp_path / "state")
    second.load_state(tmp_path / "state")
    step = np.array([[7], [9]], np.int64)
    np.testing.assert_array_equal(second.feed(step), first.feed(step))


@pytest.mark.parametrize("engine", ENGINES)
def test_generation_in_two_halves_is_generation_at_once(bundles, tmp_path, engine):
    whole = list(generate(open_session(bundles["mamba2"], engine, 1), PROMPT[0], 24))
    first, second = (open_session(bundles["mamba2"], engine, 1) for _ in range(2))
    half = list(go_on(first, None, PROMPT[0], 11))
    first.save_state(tmp_path / "state")
    rest = list(go_on(second, second.load_state(tmp_path / "state"), [], 13))
    assert half + rest == whole


def test_a_text_that_ended_is_in_the_state_without_its_end(bundles):
    session = OrtSession(bundles["llama"], threads=1)
    free = list(generate(session, PROMPT[0], 6))
    session.reset()
    given = list(go_on(session, None, PROMPT[0], 6, eos_ids=[free[3]]))
    assert given == free[: free.index(free[3])]
    assert session.position == PROMPT.shape[1] + len(given)


@pytest.mark.parametrize(
    ("form", "other"),
    [
        ("llama", "llama reduced"),
        ("mamba2", "mamba2 reduced"),
        ("mamba", "mamba2"),
        ("bamba", "jamba"),
        ("lfm2", "bamba"),
    ],
)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_state_of_another_bundle_is_refused_and_the_session_stays(bundles, tmp_path, engine, form, other):
    first, second = open_session(bundles[form], engine, 1), open_session(bundles[other], engine, 1)
    first.feed(PROMPT)
    first.save_state(tmp_path / "state")
    second.feed(PROMPT[:, :2])
    with pytest.raises(BundleError, match="state: the state of another bundle"):
        second.load_state(tmp_path / "state")
    assert second.position == 2


@pytest.mark.skipif("native" not in ENGINES, reason="installed without the native runtime")
@pytest.mark.parametrize("engine", ENGINES)
def test_a_state_of_another_engine_is_refused_and_the_session_stays(bundles, tmp_path, engine):
    session = open_session(bundles["llama"], engine, 1)
    session.feed(PROMPT)
    session.save_state(tmp_path / "state")
    other = open_session(bundles["llama"], "ort" if engine == "native" else "native", 1)
    other.feed(PROMPT[:, :2])
    with pytest.raises(BundleError, match=f"a state of engine '{engine}'"):
        other.load_state(tmp_path / "state")
    assert other.position == 2


def test_a_changed_or_torn_file_is_refused(bundles, tmp_path):
    session = OrtSession(bundles["mamba"], threads=1)
    session.feed(PROMPT)
    session.save_state(tmp_path / "state")
    content = (tmp_path / "state").read_bytes()
    for name, spoilt in {
        "flipped": content[:-1] + bytes([content[-1] ^ 1]),
        "torn": content[:-7],
        "empty": b"",
        "short": content[:5],
        "huge": b"\xff" * 64,
        "text": b"not a state at all, but long enough",
    }.items():
        (tmp_path / name).write_bytes(spoilt)
        with pytest.raises(BundleError, match=f"{name}: (damaged|holds no saved state)"):
            session.load_state(tmp_path / name)
    with pytest.raises(BundleError, match="nothing: no such file"):
        session.load_state(tmp_path / "nothing")
    assert session.position == PROMPT.shape[1]


def test_tensors_of_another_shape_or_name_are_refused(bundles, tmp_path):
    session = OrtSession(bundles["mamba2"], threads=1)
    session.feed(PROMPT)
    session.save_state(tmp_path / "state")
    saved = read_state(tmp_path / "state", "ort", bundle_identity(bundles["mamba2"]))
    name = next(n for n in saved.arrays if n.startswith("past"))
    wider = {**saved.arrays, name: np.concatenate([saved.arrays[name]] * 2, axis=1)}
    fewer = {n: a for n, a in saved.arrays.items() if n != name}
    for arrays, message in ((wider, f"{name} is float32 .*, the graph takes"), (fewer, f"{name} is in one of them")):
        write_state(tmp_path / "other", replace(saved, arrays=arrays))
        with pytest.raises(BundleError, match=message):
            session.load_state(tmp_path / "other")


def test_more_tokens_than_the_context_are_refused(bundles, tmp_path):
    session = OrtSession(bundles["llama"], threads=1)
    session.feed(PROMPT)
    session.save_state(tmp_path / "state")
    saved = read_state(tmp_path / "state", "ort", bundle_identity(bundles["llama"]))
    write_state(tmp_path / "long", replace(saved, position=257))
    with pytest.raises(BundleError, match="257 tokens do not fit the model's context of 256"):
        session.load_state(tmp_path / "long")


@pytest.mark.parametrize("engine", ENGINES)
def test_an_empty_state_is_not_saved(bundles, tmp_path, engine):
    with pytest.raises(RecipeError, match="the state is empty"):
        open_session(bundles["llama"], engine, 1).save_state(tmp_path / "state")
    assert list(tmp_path.iterdir()) == []


def test_onnxruntime_genai_says_that_it_cannot(bundles, tmp_path):
    session = open_session(bundles["llama"], "genai")
    session.feed(PROMPT)
    for call in (session.save_state, session.load_state):
        with pytest.raises(RecipeError, match=r"keeps its state to itself.*use engine 'ort' or 'native'"):
            call(tmp_path / "state")
    with pytest.raises(RecipeError, match="genai keeps its state to itself"):
        next(api.run(bundles["llama"], "Once", engine="genai", save_state=tmp_path / "state"))


def test_the_file_is_safetensors(bundles, tmp_path):
    from safetensors.numpy import load_file

    session = OrtSession(bundles["mamba2"], threads=1)
    logits = session.feed(PROMPT)
    session.save_state(tmp_path / "state.safetensors")
    arrays = load_file(tmp_path / "state.safetensors")
    np.testing.assert_array_equal(arrays["logits"], logits)
    assert sum(a.nbytes for n, a in arrays.items() if n != "logits") == session.state_bytes


def test_an_identity_follows_the_weights_with_and_without_a_manifest(bundles, bundle_copy):
    assert len({bundle_identity(b) for b in bundles.values()}) == len(FORMS)
    (bundle_copy / "edgeslim.json").unlink()
    before = bundle_identity(bundle_copy)
    data = bundle_copy / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-1] + b"\x01")
    assert bundle_identity(bundle_copy) != before


@pytest.mark.parametrize("engine", ["auto", *ENGINES])
def test_runs_in_turn_write_what_one_run_writes(bundles, tmp_path, engine):
    state, bundle = tmp_path / "state", bundles["mamba2"]
    options = {"engine": engine, "raw": True}
    reference = {**options, "engine": "ort" if engine == "auto" else engine}
    whole = "".join(api.run(bundle, "Once upon a time", max_new_tokens=20, **reference))
    parts = ["".join(api.run(bundle, "Once upon", max_new_tokens=0, save_state=state, **options))]
    for prompt, count in ((" a time", 12), ("", 8)):
        parts += api.run(
            bundle, prompt, max_new_tokens=count, load_state=state, save_state=state, force=True, **options
        )
    assert "".join(parts) == whole


def test_a_run_replaces_no_file_unasked(bundles, tmp_path):
    (tmp_path / "state").write_text("mine")
    with pytest.raises(OutputError, match="state: already exists"):
        list(api.run(bundles["llama"], "Once", save_state=tmp_path / "state"))
    assert (tmp_path / "state").read_text() == "mine"


def test_the_command_line_saves_and_loads(bundles, tmp_path):
    from typer.testing import CliRunner

    from edgeslim.cli import app

    def run(*options: str) -> dict[str, str]:
        result = CliRunner().invoke(app, ["run", str(bundles["mamba2"]), "--raw", "--json", *options])
        assert result.exit_code == 0, result.stderr
        return dict(json.loads(result.stdout))

    state = str(tmp_path / "state")
    whole = run("--prompt", "The quick", "--max-new-tokens", "9", "--engine", "ort")
    first = run("--prompt", "The quick", "--max-new-tokens", "4", "--save-state", state)
    second = run("--max-new-tokens", "5", "--load-state", state)
    assert first["text"] + second["text"] == whole["text"]


def test_a_drawn_text_starts_its_draws_anew(bundles, tmp_path):
    """The state is the model's: the numbers that a seed gives are not part of it."""
    drawing = Sampling(temperature=1.0, seed=3)
    first, second = (OrtSession(bundles["mamba"], threads=1) for _ in range(2))
    first.feed(PROMPT)
    first.save_state(tmp_path / "state")
    logits = second.load_state(tmp_path / "state")
    assert list(go_on(second, logits, [], 8, drawing)) == list(generate(first, PROMPT[0], 8, drawing))
