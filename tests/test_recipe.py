"""Recipes: TOML and options become dataclasses, or one clear line."""

from dataclasses import asdict
from pathlib import Path

import pytest

from edgeslim.errors import RecipeError
from edgeslim.recipe import PruneRecipe, RunRecipe, from_options, read_recipe


def _read(tmp_path: Path, text: str) -> object:
    (tmp_path / "r.toml").write_text(text)
    return read_recipe(tmp_path / "r.toml")


def test_keys_equal_dataclass_fields(tmp_path: Path) -> None:
    recipe = _read(tmp_path, 'model = "m"\n[prune]\nmethod = "wanda"\nsparsity = 0.6\ninclude = ["*.q_proj"]\n')
    assert asdict(recipe.prune) == asdict(PruneRecipe(method="wanda", sparsity=0.6, include=("*.q_proj",)))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('model = "m"\n[prune]\nsparsety = 0.5', r"r.toml: \[prune\]: unknown key 'sparsety'; did you mean 'sparsity'"),
        ('model = "m"\n[prun]\n', "unknown key 'prun'; did you mean 'prune'"),
        ('model = "m"\n[prune]\nmethod = "wonda"', "method must be one of .* got 'wonda'; did you mean 'wanda'"),
        ('model = "m"\n[prune]\nsparsity = "half"', "sparsity: expected float, got 'half'"),
        ('model = "m"\n[prune]\nsamples = true', "samples: expected int, got True"),
        ('model = "m"\n[prune]\nsparsity = 1.5', r"sparsity must be in \[0, 1\), got 1.5"),
        ('model = "m"\n[prune]\nsparsity = 0.5\npattern = "2:4"', "exclude each other"),
        ('model = "m"\nprune = 3', "prune: expected a table, got 3"),
        ("[prune]\n", "'model' is missing"),
        ("model = ", "not TOML"),
    ],
)
def test_a_fault_is_named_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        _read(tmp_path, text)


def test_a_missing_recipe_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such recipe"):
        read_recipe(tmp_path / "none.toml")


def test_options_take_whole_numbers_for_shares() -> None:
    assert from_options(PruneRecipe, {"sparsity": 0, "calib": None}).sparsity == 0.0


def test_an_unknown_option_of_a_verb_is_named() -> None:
    with pytest.raises(RecipeError, match="run: unknown key 'temprature'; did you mean 'temperature'"):
        from_options(RunRecipe, {"temprature": 1.0})


def test_sparsity_goes_with_a_pattern_of_blocks_and_with_no_other() -> None:
    assert PruneRecipe(pattern="block:64", sparsity=0.25).sparsity == 0.25
    with pytest.raises(RecipeError, match=r"sparsity and pattern exclude each other, got 0.25 and '2:4'"):
        PruneRecipe(pattern="2:4", sparsity=0.25)
