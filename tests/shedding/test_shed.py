"""A checkpoint without some blocks or heads is the model that was measured, and every later stage takes it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from families import CORPUS, add_config, save_tiny
from transformers import AutoModelForCausalLM

from edgeslim import api
from edgeslim.checkpoint import Checkpoint, Skeleton
from edgeslim.errors import CheckpointError, OutputError, RecipeError
from edgeslim.reducer import read_config
from edgeslim.shedding.expressible import Expressible
from edgeslim.shedding.model import SheddableModel

WINDOWS: dict[str, Any] = {"samples": 4, "seqlen": 32}


@pytest.fixture(scope="module")
def calib(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("\n".join(CORPUS) * 20)
    return str(file)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("checkpoints")

    def saved(family: str, **changes: Any) -> Path:
        folder = root / "-".join([family, *(f"{k}{v}" for k, v in changes.items())])
        return folder if folder.is_dir() else save_tiny(folder, family, **changes)

    return saved


def loss(folder: Path, tokens: torch.Tensor) -> float:
    """The loss of a checkpoint as transformers loads and computes it."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()))


def windows(folder: Path, calib: str) -> torch.Tensor:
    from edgeslim.recipe import PruneRecipe

    return api.calibration_windows(PruneRecipe(calib=calib, **WINDOWS), Checkpoint.open(folder)).tokens


FAMILIES = [
    "llama",
    "mistral",
    "qwen2",
    "gemma3_text",
    "gpt2",
    "mamba",
    "mamba2",
    "bamba",
    "nemotron_h",
    "lfm2",
    "zamba2",
]


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_loads_the_rest_and_finds_the_loss_that_was_measured(family, checkpoints, calib, tmp_path):
    source = checkpoints(family)
    report = api.shed(source, tmp_path / "out", blocks=1, calib=calib, **WINDOWS)
    tokens = windows(source, calib)
    assert report.dense_loss == pytest.approx(loss(source, tokens), abs=1e-4)
    assert report.loss == pytest.approx(loss(tmp_path / "out", tokens), abs=1e-4)
    assert len(report.blocks) == 1 and 0 < report.removed < 1
    assert report.parameters == sum(p.numel() for p in Checkpoint.open(tmp_path / "out").load().parameters())


def test_the_block_that_goes_is_the_one_whose_absence_costs_least(checkpoints, calib, tmp_path):
    source = checkpoints("llama")
    report = api.shed(source, tmp_path / "out", blocks=2, calib=calib, **WINDOWS)
    tokens = windows(source, calib)

    def without(gone: list[int]) -> float:
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
        model.model.layers = torch.nn.ModuleList(b for i, b in enumerate(model.model.layers) if i not in gone)
        with torch.no_grad():
            logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
        return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()))

    first = min(range(3), key=lambda i: without([i]))
    second = min((i for i in range(3) if i != first), key=lambda i: without([first, i]))
    assert report.blocks == (first, second)
    assert report.loss == pytest.approx(without([first, second]), abs=1e-4)


@pytest.mark.parametrize(
    ("family", "heads", "form"),
    [("mamba2", 4, "mamba2"), ("mamba2", 2, "nemotron_h"), ("nemotron_h", 2, "nemotron_h")],
)
@pytest.mark.parametrize("tied", [False, True])
def test_heads_go_from_every_mixer(family, heads, form, tied, checkpoints, calib, tmp_path):
    if tied and family == "nemotron_h":
        pytest.skip("transformers ties no head of Nemotron-H")
    source = checkpoints(family, tie_word_embeddings=tied)
    report = api.shed(source, tmp_path / "out", heads=heads, calib=calib, **WINDOWS)
    assert report.model_type == form and {len(gone) for gone in report.heads.values()} == {heads}
    assert report.loss == pytest.approx(loss(tmp_path / "out", windows(source, calib)), abs=1e-4)
    assert report.parameters < report.dense_parameters


def test_fitting_the_output_projections_brings_the_logits_nearer_to_those_of_all_heads(checkpoints, calib, tmp_path):
    source = checkpoints("mamba2")
    tokens = windows(source, calib)

    @torch.no_grad()
    def logits(folder: Path) -> torch.Tensor:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(tokens, use_cache=False).logits

    errors = {}
    for refit in (False, True):
        output = tmp_path / str(refit)
        api.shed(source, output, heads=4, refit=refit, method="random", calib=calib, **WINDOWS)
        errors[refit] = float((logits(output) - logits(source)).square().mean())
    assert errors[True] < 0.7 * errors[False]


