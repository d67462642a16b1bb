"""`edgeslim reduce`: a copy that transformers still loads, its plan in config.json, and refusals that say why."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from families import save_tiny
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import edgeslim
from edgeslim.cli import app
from edgeslim.errors import CheckpointError, EvaluationError, OutputError, RecipeError
from edgeslim.recipe import ReduceRecipe
from edgeslim.reducer import plan_reduction
from edgeslim.tokens.plan import plan_of_config

RUN = CliRunner()


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"), "mamba2", num_hidden_layers=6)


def config_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def test_a_reduced_checkpoint_is_a_copy_with_a_plan(model: Path, tmp_path: Path) -> None:
    report = edgeslim.reduce(model, tmp_path / "out", flops=0.15, prompt_tokens=512)
    config = config_of(tmp_path / "out")
    assert plan_of_config(config) == report.plan
    assert {key: value for key, value in config.items() if key != "edgeslim"} == config_of(model)
    for file in model.iterdir():
        if file.name != "config.json":
            assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        logits = [AutoModelForCausalLM.from_pretrained(each)(tokens).logits for each in (model, tmp_path / "out")]
    assert torch.equal(*logits)


def test_what_an_earlier_stage_wrote_stays(model: Path, tmp_path: Path) -> None:
    edgeslim.reduce(model, tmp_path / "one", flops=0.1)
    path = tmp_path / "one" / "config.json"
    config = config_of(tmp_path / "one")
    path.write_text(json.dumps(config | {"edgeslim": config["edgeslim"] | {"prune": {"method": "mrp"}}}))
    edgeslim.reduce(tmp_path / "one", tmp_path / "two", method="evit", flops=0.1)
    after = config_of(tmp_path / "two")["edgeslim"]
    assert after["prune"] == {"method": "mrp"}
    assert after["reduction"]["method"] == "evit"


def test_the_verb_prints_both_cuts(model: Path, tmp_path: Path) -> None:
    said = RUN.invoke(app, ["reduce", str(model), "-o", str(tmp_path / "a"), "--flops", "0.2"]).stdout
    assert "FLOPs of the prefill: 20." in said.replace("19.9", "20.0")
    assert "by the paper's formula:" in said
    options = ["--layers", "1,3", "--ratio", "0.8", "--method", "random", "--protect-last", "2", "--json"]
    printed = json.loads(RUN.invoke(app, ["reduce", str(model), "-o", str(tmp_path / "b"), *options]).stdout)
    assert (printed["layers"], printed["ratio"], printed["method"]) == ([1, 3], 0.8, "random")
    assert printed["flops_cut_formula"] == pytest.approx(1 - (2 + 2 * 0.8 + 2 * 0.64) / 6, abs=1e-6)
    assert 0 < printed["flops_cut_counted"] < printed["flops_cut_formula"]
    assert printed["kept"] == [820, 656]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--flops", "0.9"], "error: flops 0.9 cannot be reached at layers"),
        (["--flops", "0.2", "--ratio", "0.8"], "error: reduce: flops and ratio exclude each other"),
        (["--layers", "1,x"], "error: layers: expected integers parted by commas, got '1,x'"),
        (["--layers", "9"], "error: layers must be at most 5, the model's last, got 9"),
        (["--method", "evot"], "did you mean 'evit'"),
        (["--metric", "attention"], "error: metric attention needs attention, and the model is a mamba2"),
        (["--ratio", "0.3"], "error: ratio must be in [0.5, 1]"),
        (["--measure", "--layers", "1,2"], "error: reduce: measure chooses layers; it goes with flops alone"),
        (["--prompt-tokens", "100"], "error: flops 0.2 cannot be met at a prompt of 100 tokens, fewer than min_tokens"),
    ],
)
def test_what_cannot_be_had_is_one_line(model: Path, tmp_path: Path, options: list[str], message: str) -> None:
    result = RUN.invoke(app, ["reduce", str(model), "-o", str(tmp_path / "out"), *options])
    assert result.exit_code == 1
    assert message in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_existing_output_is_refused(model: Path, tmp_path: Path) -> None:
    edgeslim.reduce(model, tmp_path / "out")
    with pytest.raises(OutputError, match="already exists"):
        edgeslim.reduce(model, tmp_path / "out")
    edgeslim.reduce(model, tmp_path / "out", method="random", force=True)
    assert config_of(tmp_path / "out")["edgeslim"]["reduction"]["method"] == "random"


def test_measured_layers_are_those_that_cost_least_on_text(model: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("once upon a time there was a small model that read every line, one after another. " * 120)
    options = ["--flops", "0.1", "--prompt-tokens", "96", "--min-tokens", "64"]
    measured = ["--measure", "--calib", str(text), "--samples", "3", "--json"]
    said = RUN.invoke(app, ["reduce", str(model), "-o", str(tmp_path / "out"), *options, *measured])
    report = json.loads(said.stdout)
    dense, *trials = report["trials"]
    assert dense["layers"] == [] and len(trials) > 1
    assert len({trial["suffix_nll"] for trial in report["trials"]}) == len(report["trials"])
    best = min(trials, key=lambda trial: trial["suffix_nll"])
    assert (report["layers"], report["ratio"]) == (best["layers"], best["ratio"])
    assert list(plan_of_config(config_of(tmp_path / "out")).layers) == best["layers"]
    assert report["flops_cut_counted"] == pytest.approx(0.1, abs=0.01)
    printed = RUN.invoke(app, ["reduce", str(model), "-o", str(tmp_path / "b"), *options, *measured[:-1]]).stdout
    assert "unreduced: " in printed and printed.count("nats a token") == len(report["trials"])


def test_transformers_of_attention_get_its_metric(tmp_path: Path) -> None:
    config = config_of(save_tiny(tmp_path / "llama", "llama"))
    assert plan_reduction(config, ReduceRecipe(flops=0.1)).plan.metric == "attention"
    with pytest.raises(CheckpointError, match="'gpt2'"):
        plan_reduction({"model_type": "gpt2"}, ReduceRecipe())


def test_eval_compares_a_reduced_model_with_itself(model: Path, tmp_path: Path) -> None:
    edgeslim.reduce(model, tmp_path / "out", flops=0.2, min_tokens=32)
    text = tmp_path / "text.txt"
    text.write_text("once upon a time there was a small model that read every line. " * 60)
    small = ["--windows", "2", "--prompts", "1", "--seeds", "2", "--seqlen", "64"]
    printed = RUN.invoke(
        app,
        ["eval", str(tmp_path / "out"), "--suite", "reduction", "--text", str(text), *small, "--json"],
    )
    result = json.loads(printed.stdout)
    for name in ("suffix_perplexity", "kept_perplexity", "coverage"):
        assert result[name] > 0 and result[f"dense_{name}"] > 0
    assert result["coverage"] < result["dense_coverage"] == 1.0
    assert len(result["recall"]) == len(result["dense_recall"]) > 0
    assert result["plan"]["method"] == "utrc" and result["seeds"] == [0, 1]
    with pytest.raises(EvaluationError, match="no plan of token reduction"):
        edgeslim.eval(model, suite="reduction", text=str(text))
    with pytest.raises(RecipeError, match="did you mean 'reduction'"):
        edgeslim.eval(model, suite="reductions")
