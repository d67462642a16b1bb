"""The command line as its users meet it: one process a test where start-up matters, in-process elsewhere."""

import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from families import CORPUS, save_tiny
from typer.testing import CliRunner

import edgeslim
from edgeslim.cli import app
from edgeslim.recipe import FrontierRecipe
from edgeslim.search.trials import Result

RUN = CliRunner()


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("\n".join(CORPUS) * 20)
    return str(file)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("model"), "llama"))


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory, model: str, text: str) -> tuple[str, dict[str, object]]:
    output = str(tmp_path_factory.mktemp("pruned") / "out")
    return output, _json("prune", model, "-o", output, "--calib", text, "--samples", "4", "--seqlen", "32")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, pruned: tuple[str, object]) -> str:
    output = str(tmp_path_factory.mktemp("bundle") / "out")
    assert _json("export", pruned[0], "-o", output, "--weights", "fp32")["weights"] == "fp32"
    return output


def test_export_says_why_a_pruned_checkpoint_became_int8(
    tmp_path: Path, pruned: tuple[str, object], model: str
) -> None:
    for source, weights, expected in ((pruned[0], "auto", True), (pruned[0], "int8", False), (model, "auto", False)):
        arguments = ["export", source, "-o", str(tmp_path / "out"), "--force", "--weights", weights]
        said = RUN.invoke(app, arguments, catch_exceptions=False).stdout
        assert ("pruned without a grid" in said) == expected


def test_frontier_prints_a_finished_table_the_form_to_take_and_how_to_make_it(tmp_path: Path, model: str) -> None:
    sizes = {
        "0.5-int3": (2.74, 81.46, 3_000_000),
        "mixed-2.75": (2.75, 81.2, 2_900_000),
        "int4": (4.25, 81.05, 4_000_000),
    }
    trials = [
        asdict(Result(name=name, budget=None, bits=bits, perplexity=value, weight_bytes=size, bundle_bytes=size))
        for name, (bits, value, size) in sizes.items()
    ]
    trials[0] |= {"decode_tok_s": 255.0, "prefill_tok_s": 9436.0, "doubtful": True}
    report = {"model": model, "recipe": asdict(FrontierRecipe()), "dense_perplexity": 80.98, "trials": trials}
    (tmp_path / "frontier.json").write_text(json.dumps(report))
    said = RUN.invoke(app, ["frontier", model, "-o", str(tmp_path)], catch_exceptions=False).stdout
    assert "~255" in said and "~9436" in said and "~: measured with a warning" in said
    assert "mixed-2.75 *" in said and "int4 *" in said and "0.5-int3 *" not in said
    assert "Smallest within 1% of the dense perplexity: mixed-2.75." in said
    assert f"{tmp_path}/trials/mixed-2.75/recipe.toml" in said.replace("\n", "")
    said = RUN.invoke(app, ["frontier", model, "-o", str(tmp_path), "--max-bytes", "9"], catch_exceptions=False).stdout
    assert "Best with at most 0.00 MB: none." in said