def test_a_share_of_parameters_is_kept_to_by_blocks_and_then_heads(checkpoints, calib, tmp_path):
    report = api.shed(checkpoints("mamba2"), tmp_path / "out", parameters=0.4, calib=calib, **WINDOWS)
    assert len(report.blocks) == 1 and {len(gone) for gone in report.heads.values()} == {2}
    assert 0.3 < report.removed <= 0.4


@pytest.mark.parametrize("method", ["random", "last", "magnitude"])
def test_baselines_choose_by_their_rule(method, checkpoints, calib, tmp_path):
    report = api.shed(checkpoints("llama"), tmp_path / "out", blocks=2, method=method, calib=calib, **WINDOWS)
    assert len(set(report.blocks)) == 2
    if method == "last":
        assert report.blocks == (2, 1)
    assert report == api.shed(
        checkpoints("llama"), tmp_path / "out", blocks=2, method=method, calib=calib, force=True, **WINDOWS
    )


def test_a_killed_search_goes_on_to_the_same_end(checkpoints, calib, tmp_path):
    source, options = checkpoints("mamba2"), {"blocks": 1, "heads": 2, "calib": calib, **WINDOWS}
    whole = api.shed(source, tmp_path / "whole", **options)
    seen: list[str] = []

    def stop_at(label: str) -> Any:
        def progress(done: int, total: int, text: str) -> None:
            seen.append(text)
            if done and text.startswith(label):
                raise KeyboardInterrupt

        return progress

    for label in ("block 1 of 1", "heads, round 1 of 1"):
        with pytest.raises(KeyboardInterrupt):
            api.shed(source, tmp_path / "killed", progress=stop_at(label), **options)
    with pytest.raises(OutputError, match="other arguments"):
        api.shed(source, tmp_path / "killed", **{**options, "heads": 4})
    assert api.shed(source, tmp_path / "killed", progress=stop_at("never"), **options) == whole
    assert sum(text.endswith("without block 0") for text in seen) == 2  # the third call found that step finished
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(("family", "options"), [("mamba2", {"heads": 2}), ("mamba", {"blocks": 1})])
def test_the_rest_is_pruned_exported_and_run_like_any_other(family, options, checkpoints, calib, tmp_path):
    source = checkpoints(family, tie_word_embeddings=True)
    api.shed(source, tmp_path / "shed", calib=calib, **options, **WINDOWS)
    api.prune(tmp_path / "shed", tmp_path / "pruned", method="wanda", calib=calib, **WINDOWS)
    manifest = api.export(tmp_path / "pruned", tmp_path / "bundle")
    assert max(manifest.parity["max_abs_error"].values()) < manifest.parity["tolerance"]
    assert isinstance("".join(api.run(tmp_path / "bundle", "Once upon", max_new_tokens=4, raw=True)), str)
    edgeslim = json.loads((tmp_path / "pruned" / "config.json").read_text())["edgeslim"]
    assert {"shed", "prune"} <= edgeslim.keys()


def test_shards_stay_shards(checkpoints, calib, tmp_path):
    source = save_tiny(tmp_path / "source", "llama", shard_size="100KB")
    report = api.shed(source, tmp_path / "out", blocks=1, calib=calib, **WINDOWS)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    assert report.loss == pytest.approx(loss(tmp_path / "out", windows(source, calib)), abs=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "say how much to take out: blocks and heads, or parameters"),
        ({"blocks": 1, "parameters": 0.1}, "say how much to take out"),
        ({"blocks": 0}, "blocks and heads are 0"),
        ({"blocks": 3}, "blocks must be less than the model's 3, got 3"),
        ({"parameters": 0.01}, r"parameters 0\.01 is less than the least that can go, 0\.\d+"),
        ({"parameters": 1.5}, r"parameters must be in \(0, 1\)"),
        ({"heads": 1}, "Mamba-2 mixers only"),
        ({"blocks": 1, "method": "messured"}, "did you mean 'measured'"),
    ],
)
def test_what_cannot_be_meant_is_refused(options, message, checkpoints, calib, tmp_path):
    with pytest.raises(RecipeError, match=message):
        api.shed(checkpoints("llama"), tmp_path / "out", calib=calib, **options, **WINDOWS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 1}, "heads must be a multiple of 2 below 8, got 1"),
        ({"heads": 8}, "heads must be a multiple of 2 below 8, got 8"),
        ({"heads": 2, "method": "last"}, "method last is for blocks"),
    ],
)
def test_heads_that_cannot_go_are_refused(options, message, checkpoints, calib, tmp_path):
    with pytest.raises(RecipeError, match=message):
        api.shed(checkpoints("mamba2"), tmp_path / "out", calib=calib, **options, **WINDOWS)


