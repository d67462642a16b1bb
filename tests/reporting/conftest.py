"""Profiles as `profile --json` prints them, measured and estimated."""

from typing import Any

import pytest

PROFILE: dict[str, Any] = {
    "device": "Some Processor, 2 cores",
    "engine": "onnxruntime 1.32",
    "isa": "avx512-vnni",
    "threads": 2,
    "prompt_tokens": 128,
    "new_tokens": 64,
    "load_s": 0.0714,
    "ttft_ms_p50": 68.25,
    "ttft_ms_p90": 71.5,
    "prefill_tok_s_p50": 1893.7,
    "decode_tok_s_p50": 136.4,
    "decode_ms_p50": 7.33,
    "decode_ms_p90": 7.91,
    "base_rss_bytes": 60_000_000,
    "peak_rss_bytes": 353_000_000,
    "bundle_bytes": 247_500_000,
    "weight_bytes": 246_000_000,
    "energy_j_per_token": None,
    "temperature_c": None,
    "repeats": 5,
    "warmup": 1,
    "measured": True,
    "warnings": [],
}
OPERATORS = [
    {"op": "edgeslim.PackedLinear", "phase": "decode", "calls": 169, "ms": 6.0},
    {"op": "Attention", "phase": "decode", "calls": 24, "ms": 1.5},
]


def profile(bundle: str, **changed: Any) -> dict[str, Any]:
    """Return a measured profile of `bundle` with some values `changed`."""
    return {**PROFILE, "bundle": bundle, **changed}


def estimate(bundle: str, **changed: Any) -> dict[str, Any]:
    """Return an estimate for `bundle`: only what the bundle and the device's file tell."""
    known = ("prompt_tokens", "new_tokens", "prefill_tok_s_p50", "peak_rss_bytes", "bundle_bytes", "weight_bytes")
    values = {key: PROFILE[key] for key in known}
    values |= {"device": "jetson-orin-nano", "decode_tok_s_p50": 40.0, "decode_tok_s_low": 30.0}
    return {**values, "bundle": bundle, "decode_tok_s_high": 55.0, "measured": False, **changed}


@pytest.fixture
def profiles() -> list[dict[str, Any]]:
    """Two bundles on two devices, a third without perplexity, and two estimates."""
    slow = {"device_name": "Raspberry Pi 5", "decode_ms_p50": 56.4, "decode_tok_s_p50": 17.7, "governor": "ondemand"}
    return [
        profile("out/dense", weight_bytes=366_000_000, perplexity=81.02),
        profile("out/int8", perplexity=81.28, operators=OPERATORS),
        profile("out/int4", weight_bytes=170_000_000),
        profile("out/dense", weight_bytes=366_000_000, perplexity=81.02, **slow),
        profile("out/int8", perplexity=81.28, warnings=["throttled during the run"], temperature_c=71.0, **slow),
        estimate("out/int8"),
        estimate("out/int4", weight_bytes=170_000_000),
    ]
