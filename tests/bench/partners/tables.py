"""Samples to medians, medians to a Markdown table."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from partners.cases import Sample

MEASURED = ("decode_tok_s", "prefill_tok_s", "load_s", "base_rss_bytes", "peak_rss_bytes", "file_bytes")
_SPREAD = ("decode_tok_s", "prefill_tok_s", "load_s")
_HEAD = (
    "case",
    "decode tok/s",
    "prefill tok/s",
    "load s",
    "RSS before MB",
    "peak RSS MB",
    "files MB",
    "(peak - before) / files",
    "rounds",
)


def summarise(name: str, samples: Sequence[Sample]) -> dict[str, Any]:
    """Return the medians of a case's undisturbed `samples`, of all where none was undisturbed.

    A spread is (largest - smallest) / median; `rounds` counts the samples used, `busy_rounds` those disturbed.
    """
    quiet = [sample for sample in samples if not sample.busy]
    rows = [asdict(sample) for sample in quiet or samples]
    medians = {key: median(row[key] for row in rows) for key in MEASURED}
    spreads = {f"{key}_spread": _spread([row[key] for row in rows]) for key in _SPREAD}
    counts = {"rounds": len(rows), "busy_rounds": len(samples) - len(quiet)}
    return {"case": name, "engine": samples[0].engine, **medians, **spreads, **counts}


def markdown(cases: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of the summaries `cases`; brackets hold the spread."""
    lines = [_HEAD, ("---",) * len(_HEAD), *(_row(case) for case in cases)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _row(case: Mapping[str, Any]) -> tuple[str, ...]:
    above = (case["peak_rss_bytes"] - case["base_rss_bytes"]) / case["file_bytes"]
    return (
        case["case"],
        f"{case['decode_tok_s']:.1f} ({case['decode_tok_s_spread']:.0%})",
        f"{case['prefill_tok_s']:.0f} ({case['prefill_tok_s_spread']:.0%})",
        f"{case['load_s']:.3f}",
        *(f"{case[key] / 1e6:.0f}" for key in ("base_rss_bytes", "peak_rss_bytes", "file_bytes")),
        f"{above:.2f}",
        f"{case['rounds']}" + (f", {case['busy_rounds']} disturbed" if case["busy_rounds"] else ""),
    )


def _spread(values: Sequence[float]) -> float:
    return (max(values) - min(values)) / median(values)