def test_a_time_step_limit_that_nemotron_h_cannot_say_is_refused(checkpoints, calib, tmp_path):
    source = checkpoints("mamba2", time_step_limit=(0.0, 0.5))
    with pytest.raises(RecipeError, match=r"6 heads of 16 are no multiple of the hidden size 64.*limit of 0\.5"):
        api.shed(source, tmp_path / "out", heads=2, calib=calib, **WINDOWS)


@pytest.mark.parametrize(
    ("family", "able"), [("jamba", {2}), ("zamba2", {0, 3}), ("bamba", {0, 1, 2}), ("nemotron_h", {0, 1, 2, 3})]
)
def test_the_blocks_that_can_go_are_those_whose_rest_reads_back(family, able, checkpoints, calib, tmp_path):
    checkpoint = Checkpoint.open(checkpoints(family))
    skeleton = Skeleton(checkpoint, checkpoint.load())
    can_go = Expressible(checkpoint, read_config(checkpoint.folder), skeleton)
    assert {index for index in range(len(skeleton.blocks)) if can_go({index})} == able


@pytest.mark.parametrize(
    ("family", "options", "able"),
    [
        ("jamba", {"blocks": 1}, r"\[2\]"),
        ("jamba", {"blocks": 1, "method": "random"}, r"\[2\]"),
        ("jamba", {"parameters": 0.4}, r"\[2\]"),
        ("zamba2", {"blocks": 3}, r"\[0, 3\]"),
        ("zamba2", {"blocks": 3, "method": "last"}, r"\[0, 3\]"),
    ],
)
def test_what_a_configuration_cannot_say_is_refused_before_anything_is_measured(
    family, options, able, checkpoints, calib, tmp_path, monkeypatch
):
    def measured(*_: Any) -> float:
        raise AssertionError("measured")

    monkeypatch.setattr(SheddableModel, "loss", measured)
    with pytest.raises(CheckpointError, match=rf"a {family} without .* can leave out {able} of its \d blocks") as fault:
        api.shed(checkpoints(family), tmp_path / "out", calib=calib, **options, **WINDOWS)
    assert "\n" not in str(fault.value)
    assert list(tmp_path.iterdir()) == []


def test_the_end_of_a_model_whose_kinds_follow_from_places_can_go(checkpoints, calib, tmp_path):
    source = checkpoints("jamba")
    report = api.shed(source, tmp_path / "out", blocks=1, method="last", calib=calib, **WINDOWS)
    assert report.blocks == (2,)
    assert report.loss == pytest.approx(loss(tmp_path / "out", windows(source, calib)), abs=1e-4)


def test_a_checkpoint_of_later_stages_is_refused(calib, tmp_path):
    source = save_tiny(tmp_path / "source", "llama")
    add_config(source, edgeslim={"reduction": {}})
    with pytest.raises(CheckpointError, match="shed first, then reduce"):
        api.shed(source, tmp_path / "out", blocks=1, calib=calib, **WINDOWS)
    add_config(source, edgeslim={})
    (source / "edgeslim_grid.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="shed first, then prune"):
        api.shed(source, tmp_path / "out", blocks=1, calib=calib, **WINDOWS)


def test_the_command_line_prints_one_report(checkpoints, calib, tmp_path):
    from typer.testing import CliRunner

    from edgeslim.cli import app

    arguments = ["shed", str(checkpoints("llama")), "-o", str(tmp_path / "out"), "--blocks", "1", "--calib", calib]
    result = CliRunner().invoke(app, [*arguments, "--samples", "4", "--seqlen", "32", "--json"])
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout) == json.loads((tmp_path / "out" / "shed_report.json").read_text())
    again = CliRunner().invoke(app, [*arguments, "--samples", "4", "--seqlen", "32", "--force"])
    assert "parameters" in again.stdout and "blocks taken out" in again.stdout
