"""The training scans equal a plain loop over tokens, forward and backward, and transformers' own mixers."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

from training_scan import (  # noqa: E402
    causal_convolution,
    chunked_scan,
    selective_scan,
    use_fast_mamba_everywhere,
    use_fast_scans,
)

EXACT = {"rtol": 1e-10, "atol": 1e-12}


def _double(*shape: int, low: float = -1.0, high: float = 1.0) -> Any:
    return (torch.rand(shape, dtype=torch.float64) * (high - low) + low).requires_grad_()


def _loop(values: Any, step: Any, rate: Any, keys: Any, queries: Any) -> Any:
    """Scan token by token; values [B, L, H, P], step [B, L, H, P], rate [H, P, N], keys and queries [B, L, H, N]."""
    state, results = torch.zeros(*values[:, 0].shape, keys.shape[-1], dtype=values.dtype), []
    for token in range(values.shape[1]):
        now = step[:, token, :, :, None]
        update = now * values[:, token, :, :, None] * keys[:, token, :, None, :]
        state = torch.exp(now * rate) * state + update
        results.append((state * queries[:, token, :, None, :]).sum(-1))
    return torch.stack(results, 1)


def _assert_same_results_and_gradients(fast: Callable[..., Any], slow: Callable[..., Any], inputs: list[Any]) -> None:
    expected, found = slow(*inputs), fast(*inputs)
    torch.testing.assert_close(found, expected, **EXACT)
    weight = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * weight).sum(), inputs)
    for gradient, target in zip(torch.autograd.grad((found * weight).sum(), inputs), wanted, strict=True):
        torch.testing.assert_close(gradient, target, **EXACT)


@pytest.mark.parametrize("tokens", [1, 7, 8, 9, 40])
def test_mambas_scan_equals_a_loop_over_tokens_with_its_gradients(tokens: int) -> None:
    torch.manual_seed(tokens)
    inputs = [
        _double(3, tokens, 6),
        _double(3, tokens, 6, low=0.01, high=2.0),
        _double(6, 4, low=-3.0, high=-0.01),
        _double(3, tokens, 4),
        _double(3, tokens, 4),
    ]

    def loop(values: Any, step: Any, rate: Any, keys: Any, queries: Any) -> Any:
        one_head = (values[:, :, None], step[:, :, None], rate[None], keys[:, :, None], queries[:, :, None])
        return _loop(*one_head)[:, :, 0]

    _assert_same_results_and_gradients(selective_scan, loop, inputs)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("tokens", [1, 7, 8, 9, 40])
def test_mamba2s_scan_equals_a_loop_over_tokens_with_its_gradients(tokens: int, groups: int) -> None:
    torch.manual_seed(tokens)
    inputs = [
        _double(2, tokens, 4, 3),
        _double(2, tokens, 4, low=0.01, high=2.0),
        _double(4, low=-3.0, high=-0.01),
        _double(2, tokens, groups, 5),
        _double(2, tokens, groups, 5),
    ]

    def loop(values: Any, step: Any, rate: Any, keys: Any, queries: Any) -> Any:
        per_head = [part.repeat_interleave(4 // groups, 2) for part in (keys, queries)]
        return _loop(values, step[..., None], rate[:, None, None], *per_head)

    def chunks_of_eight(*parts: Any) -> Any:
        return chunked_scan(*parts, 8)

    _assert_same_results_and_gradients(chunks_of_eight, loop, inputs)


def test_a_long_fast_decay_gives_no_infinities_backward() -> None:
    values, step = _double(1, 64, 2, 3), _double(1, 64, 2, low=50.0, high=60.0)
    keys, queries = _double(1, 64, 1, 4), _double(1, 64, 1, 4)
    rate = _double(2, low=-16.0, high=-15.0)
    result = chunked_scan(values, step, rate, keys, queries, 32).sum()
    for gradient in torch.autograd.grad(result, [values, step, rate, keys, queries]):
        assert torch.isfinite(gradient).all()


def test_convolution_looks_only_back() -> None:
    inputs, weight, bias = _double(2, 9, 5), _double(5, 4), _double(5)
    expected = torch.nn.functional.conv1d(inputs.mT, weight[:, None], bias, padding=3, groups=5)[..., :9].mT
    torch.testing.assert_close(causal_convolution(inputs, weight, bias), expected, **EXACT)


def _models(arch: str) -> list[Any]:
    shape: dict[str, Any] = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 8}
    if arch == "mamba2":
        shape |= {"num_heads": 4, "head_dim": 8, "n_groups": 2, "chunk_size": 16}
    config = transformers.AutoConfig.for_model(arch, **shape)
    torch.manual_seed(0)
    models = [transformers.AutoModelForCausalLM.from_config(config).train() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    return models


@pytest.mark.parametrize("arch", ["mamba", "mamba2"])
def test_a_model_with_fast_scans_equals_transformers_with_its_gradients(arch: str) -> None:
    plain, fast = _models(arch)
    use_fast_scans(fast)
    tokens = torch.randint(32, (2, 37))
    logits = [model(input_ids=tokens, use_cache=False).logits for model in (plain, fast)]
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-5)
    for each in logits:
        each.square().mean().backward()
    for (name, found), expected in zip(fast.named_parameters(), plain.parameters(), strict=True):
        scale = expected.grad.abs().max().item()
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-3, atol=1e-4 * scale, msg=name)


@torch.no_grad()
def test_fast_mixers_everywhere_equal_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.mamba.modeling_mamba import MambaMixer

    plain, other = _models("mamba")
    tokens = torch.randint(32, (2, 37))
    expected = plain(input_ids=tokens, use_cache=False).logits
    monkeypatch.setattr(MambaMixer, "forward", MambaMixer.forward)  # put back afterwards
    use_fast_mamba_everywhere()
    assert MambaMixer.forward.__module__ == "training_scan"
    for model in (plain, other):
        torch.testing.assert_close(model(input_ids=tokens, use_cache=False).logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("arch", ["mamba", "mamba2"])
def test_a_model_with_fast_scans_refuses_a_cache(arch: str) -> None:
    model = _models(arch)[0]
    use_fast_scans(model)
    with pytest.raises(ValueError, match="takes no cache"):
        model(input_ids=torch.randint(32, (1, 3)), use_cache=True)
