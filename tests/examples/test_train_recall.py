"""The script that trains the recall models: its sequences, that it learns, and that a killed training goes on."""

import sys
from argparse import Namespace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
np = pytest.importorskip("numpy")
pytest.importorskip("transformers")

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

import train_recall  # noqa: E402
from train_recall import CHARACTERS, VOCABULARY, batch, new_model, new_tokenizer, sequence, train  # noqa: E402


def _text(tokens: list[int]) -> str:
    return "".join(CHARACTERS[token - VOCABULARY.first] for token in tokens)


@pytest.mark.parametrize("stage", train_recall.STAGES)
def test_every_answer_follows_from_the_list(stage: tuple[float, int, int, int]) -> None:
    _, length, _, longest = stage
    for seed in range(50):
        tokens, answers = sequence(np.random.default_rng(seed), length, longest)
        assert len(tokens) == len(answers) == length + 1
        text = _text(tokens)
        listed = text[text.index("#") + 1 :].split("?")[0].split("!")[0].rstrip("0123456789.,:;-+*=/_~")
        if "!" in text:
            expected = listed
        else:
            asked = [text[i - 1] for i, answer in enumerate(answers) if answer]
            assert len(set(asked)) == len(listed) // 2
            expected = "".join(listed[listed.index(key) + 1] for key in asked)
        assert "".join(c for c, answer in zip(text, answers, strict=True) if answer) == expected


def test_a_batch_follows_from_seed_and_step() -> None:
    for first, second in zip(batch(3, 5, 100), batch(3, 5, 100), strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(batch(3, 5, 100)[0], batch(3, 6, 100)[0])


def test_a_token_is_a_character() -> None:
    tokenizer = new_tokenizer()
    assert tokenizer.encode(CHARACTERS).ids == list(range(VOCABULARY.first, VOCABULARY.first + VOCABULARY.size))
    assert tokenizer.decode(tokenizer.encode("#aQ.?a").ids) == "#aQ.?a"


@pytest.mark.parametrize("arch", ["mamba", "mamba2"])
def test_a_few_steps_lower_the_loss_and_a_killed_training_goes_on(
    arch: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_recall, "STAGES", ((1.0, 32, 8, 2),))
    monkeypatch.setattr(train_recall, "SHOWN_EVERY", 5)
    monkeypatch.setattr(train_recall, "WARMUP_STEPS", 5)
    checkpoint = tmp_path / "work" / "seed0.pt"
    args = Namespace(steps=20, rate=3e-3, seed=0, compile=False)
    torch.manual_seed(0)
    train(new_model(arch), args, checkpoint)
    losses = [
        float(line.split("loss ")[1].split(",")[0]) for line in capsys.readouterr().err.splitlines() if "loss" in line
    ]
    assert len(losses) == 4
    assert losses[-1] < 0.8 * losses[0]

    assert train(new_model(arch), Namespace(**vars(args) | {"steps": 21}), checkpoint).step == 21
    assert "going on from step 20" in capsys.readouterr().err
