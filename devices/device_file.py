"""Device files written: what `edgeslim devices probe -o FILE` leaves."""

from pathlib import Path

from edgeslim.devices.catalog import Device
from edgeslim.errors import OutputError
from edgeslim.toml_text import to_toml

_SUFFIX = ".toml"


def check_output(file: Path) -> None:
    """Raise OutputError unless `file` can be written: a new .toml in a folder that is there."""
    if file.suffix != _SUFFIX:
        raise OutputError(f"{file}: a device file ends in {_SUFFIX}; name it {file.name}{_SUFFIX}")
    if file.exists():
        raise OutputError(f"{file}: already exists; choose another name, or remove it")
    if not file.absolute().parent.is_dir():
        raise OutputError(f"{file}: its folder does not exist; expected one to write into")


def write_device(device: Device, file: Path) -> None:
    """Write `device` to `file`, whole or not at all."""
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(device_text(device), encoding="utf-8")
    partial.replace(file)


def device_text(device: Device) -> str:
    """Return `device` as the text of its file."""
    return to_toml(device.to_json())
