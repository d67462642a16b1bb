"""The whole of `frontier` on a tiny model: trials, files, resumption."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from families import save_tiny

import edgeslim
from edgeslim import api
from edgeslim.errors import OutputError, RecipeError
from edgeslim.search.forms import Form, parse_range
from edgeslim.search.trials import Result, best, budgets, middle, undominated

WORDS = "once upon a time there was a small model that lived on a device with two cores and read every line "


def test_forms_say_their_bits() -> None:
    assert [Form("0", "int3:64").bits, Form("0.5", "int3:64").bits, Form("2:4", "int4:64").bits] == [3.25, 2.75, 3.25]
    assert [str(Form("0", "int3:64")), str(Form("2:4", "int4:64")), str(Form("0.4", "int3:64"))] == [
        "int3",
        "2:4 int4",
        "0.4 int3",
    ]


@pytest.mark.parametrize("text", ["3", "4-3", "a-b", "0-3"])
def test_a_range_of_bits_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match=f"got '{text}'"):
        parse_range(text)


def test_budgets_are_far_apart_where_little_is_to_gain_and_none_is_outside_the_range() -> None:
    assert budgets(2.2, 4.5) == [2.25, 2.5, 2.75, 3.0, 3.25, 3.75, 4.25]
    assert budgets(3.0, 8.25)[-3:] == [7.25, 7.75, 8.25]
    assert budgets(2.6, 2.7) == [2.7]  # a range narrower than a step is still asked for
    assert budgets(3.0, 2.9) == []


def _result(name: str, size: int, perplexity: float, speed: float | None = None) -> Result:
    return Result(
        name=name,
        budget=None,
        bits=3.0,
        perplexity=perplexity,
        weight_bytes=size,
        bundle_bytes=size,
        decode_tok_s=speed,
    )


def test_the_best_is_within_the_budgets_and_the_front_is_what_nothing_beats() -> None:
    results = [
        _result("a", 10, 9.0, 50),
        _result("b", 20, 7.0, 40),
        _result("c", 30, 8.0, 60),
        _result("d", 40, 6.0, 20),
    ]
    assert [result.name for result in undominated(results)] == ["a", "b", "d"]
    chosen = best(results, 6.0, max_bytes=35, min_tok_s=None)
    assert chosen is not None and chosen.name == "b"
    chosen = best(results, 6.0, max_bytes=None, min_tok_s=45)
    assert chosen is not None and chosen.name == "c"
    assert best(results, 6.0, max_bytes=5, min_tok_s=None) is None


def test_without_a_budget_the_best_is_the_smallest_that_costs_little() -> None:
    results = [_result("small", 10, 7.0), _result("close", 20, 6.05), _result("closer", 30, 6.01)]
    chosen = best(results, 6.0, max_bytes=None, min_tok_s=None)
    assert chosen is not None and chosen.name == "close"
    assert best(results[:1], 6.0, max_bytes=None, min_tok_s=None) is None


def _turn(decode: float, prefill: float, doubtful: bool = False) -> dict[str, Any]:
    return {"decode_tok_s": decode, "prefill_tok_s": prefill, "doubtful": doubtful}


def test_a_speed_is_the_median_of_the_turns_in_which_the_machine_was_quiet() -> None:
    assert middle([_turn(90, 900), _turn(100, 1000), _turn(120, 800)]) == _turn(100, 900)
    assert middle([_turn(90, 900), _turn(10, 100, True), _turn(20, 200, True)]) == _turn(90, 900)
    assert middle([_turn(30, 300, True), _turn(10, 100, True), _turn(20, 200, True)]) == _turn(20, 200, True)


def test_forms_take_turns_when_their_speeds_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    save_tiny(tmp_path / "model", "llama", dtype=torch.bfloat16)
    (tmp_path / "text.txt").write_text(WORDS * 40)
    order: list[str] = []
    original = api.profile

    def counted(bundle: Any, **kwargs: Any) -> Any:
        order.append(Path(bundle).parent.name)
        return original(bundle, prompt_tokens=4, new_tokens=4, repeats=1, **kwargs)

    monkeypatch.setattr(api, "profile", counted)
    report = api.frontier(
        tmp_path / "model",
        tmp_path / "out",
        bits="4.2-4.3",
        calib=str(tmp_path / "text.txt"),
        text=str(tmp_path / "text.txt"),
        samples=4,
        seqlen=32,
        eval_seqlen=32,
        device="cpu",
        effort="fast",
        plot=False,
    )
    assert order == ["int4", "mixed-4.25"] * 3
    assert all(trial["decode_tok_s"] > 0 and trial["prefill_tok_s"] > 0 for trial in report["trials"])
    assert sorted(place.name for place in (tmp_path / "out").rglob("*")) == [
        "frontier.json",
        "frontier.md",
        "int4",
        "mixed-4.25",
        "recipe.toml",
        "recipe.toml",
        "trials",
    ]


def test_a_killed_frontier_goes_on_and_its_recipes_repeat_its_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    save_tiny(tmp_path / "model", "llama", dtype=torch.bfloat16)
    text = tmp_path / "text.txt"
    text.write_text(WORDS * 40)
    monkeypatch.chdir(tmp_path)
    options: dict[str, Any] = {
        "bits": "4.2-4.3",
        "calib": "text.txt",
        "text": "text.txt",
        "samples": 4,
        "seqlen": 32,
        "eval_seqlen": 32,
        "device": "cpu",
        "effort": "fast",
        "profile": False,
        "lowering": "dense",
        "max_bytes": 10**9,
    }
    scored: list[Path] = []
    original, whole = api.eval, api.prune

    def killed_at_the_second_bundle(source: Any, **kwargs: Any) -> Any:
        scored.append(Path(source))
        if len(scored) == 3:
            raise KeyboardInterrupt
        return original(source, **kwargs)

    pruned: list[Path] = []

    def counted(source: Any, output: Any, **kwargs: Any) -> Any:
        pruned.append(Path(output))
        return whole(source, output, **kwargs)

    monkeypatch.setattr(api, "eval", killed_at_the_second_bundle)
    monkeypatch.setattr(api, "prune", counted)
    with pytest.raises(KeyboardInterrupt):
        api.frontier("model", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    report = api.frontier("model", tmp_path / "out", **options)
    assert len(pruned) == 2 and len(scored) == 4  # no trial is pruned twice, the dense model is scored once
    names = [trial["name"] for trial in report["trials"]]
    assert names == ["int4", "mixed-4.25"] and report["best"] in names
    assert report == json.loads((tmp_path / "out" / "frontier.json").read_text())
    table = (tmp_path / "out" / "frontier.md").read_text()
    assert all(name in table for name in names) and "Best with at most 1000.00 MB" in table
    _ask_again(tmp_path / "out", {**options, "max_bytes": 10})
    assert (tmp_path / "out" / "frontier.svg").read_text().lstrip().startswith("<?xml")
    mixed = report["trials"][1]
    assert 4.0 < mixed["bits"] <= 4.3 and mixed["weight_bytes"] > 0
    recipe = tmp_path / "out" / "trials" / "mixed-4.25" / "recipe.toml"
    assert len(edgeslim.read_recipe(recipe).prune.layers) == 21  # type: ignore[union-attr]
    monkeypatch.chdir("/")  # recipes name what they read from any folder
    repeated = edgeslim.compress(recipe, tmp_path / "again")
    assert repeated["prune"]["bits"] == mixed["bits"]
    again = edgeslim.eval(tmp_path / "again" / "bundle", text=str(text), seqlen=32)
    assert again.perplexity == pytest.approx(mixed["perplexity"], rel=1e-6)


def _ask_again(output: Path, options: dict[str, Any]) -> None:
    """Another budget is answered from the folder; other measurements are not taken from it."""
    report = api.frontier("model", output, **options)
    assert report["best"] is None and len(report["trials"]) == 2
    assert "Best with at most 0.00 MB: none." in (output / "frontier.md").read_text()
    report = api.frontier("model", output, **{**options, "max_bytes": None})
    assert "Smallest within 1% of the dense perplexity: " in (output / "frontier.md").read_text()
    assert report == json.loads((output / "frontier.json").read_text())
    with pytest.raises(OutputError, match="already exists"):
        api.frontier("model", output, **{**options, "samples": 3})
