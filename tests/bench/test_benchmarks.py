"""The benchmarks run and print what the README quotes, here on the smallest of cases; their figures say nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


def lines_of(script: str, *arguments: str) -> list[dict[str, Any]]:
    command = [sys.executable, str(HERE / script), *arguments]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}  # on a busy machine, threads of tiny products wait for each other
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=alone).stdout
    return [json.loads(line) for line in out.splitlines()]


def test_bench_prune_times_every_case_against_both_forms_of_sparsegpt() -> None:
    lines = lines_of("bench_prune.py", "--shapes", "48x128", "--repeats", "1", "--no-memory")
    assert [line["case"] for line in lines] == ["sparsegpt", "sparsegpt_plain", "solve_cg", "fast", "best"]
    assert all(line["ratio"] > 0 and line["ratio_plain"] > 0 for line in lines)
    assert -1e-4 < lines[2]["excess"] < 1e-3


def test_bench_prune_measures_what_a_fresh_process_needs_on_top_of_its_inputs() -> None:
    (line,) = lines_of("bench_prune.py", "--shapes", "512x512", "--repeats", "1", "--cases", "sparsegpt")
    assert line["peak_bytes"] > 512 * 512 * 4


def test_bench_memory_sets_the_peak_of_each_verb_against_the_file() -> None:
    text = str(HERE / "bench_memory.py")
    lines = lines_of(
        *("bench_memory.py", "--blocks", "1", "--hidden", "128", "--verbs", "prune"),
        *("--samples", "2", "--calib", text),
    )
    (line,) = lines
    assert line["verb"] == "prune"
    assert line["file_bytes"] > 4 * line["parameters"]
    assert line["peak_rss_bytes"] > line["base_rss_bytes"] > 0
    share = (line["peak_rss_bytes"] - line["base_rss_bytes"]) / line["file_bytes"]
    assert abs(share - line["above_imports_over_file"]) < 1e-3


def test_bench_methods_scores_the_methods_and_the_gap_they_close(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(path.read_text(encoding="utf-8") for path in sorted(HERE.glob("bench_me*.py"))))
    lines = lines_of(
        *("bench_methods.py", "--models", "tiny-llama", "--patterns", "50%", "--methods", "sparsegpt", "mrp fast"),
        *("--text", str(text), "--calib", str(text), "--samples", "2", "--seqlen", "64"),
    )
    dense, sparsegpt, mrp = lines
    assert [line["method"] for line in lines] == ["dense", "sparsegpt", "mrp fast"]
    assert sparsegpt["gap_closed"] == 0
    gap = sparsegpt["perplexity"] - dense["perplexity"]
    assert abs(mrp["gap_closed"] - (sparsegpt["perplexity"] - mrp["perplexity"]) / gap) < 0.05


@pytest.mark.slow
def test_bench_frontier_scores_forms_and_repeats_none_that_its_file_holds(tmp_path: Path) -> None:
    text, out = tmp_path / "text.txt", tmp_path / "cases.jsonl"
    text.write_text("".join(path.read_text(encoding="utf-8") for path in sorted(HERE.glob("bench_me*.py"))))
    arguments = (
        *("bench_frontier.py", "--models", "tiny-llama", "--grids", "int3:64", "--patterns", "50%", "--out", str(out)),
        *("--effort", "fast", "--text", str(text), "--calib", str(text), "--samples", "2", "--seqlen", "64"),
    )
    (line,) = lines_of(*arguments)
    assert 2.6 < line["bits"] <= 2.75 and line["perplexity"] > 1 and 0 < line["relative_error"] < 1
    assert json.loads(out.read_text()) == line
    assert lines_of(*arguments) == []


def test_bench_reduction_writes_its_table_and_does_not_score_a_case_twice(tmp_path: Path) -> None:
    model = HERE.parents[1] / "examples" / "models" / "tiny-mamba2"
    small = ("--windows", "1", "--prompts", "1", "--seeds", "1", "--items", "4", "--cuts", "0.2")
    arguments = ("bench_reduction.py", str(model), "-o", str(tmp_path), *small, "--settings", "left truncation")
    (line,) = lines_of(*arguments)
    assert abs(line["flops_cut_counted"] - 0.2) < 0.01 and line["coverage"] < 0.85
    journal = (tmp_path / "cases.jsonl").read_text()
    assert lines_of(*arguments) == [line] and (tmp_path / "cases.jsonl").read_text() == journal
    table = (tmp_path / "reduction.md").read_text()
    assert "| 20% | left truncation | " in table and "Recall: not trained for it" in table
    assert len(json.loads((tmp_path / "reduction.json").read_text())) == 1
