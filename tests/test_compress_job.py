"""One recipe, the whole way: what is written, in which order steps are taken, and what is refused before any of it."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from families import CORPUS, save_tiny
from typer.testing import CliRunner

import edgeslim
from edgeslim.cli import app
from edgeslim.errors import RecipeError
from edgeslim.runtime.manifest import Manifest
from edgeslim.tokens.plan import plan_of_config

PRUNE = '[prune]\nmethod = "wanda"\ncalib = "{text}"\nsamples = 4\nseqlen = 32\n'
REDUCE = "[reduce]\nflops = 0.15\nlayers = [0, 1]\nprompt_tokens = 64\nmin_tokens = 32\nprotect_last = 2\n"
EVAL = '[eval]\ntext = "{text}"\nseqlen = 64\nsuite = "reduction"\nseeds = 1\nwindows = 2\nprompts = 2\n'


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"), "mamba2")


@pytest.fixture
def recipe(tmp_path: Path, model: Path):
    """Return a function from tables to the file of a recipe for the model."""
    text = tmp_path / "text.txt"
    text.write_text("\n".join(CORPUS) * 20)

    def written(*tables: str, head: str = "") -> Path:
        file = tmp_path / "recipe.toml"
        file.write_text(f'model = "{model}"\n{head}' + "".join(tables).replace("{text}", str(text)))
        return file

    return written


def test_a_recipe_prunes_then_reduces_then_exports_then_scores(recipe, tmp_path):
    output = tmp_path / "out"
    report = edgeslim.compress(recipe(PRUNE, REDUCE, '[export]\nweights = "fp32"\n', EVAL), output)

    assert sorted(entry.name for entry in output.iterdir()) == ["bundle", "checkpoint", "report.json"]
    assert json.loads((output / "report.json").read_text()) == json.loads(json.dumps(report))  # its recipe has tuples
    config = json.loads((output / "checkpoint" / "config.json").read_text())
    plan = plan_of_config(config)
    assert (plan.layers, plan.protect_last) == ((0, 1), 2)
    assert abs(plan.flops_cut_counted - 0.15) <= 0.01
    assert report["reduce"]["kept"] == list(plan.kept(64))
    assert report["prune"]["relative_error"] > 0
    manifest = Manifest.read(output / "bundle")
    assert manifest.recipe["reduction"] == json.loads(json.dumps(plan.to_json()))
    assert 0.4 < sum(layer.sparsity for layer in manifest.layers) / len(manifest.layers) < 0.6
    assert list(report["models"]) == ["dense", "pruned and reduced"]
    scored = report["models"]["pruned and reduced"]["eval"]
    assert scored["coverage"] < 1 == scored["dense_coverage"]
    assert scored == json.loads(json.dumps(_eval(output / "bundle", tmp_path)))
    assert "eval" not in report["models"]["dense"]  # a bundle that reduces nothing has nothing to compare


def _eval(bundle: Path, tmp_path: Path) -> dict:
    text = str(tmp_path / "text.txt")
    return asdict(edgeslim.eval(bundle, suite="reduction", text=text, seqlen=64, seeds=1, windows=2, prompts=2))


def test_a_recipe_that_only_reduces_is_compared_with_the_model_as_it_was(recipe, tmp_path):
    """Perplexity of what a reduction keeps stands beside that of all tokens."""
    file = recipe(REDUCE, EVAL.replace('"reduction"', '"perplexity"'), "[run]\nmax_new_tokens = 4\n")
    said = CliRunner().invoke(app, ["compress", str(file), "-o", str(tmp_path / "out")], catch_exceptions=False)

    assert said.exit_code == 0
    assert "perplexity" in said.stdout
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert list(report["models"]) == ["dense", "reduced"]
    assert report["prune"] is None
    tokens = [report["models"][name]["eval"]["tokens"] for name in report["models"]]
    assert tokens[1] < tokens[0]


def test_the_table_shows_reduced_beside_dense(recipe, tmp_path):
    file = recipe(REDUCE, EVAL, head="baseline = false\n")
    said = CliRunner().invoke(app, ["compress", str(file), "-o", str(tmp_path / "out")], catch_exceptions=False)

    assert "suffix perplexity" in said.stdout
    assert said.stdout.count("(dense ") == 2


@pytest.mark.parametrize(
    ("tables", "head", "message"),
    [
        ((), "", r"baseline needs a \[prune\] or \[reduce\] step"),
        ((PRUNE, EVAL), "", r"suite reduction needs a \[reduce\] step"),
        (("[reduce]\nflop = 0.2\n",), "", r"\[reduce\]: unknown key 'flop'; did you mean 'flops'"),
        (("[reduce]\nflops = 0.2\nratio = 0.8\n",), "", "flops and ratio exclude each other"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_any_work(recipe, tmp_path, tables, head, message):
    with pytest.raises(RecipeError, match=message):
        edgeslim.compress(recipe(*tables, head=head), tmp_path / "out")
    assert not (tmp_path / "out").exists()
