"""Devices and estimates on the command line: one table or one JSON value, faults in one line."""

import json

import pytest
from typer.testing import CliRunner

from edgeslim.cli import app
from edgeslim.devices.micro_bundle import write_micro_bundle

RUN = CliRunner()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """The smallest bundle that there is."""
    folder = tmp_path_factory.mktemp("bundle")
    write_micro_bundle(folder, 1000)
    return str(folder)


def said(*arguments: str, status: int = 0) -> str:
    result = RUN.invoke(app, list(arguments))
    assert result.exit_code == status, result.output
    return result.stdout if status == 0 else result.stderr


def test_the_list_names_every_device_with_its_memory_and_bandwidth():
    assert "raspberry-pi-5" in said("devices", "list") and "17.1 GB/s" in said("devices", "list")
    listed = json.loads(said("devices", "list", "--json"))
    assert len(listed) >= 10 and all(device["sources"] for device in listed)


def test_a_device_is_shown_with_the_source_of_each_number():
    shown = said("devices", "show", "jetson-thor")
    assert "273 GB/s" in shown and "estimate of ours" in shown and "Jetson T5000" in shown
    assert json.loads(said("devices", "show", "jetson-thor", "--json"))["dram_gb_per_s"] == 273


def test_an_unknown_device_is_one_line_with_the_nearest():
    fault = said("devices", "show", "jetson-thorr", status=1)
    assert fault == "error: unknown device 'jetson-thorr'; did you mean 'jetson-thor'?\n"


def test_an_estimate_is_marked_and_its_json_is_not_a_measurement(bundle):
    assert "ESTIMATED, not measured" in said("profile", bundle, "--device", "pixel-9", "--estimate")
    value = json.loads(said("profile", bundle, "--device", "pixel-9", "--estimate", "--json"))
    assert value["kind"] == "estimate" and value["measured"] is False and value["device"] == "pixel-9"


def test_estimates_for_several_devices_are_one_array(bundle):
    options = ["--device", "pixel-9", "--device", "iphone-16", "--estimate", "--json"]
    assert [v["device"] for v in json.loads(said("profile", bundle, *options))] == ["pixel-9", "iphone-16"]


def test_estimates_stand_apart_in_a_report(bundle, tmp_path):
    report = tmp_path / "report.md"
    said("profile", bundle, "--device", "pixel-9", "--estimate", "-o", str(report))
    assert "## Estimated, not measured" in report.read_text()


def test_a_device_name_without_estimate_says_what_it_is(bundle):
    assert "--estimate" in said("profile", bundle, "--device", "pixel-9", status=1)


def test_a_probe_does_not_begin_where_its_file_cannot_be_written(tmp_path):
    fault = said("devices", "probe", "-o", str(tmp_path / "here"), status=1)
    assert fault.startswith("error: ") and "a device file ends in .toml" in fault
