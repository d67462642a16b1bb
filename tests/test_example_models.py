"""The trained models in `examples/models/`: they load unmodified, are small, and have learned something."""

import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from edgeslim.corpus import standard_library_text  # noqa: E402

MODELS = Path(__file__).resolve().parent.parent / "examples" / "models"
NAMES = ("tiny-llama", "tiny-mamba2", "tiny-mamba")
DEPTHS = {"llama": 8, "mamba2": 16, "mamba": 6}
SIZE_LIMIT = 12_000_000
WINDOW = 256
WINDOWS = 8  # enough for a factor of five to be far from chance, few enough to take a second or two


@pytest.fixture(scope="module", params=NAMES)
def folder(request: pytest.FixtureRequest) -> Path:
    return MODELS / str(request.param)


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)


def test_weights_are_bfloat16_and_small(folder: Path) -> None:
    weights = folder / "model.safetensors"
    assert weights.stat().st_size < SIZE_LIMIT
    with weights.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    assert {entry["dtype"] for name, entry in header.items() if name != "__metadata__"} == {"BF16"}


def test_model_has_the_depth_that_pruning_is_tried_on(folder: Path, model: Any) -> None:
    assert model.config.num_hidden_layers >= DEPTHS[model.config.model_type]
    assert model.config.tie_word_embeddings
    assert 1.5e6 < sum(p.numel() for p in model.parameters()) < 6e6


def test_special_tokens_agree(model: Any, tokenizer: Any) -> None:
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert tokenizer.eos_token_id == end
    for config in (model.config, model.generation_config):
        assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (end, end, end)


def test_tokenizer_gives_text_back_unchanged(tokenizer: Any) -> None:
    text = "Return   the node's\n    children – naïve.\n\n>>> f(1.5)"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


def test_card_carries_the_figures(folder: Path) -> None:
    figures = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", (folder / "README.md").read_text(), re.MULTILINE))
    assert {"tokens seen", "seed", "minutes", "machine"} <= figures.keys()
    learned, unigram = (
        float(figures[name]) for name in ("held-out perplexity", "held-out perplexity of a unigram model")
    )
    assert learned < unigram / 5
    assert len(re.findall(r"sha256 [0-9a-f]{12}", (folder / "README.md").read_text())) == 4


def test_heldout_perplexity_is_under_a_fifth_of_a_unigram_models(model: Any, tokenizer: Any) -> None:
    windows = _windows(tokenizer, standard_library_text("heldout").text)
    counts = _token_counts(tokenizer, standard_library_text("calibration").text[:300_000])
    assert _perplexity(model, windows) < _unigram_perplexity(counts, windows) / 5


def _windows(tokenizer: Any, text: str) -> Any:
    """Return `WINDOWS` windows spread over the whole of `text`, [WINDOWS, WINDOW]."""
    ids = torch.tensor(tokenizer(text, add_special_tokens=False).input_ids)
    whole = ids[: len(ids) // WINDOW * WINDOW].view(-1, WINDOW)
    return whole[:: len(whole) // WINDOWS][:WINDOWS]


def _token_counts(tokenizer: Any, text: str) -> Counter[int]:
    return Counter(tokenizer(text, add_special_tokens=False).input_ids)


def _perplexity(model: Any, windows: Any) -> float:
    with torch.no_grad():
        logits = model(input_ids=windows, use_cache=False).logits[:, :-1]
    return math.exp(torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()).item())


def _unigram_perplexity(counts: Counter[int], windows: Any) -> float:
    total = sum(counts.values()) + 4096
    scored = windows[:, 1:].flatten().tolist()
    return math.exp(-sum(math.log((counts[token] + 1) / total) for token in scored) / len(scored))
