"""Tables written as TOML are what tomllib reads."""

import tomllib
from dataclasses import asdict

from edgeslim.recipe import ExportRecipe, LayerRecipe, PruneRecipe, Recipe, from_table
from edgeslim.toml_text import to_toml


def test_every_kind_of_value_comes_back() -> None:
    table = {
        "text": 'quoted "é" \\ line\nend',
        "count": 3,
        "share": 0.125,
        "yes": True,
        "names": ["*.a", "b"],
        "step": {"deep": {"x": 1}, "layers": [{"match": "*.q"}, {"match": "*.k", "sparsity": 0.5}]},
    }
    assert tomllib.loads(to_toml(table)) == table


def test_none_and_empty_lists_are_left_out() -> None:
    assert tomllib.loads(to_toml({"a": None, "b": [], "c": {"d": None}})) == {"c": {}}


def test_a_recipe_comes_back_as_it_was() -> None:
    layers = (LayerRecipe(match="model.layers.0.mlp.up_proj", pattern="0.4", quantize="int3:64"),)
    prune = PruneRecipe(pattern="2:4", quantize="int4", samples=7, exclude=("*.x",), layers=layers)
    recipe = Recipe(model="some/model", prune=prune, export=ExportRecipe(lowering="dense"), baseline=False)
    table = {key: value for key, value in asdict(recipe).items() if value is not None}
    assert from_table(Recipe, tomllib.loads(to_toml(table)), "text") == recipe
