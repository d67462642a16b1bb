"""Device files are read strictly: every number has a source, and what is not known is refused with the nearest name."""

import re
import tomllib
from pathlib import Path

import pytest

from edgeslim.devices.catalog import KNOWN, KernelRate, known_devices, load_device, read_device
from edgeslim.devices.device_file import check_output, device_text, write_device
from edgeslim.errors import DeviceError, OutputError

PI = (KNOWN / "raspberry-pi-5.toml").read_text()
WANTED = [
    "galaxy-s24",
    "iphone-16",
    "jetson-agx-orin",
    "jetson-orin-nano",
    "jetson-thor",
    "macbook-air-m4",
    "pixel-9",
    "raspberry-pi-5",
    "x86-64-avx2",
    "x86-64-avx512",
]


def changed(tmp_path: Path, old: str, new: str) -> Path:
    """Return the Pi's file with `old` replaced."""
    assert old in PI
    file = tmp_path / "raspberry-pi-5.toml"
    file.write_text(PI.replace(old, new, 1))
    return file


def test_the_devices_that_edgeslim_speaks_of_are_all_there():
    assert set(WANTED) <= set(known_devices())


@pytest.mark.parametrize("name", known_devices())
def test_a_known_device_reads_and_its_numbers_have_sources_with_titles(name):
    device = load_device(name)
    assert device.name == name and device.cores and device.memory_bytes > 2**31
    assert all(source.title for source in device.sources.values())
    assert all(source.url is None or source.url.startswith("https://") for source in device.sources.values())
    assert {s.title for s in device.sources.values() if s.kind == "estimate"}, "what we guess is marked"


@pytest.mark.parametrize("name", known_devices())
def test_a_device_written_and_read_again_is_the_same(name, tmp_path):
    device = load_device(name)
    write_device(device, tmp_path / f"{name}.toml")
    assert read_device(tmp_path / f"{name}.toml") == device
    assert tomllib.loads(device_text(device)) == device.to_json()


def test_a_file_more_is_a_device_more(tmp_path):
    (tmp_path / "my-board.toml").write_text(PI.replace('"raspberry-pi-5"', '"my-board"'))
    assert known_devices(tmp_path) == ["my-board"]
    assert load_device("my-board", tmp_path).soc == "Broadcom BCM2712"


def test_peak_arithmetic_is_that_of_the_cores_in_use():
    assert load_device("raspberry-pi-5").int8_gops == pytest.approx(4 * 2.4 * 64)
    assert load_device("iphone-16").int8_gops == pytest.approx(2 * 4.04 * 128)  # efficiency cores are left out


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("memory_bytes", "memory_byte", "unknown key 'memory_byte'; did you mean 'memory_bytes'?"),
        ("max_mhz", "max_mhzz", "cores[0]: unknown key 'max_mhzz'; did you mean 'max_mhz'?"),
        ("[efficiency]", "[efficency]", "unknown key 'efficency'; did you mean 'efficiency'?"),
        (
            'class = "cpu"',
            'class = "cpus"',
            "class must be one of cpu, mobile, jetson, got 'cpus'; did you mean 'cpu'?",
        ),
        ('kind = "vendor"', 'kind = "vendors"', "kind must be one of"),
        ("memory_bytes = 8589934592", 'memory_bytes = "8 GB"', "memory_bytes: expected int, got '8 GB'"),
        ("dram_gb_per_s = 17.1", "dram_gb_per_s = -17.1", "dram_gb_per_s must be positive, got -17.1"),
        ("bandwidth = 0.7", "bandwidth = 1.7", "bandwidth must be in (0, 1], got 1.7"),
        ("threads = 4\n", "", "key 'threads' is missing"),
        ('dram_gb_per_s = "brief"\n', "", "the number 'dram_gb_per_s' has no source"),
        (
            'dram_gb_per_s = "brief"',
            'dram_gb_per_s = "brif"',
            "source 'brif' is not in [sources]; did you mean 'brief'?",
        ),
        ('dram_gb_per_s = "brief"', 'dram_gbs = "brief"', "has no source"),
        (
            "[sources.ours]",
            '[sources.other]\ntitle = "x"\nkind = "press"\n\n[sources.ours]',
            "'other' is the source of no",
        ),
        ('name = "raspberry-pi-5"', "name = raspberry", "not TOML"),
    ],
)
def test_what_a_file_may_not_hold_is_refused_in_one_line(tmp_path, old, new, message):
    file = changed(tmp_path, old, new)
    with pytest.raises(DeviceError, match=re.escape(message)) as refused:
        read_device(file)
    assert str(file) in str(refused.value) and "\n" not in str(refused.value)


def test_a_kernel_is_on_onnxruntime_or_on_the_native_runtime():
    with pytest.raises(DeviceError, match=r"engine must be one of native, got 'nativ'; did you mean 'native'\?"):
        KernelRate(
            form="dense_int8",
            density=1.0,
            decode_gweights_per_s=1.0,
            prefill_gweights_per_s=1.0,
            source="probe",
            engine="nativ",
        )


def test_a_file_under_another_name_than_its_own_is_refused(tmp_path):
    (tmp_path / "pi.toml").write_text(PI)
    with pytest.raises(DeviceError, match="name is 'raspberry-pi-5', expected the file's own name"):
        load_device("pi", tmp_path)


@pytest.mark.parametrize("name", ["raspberry-pi5", "../known/pixel-9"])
def test_an_unknown_device_is_refused_with_the_nearest_name(name):
    with pytest.raises(DeviceError, match=r"unknown device .*did you mean '(raspberry-pi-5|pixel-9)'"):
        load_device(name)


def test_a_file_that_is_not_there_is_said():
    with pytest.raises(DeviceError, match=re.escape("nowhere.toml: no such device file")):
        load_device("nowhere.toml")


def test_a_device_file_replaces_nothing(tmp_path):
    (tmp_path / "here.toml").write_text("")
    for name, said in (("here.toml", "already exists"), ("here", "ends in .toml"), ("no/here.toml", "does not exist")):
        with pytest.raises(OutputError, match=said):
            check_output(tmp_path / name)