def _json(*arguments: str) -> dict[str, object]:
    """Return the one JSON object that a verb prints on stdout."""
    result = RUN.invoke(app, [*arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return dict(json.loads(result.stdout))


def test_help_loads_no_heavy_library() -> None:
    heavy = "{'torch', 'transformers', 'numpy', 'onnx', 'onnxruntime', 'mobius', 'rich.progress'}"
    code = (
        "import sys, edgeslim.cli\ntry: edgeslim.cli.app(['--help'])\nexcept SystemExit: pass\n"
        f"print('loaded', {heavy} & set(sys.modules), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "loaded set()" in result.stderr
    assert all(verb in result.stdout for verb in ("prune", "export", "inspect", "run", "profile", "eval", "compress"))


def test_every_public_name_exists_and_the_list_is_sorted() -> None:
    assert edgeslim.__all__ == sorted(edgeslim.__all__)
    assert all(getattr(edgeslim, name) is not None for name in edgeslim.__all__)


def test_verbs_stay_functions_after_their_modules_are_loaded() -> None:
    import edgeslim.pruning.methods

    assert edgeslim.pruning.methods
    verbs = ("prune", "export", "inspect", "run", "profile", "eval", "compress")
    assert all(callable(getattr(edgeslim, verb)) for verb in verbs)


def test_prune_prints_one_report_with_the_error_of_every_linear(pruned: tuple[str, dict[str, object]]) -> None:
    report = pruned[1]
    assert report["method"] == "mrp" and report["effort"] == "best" and report["sparsity"] == pytest.approx(0.5)
    linears = report["linears"]
    assert isinstance(linears, list) and len(linears) == 21
    assert all(0 < linear["relative_error"] < 1 for linear in linears)


def test_eval_agrees_between_checkpoint_and_bundle(pruned: tuple[str, object], bundle: str, text: str) -> None:
    of_checkpoint, of_bundle = (_json("eval", of, "--text", text, "--seqlen", "64") for of in (pruned[0], bundle))
    assert of_checkpoint.keys() == {"model", "perplexity", "tokens", "windows"}
    assert of_checkpoint["tokens"] == of_bundle["tokens"]
    assert of_bundle["perplexity"] == pytest.approx(of_checkpoint["perplexity"], rel=1e-3)


def test_run_streams_text_and_gives_the_same_as_json(bundle: str) -> None:
    arguments = ("run", bundle, "--prompt", "Once upon", "--max-new-tokens", "8", "--raw")
    plain = RUN.invoke(app, list(arguments)).stdout
    assert plain == f"{_json(*arguments)['text']}\n"


def test_profile_prints_the_object_of_the_contract(bundle: str) -> None:
    measured = _json("profile", bundle, "--prompt-tokens", "8", "--new-tokens", "4", "--repeats", "2", "--threads", "1")
    assert measured["measured"] is True and measured["repeats"] == 2 and measured["prompt_tokens"] == 8
    assert float(str(measured["decode_tok_s_p50"])) > 0


def test_profiles_of_two_bundles_make_one_report_with_perplexities(bundle: str, text: str, tmp_path: Path) -> None:
    second = str(shutil.copytree(bundle, tmp_path / "second"))
    few = ("--prompt-tokens", "8", "--new-tokens", "4", "--repeats", "1", "--threads", "1")
    report = str(tmp_path / "report.html")
    scored = ("--text", text, "--seqlen", "64", "-o", report)
    result = RUN.invoke(app, ["profile", bundle, second, *few, *scored, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    profiles = json.loads(result.stdout)
    assert [profile["bundle"] for profile in profiles] == [bundle, second]
    assert profiles[0]["perplexity"] == profiles[1]["perplexity"] > 1
    page = Path(report).read_text()
    assert "Latency over perplexity" in page and f"{profiles[0]['perplexity']:.2f}" in page
    (tmp_path / "profiles.json").write_text(result.stdout)
    again = _json("report", str(tmp_path / "profiles.json"), "-o", str(tmp_path / "report.md"))
    assert again["profiles"] == profiles
    assert RUN.invoke(app, ["profile", bundle, *few, "-o", report]).exit_code == 1


def test_compress_takes_the_whole_way_and_resumes(tmp_path: Path, model: str, text: str) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'model = "{model}"\n[prune]\nmethod = "wanda"\ncalib = "{text}"\nsamples = 4\nseqlen = 32\n'
        f'[run]\nmax_new_tokens = 4\n[eval]\ntext = "{text}"\nseqlen = 64\n'
    )
    output = tmp_path / "out"
    report = _json("compress", str(recipe), "-o", str(output))
    assert sorted(entry.name for entry in output.iterdir()) == ["bundle", "checkpoint", "report.json"]
    assert json.loads((output / "report.json").read_text()) == report
    models = report["models"]
    assert isinstance(models, dict) and list(models) == ["dense", "pruned"]
    assert models["dense"]["eval"]["perplexity"] != models["pruned"]["eval"]["perplexity"]
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []
    table = RUN.invoke(app, ["compress", str(recipe), "-o", str(output), "--force"])
    assert table.exit_code == 0 and "perplexity" in table.stdout and "pruned" in table.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prune", "/no/such/model", "-o", "{}/out"], "/no/such/model: no such folder"),
        (["prune", "{model}", "-o", "{}/out", "--method", "wonda"], "did you mean 'wanda'"),
        (["prune", "{model}", "-o", "{}/out", "--sparsity", "50"], "sparsity must be in [0, 1), got 50; 50 % is 0.5"),
        (["prune", "{model}", "-o", "{}/out", "--pattern", "4:2"], "4:2"),
        (["prune", "{model}", "-o", "{}/out", "--device", "cuda:99"], "device 'cuda:99' cannot be used"),
        (["prune", "{model}", "-o", "{}/out", "--seqlen", "4096"], "longer than the model's context of 256"),
        (["prune", "{model}", "-o", "{}/out", "--calib", "{}"], "no text files"),
        (["export", "{model}", "-o", "{model}"], "already exists and is not empty"),
        (["eval", "{model}", "--text", "{}/none.txt"], "no such text file"),
        (["run", "{}"], "{}: not a bundle: it has no model.onnx"),
        (["run", "{}/none"], "{}/none: no such bundle folder"),
        (["run", "{model}"], "it has no model.onnx; it is a checkpoint, which `edgeslim export` makes a bundle of"),
        (["profile", "{model}"], "which `edgeslim export` makes a bundle of"),
        (["profile", "{}/none"], "none"),
        (["compress", "{}/none.toml", "-o", "{}/out"], "no such recipe"),
    ],
)
def test_an_expected_fault_is_one_line_and_exit_1(
    tmp_path: Path, model: str, arguments: list[str], message: str
) -> None:
    filled = [argument.replace("{}", str(tmp_path)).replace("{model}", model) for argument in arguments]
    result = RUN.invoke(app, filled)
    assert result.exit_code == 1
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    assert message.replace("{}", str(tmp_path)) in lines[0]


@pytest.mark.parametrize(("package", "extra"), [("torch", "compress"), ("mobius", "export")])
def test_a_missing_package_names_the_extra_that_brings_it(
    tmp_path: Path, model: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=f"{package}.part")

    monkeypatch.setattr("edgeslim.api.export", missing)
    result = RUN.invoke(app, ["export", model, "-o", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert result.stderr.strip() == (
        f'error: this needs {package}.part; install it with: pip install "edgeslim[{extra}]"'
    )


def test_a_fault_of_usage_exits_2() -> None:
    assert RUN.invoke(app, ["prune"]).exit_code == 2
    assert RUN.invoke(app, ["prune", "model", "-o", "out", "--sparsity", "half"]).exit_code == 2
