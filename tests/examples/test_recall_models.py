"""The bundled recall models: they load unmodified and recall what their cards say."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples"))

from train_recall import CARD_SEED, CHARACTERS, DISTANCES, recall_accuracy, scored_tasks  # noqa: E402

MODELS = ROOT / "examples" / "models"
NAMES = sorted(path.name for path in MODELS.glob("recall-*"))
SIZE_LIMIT = 3_000_000
PROMPTS = 64


@pytest.fixture(scope="module", params=NAMES)
def folder(request: pytest.FixtureRequest) -> Path:
    return MODELS / str(request.param)


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def _card_accuracies(folder: Path) -> dict[tuple[str, int], float]:
    """Return the card's accuracies by task and distance."""
    table = re.findall(r"^\|.*%.*\|$|^\| filler.*\|$", (folder / "README.md").read_text(), re.MULTILINE)
    header, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table)
    return {
        (task, int(distance)): float(cell.rstrip("%")) / 100
        for distance, *cells in rows
        if distance.isdigit()
        for task, cell in zip(header[1:], cells, strict=True)
    }


def test_weights_are_small_and_the_tokenizer_knows_every_symbol(folder: Path) -> None:
    assert (folder / "model.safetensors").stat().st_size < SIZE_LIMIT
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer(CHARACTERS, add_special_tokens=False).input_ids == list(range(len(CHARACTERS)))


@pytest.mark.parametrize("distance", [DISTANCES[0], DISTANCES[-1]])
def test_recall_is_what_the_card_says(folder: Path, model: Any, distance: int) -> None:
    task = scored_tasks()["4 pairs"][DISTANCES.index(distance)]
    stated = _card_accuracies(folder)["4 pairs", distance]
    assert stated > 3 * task.chance
    assert recall_accuracy(model, task, PROMPTS, CARD_SEED) == pytest.approx(stated, abs=0.08)


def test_it_answers_as_text(folder: Path, model: Any) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer("#aQbMcR-+1:0?b", add_special_tokens=False, return_tensors="pt")
    said = model.generate(**prompt, max_new_tokens=1, do_sample=False)
    assert tokenizer.decode(said[0, -1:]) == "M"
