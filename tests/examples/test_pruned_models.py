"""Half of a trained state-space model's weights gone: the methods keep the order that the README's table has."""

import sys
from pathlib import Path

import pytest
from transformers.models.mamba.modeling_mamba import MambaMixer

import edgeslim
from edgeslim.corpus import standard_library_text

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

from training_scan import use_fast_mamba_everywhere  # noqa: E402

METHODS = ("magnitude", "wanda", "sparsegpt", "mrp")
SCORED = 40 * 256 * 4
"""Characters of held-out text: some 40 windows of 256 tokens."""


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", ["tiny-mamba", "tiny-mamba2"])
def test_mrp_costs_least_then_sparsegpt_then_what_solves_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MambaMixer, "forward", MambaMixer.forward)  # put back afterwards
    use_fast_mamba_everywhere()
    text = tmp_path / "text.txt"
    text.write_text(standard_library_text("heldout").text[:SCORED])
    model, perplexity = EXAMPLES / "models" / name, {}
    for method in METHODS:
        edgeslim.prune(model, tmp_path / method, method=method, sparsity=0.5, samples=32, seqlen=256)
        perplexity[method] = edgeslim.eval(tmp_path / method, text=str(text), seqlen=256).perplexity

    dense = edgeslim.eval(model, text=str(text), seqlen=256).perplexity
    best, *others = (perplexity[method] for method in ("mrp", "sparsegpt", "wanda", "magnitude"))
    assert dense < best < others[0] < min(others[1:]), perplexity
