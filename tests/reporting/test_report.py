"""What is read from JSON, and what the report says of it in Markdown and JSON."""

import json
from pathlib import Path
from typing import Any

import pytest

from edgeslim.errors import OutputError, RecipeError
from edgeslim.reporting.report import make_report, write_report

Profiles = list[dict[str, Any]]


def _file(folder: Path, name: str, content: object) -> Path:
    file = folder / name
    file.write_text(json.dumps(content))
    return file


def _section(markdown: str, heading: str) -> str:
    return markdown.partition(f"## {heading}\n")[2].partition("\n## ")[0]


def test_markdown_shows_every_figure_with_its_unit_and_the_90th_percentile(profiles: Profiles, tmp_path: Path) -> None:
    write_report(profiles, tmp_path / "report.md")
    rows = _section((tmp_path / "report.md").read_text(), "Measured").splitlines()
    assert rows[4] == (
        "| int8 | Some Processor, 2 cores | 128 + 64 tokens | 246 MB | 81.28 | 0.0714 s | 68.2 ms (p90 71.5) | "
        "1,894 tok/s | 136 tok/s | 7.33 ms (p90 7.91) | 353 MB | not measured | not measured |"
    )


def test_estimates_stand_in_a_section_of_their_own_with_their_range(profiles: Profiles, tmp_path: Path) -> None:
    write_report(profiles, tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text()
    measured, estimated = _section(text, "Measured"), _section(text, "Estimated, not measured")
    assert "jetson" not in measured and "jetson" not in _section(text, "Devices")
    assert estimated.count("jetson-orin-nano") == 2 and "40.0 tok/s (30.0 to 55.0)" in estimated
    assert "not measured" not in estimated.replace("Estimated, not measured", "") and "not estimated" in estimated


def test_an_error_band_becomes_a_range_of_what_it_bounds(tmp_path: Path, profiles: Profiles) -> None:
    band = {**profiles[-1], "error_band": 0.25, "decode_tok_s_low": None}
    write_report([band], tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text()
    assert "40.0 tok/s (32.0 to 50.0)" in text and "170 MB |" in text


def test_devices_are_compared_bundle_by_bundle(profiles: Profiles, tmp_path: Path) -> None:
    write_report(profiles, tmp_path / "report.md")
    tables = _section((tmp_path / "report.md").read_text(), "Devices")
    decode = tables.partition("decode, tok/s")[2].split("\n\n")[1].splitlines()
    assert decode[0] == "| bundle | Some Processor, 2 cores | Raspberry Pi 5 |"
    assert decode[2:] == ["| dense | 136 | 17.7 |", "| int8 | 136 | 17.7 |", "| int4 | 136 |  |"]


def test_one_device_is_not_compared_with_itself(profiles: Profiles, tmp_path: Path) -> None:
    write_report(profiles[:3], tmp_path / "report.md")
    assert "## Devices" not in (tmp_path / "report.md").read_text()


def test_operators_are_listed_with_their_share(profiles: Profiles, tmp_path: Path) -> None:
    write_report(profiles, tmp_path / "report.md")
    rows = _section((tmp_path / "report.md").read_text(), "Operators of int8 on Some Processor, 2 cores").splitlines()
    assert rows[3:5] == [
        "| edgeslim.PackedLinear | decode | 169 | 6.000 | 80.0% |",
        "| Attention | decode | 24 | 1.500 | 20.0% |",
    ]


def test_names_in_a_table_cannot_break_it(profiles: Profiles, tmp_path: Path) -> None:
    write_report([{**profiles[0], "bundle": "a|b<i>"}, profiles[1]], tmp_path / "report.md")
    assert "| a\\|b&lt;i> |" in (tmp_path / "report.md").read_text()


def test_the_json_report_is_read_again_as_it_was(profiles: Profiles, tmp_path: Path) -> None:
    first = write_report(profiles, tmp_path / "report.json")
    again = make_report([tmp_path / "report.json"])
    assert again.measurements == first.measurements and again.to_json()["profiles"] == profiles


def test_files_of_one_profile_of_several_and_of_perplexities_join(profiles: Profiles, tmp_path: Path) -> None:
    for profile in profiles:
        profile.pop("perplexity", None)
    files = [
        _file(tmp_path, "one.json", profiles[0]),
        _file(tmp_path, "eval.json", {"model": "./out/dense", "perplexity": 80.5, "tokens": 10, "windows": 1}),
        _file(tmp_path, "more.json", profiles[1:3]),
    ]
    report = make_report(files)
    assert [(each.name, each.number("perplexity")) for each in report.measurements] == [
        ("dense", 80.5),
        ("int8", None),
        ("int4", None),
    ]


def test_what_compress_wrote_gives_its_models_by_name(profiles: Profiles, tmp_path: Path) -> None:
    bare = {key: value for key, value in profiles[2].items() if key != "bundle"}
    content = {"models": {"dense": {"profile": bare, "eval": {"perplexity": 9.5}}, "pruned": {"run": {"text": ""}}}}
    (only,) = make_report([_file(tmp_path, "report.json", content)]).measurements
    assert only.name == "dense" and only.number("perplexity") == 9.5


def test_a_profile_without_its_bundles_name_is_called_like_its_file(profiles: Profiles, tmp_path: Path) -> None:
    del profiles[0]["bundle"]
    (only,) = make_report([_file(tmp_path, "kitchen.json", profiles[0])]).measurements
    assert only.name == "kitchen"


def test_bundles_of_one_name_are_told_apart_by_their_folders(profiles: Profiles) -> None:
    report = make_report([{**profiles[0], "bundle": "a/x/bundle"}, {**profiles[0], "bundle": "b/x/bundle"}])
    assert [each.name for each in report.measurements] == ["a/x/bundle", "b/x/bundle"]


def test_a_number_that_is_none_not_finite_or_a_word_is_not_measured(profiles: Profiles) -> None:
    for value in (None, float("nan"), float("inf"), "fast", True):
        (only,) = make_report([{**profiles[0], "load_s": value}]).measurements
        assert only.number("load_s") is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not json", "cannot be read as JSON"),
        ("[]", "holds no profile"),
        ("[3]", "holds no profile"),
        ('{"perplexity": 3.0}', "neither a profile nor a perplexity"),
        ('{"decode_tok_s_p50": 3.0, "device": "x"}', "the profile has no prompt_tokens, new_tokens"),
        ('{"perplexity": 3.0, "model": "x"}', "there is no profile to report"),
    ],
)
def test_a_file_without_profiles_is_refused_by_name(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "profile.json"
    file.write_text(content)
    with pytest.raises(RecipeError, match=message):
        make_report([file])


def test_a_missing_file_an_unknown_form_and_an_existing_output_are_refused(profiles: Profiles, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none.json: no such file"):
        make_report([tmp_path / "none.json"])
    with pytest.raises(RecipeError, match=r"did you mean '\.html'"):
        write_report(profiles, tmp_path / "report.htm")
    (tmp_path / "report.md").write_text("mine")
    with pytest.raises(OutputError, match="--force"):
        write_report(profiles, tmp_path / "report.md")
    assert (tmp_path / "report.md").read_text() == "mine"
    write_report(profiles, tmp_path / "report.md", force=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.md"]
