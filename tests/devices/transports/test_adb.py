"""Over the platform tool to a phone that speaks adb's protocol: new and old phones, and every fault in one line."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from phone import Phone

from edgeslim.devices.transports import adb, open_transport
from edgeslim.devices.transports.adb import parse_devices
from edgeslim.errors import DeviceError

Phones = Callable[..., Phone]


@pytest.fixture(params=["new", "old"])
def phone(request: pytest.FixtureRequest, phones: Phones) -> Phone:
    """A phone with the second shell, and one with the first."""
    return phones(old=request.param == "old")


def test_arguments_and_the_status_arrive_as_they_are(phone: Phone) -> None:
    words = ["a b", "$(touch no)", "it's", '"', "\\", "*", "", ";", "line\nline", "ü"]

    with open_transport(f"adb:{phone.serial}") as device:
        done = device.run(["sh", "-c", 'for word in "$@"; do printf "<%s>" "$word"; done; exit 7', "sh", *words])

    assert done.text == "".join(f"<{word}>" for word in words)
    assert done.status == 7


def test_what_a_command_says_on_stderr_is_heard(phone: Phone) -> None:
    with open_transport(f"adb:{phone.serial}") as device:
        done = device.run(["cat", "/nowhere"])

    assert done.status == 1
    assert done.last_line.endswith("No such file or directory")


def test_bytes_are_put_and_read_back_and_listed_and_removed(phone: Phone, tmp_path: Path) -> None:
    content = bytes(range(256)) * 5_000
    (tmp_path / "file").write_bytes(content)
    told: list[int] = []

    with open_transport(f"adb:{phone.serial}") as device:
        folder = f"{device.folder}/x"
        device.run(["mkdir", "-p", folder])
        device.put(tmp_path / "file", f"{folder}/it's one", told.append)

        assert device.read(f"{folder}/it's one") == content
        assert device.list(folder) == {"it's one": len(content)}
        assert told[-1] == len(content)
        device.remove(folder)
        assert device.list(folder) == {}
        with pytest.raises(DeviceError, match=rf"^adb:{phone.serial}: {folder}/it's one: .*(No such|not exist)"):
            device.read(f"{folder}/it's one")

    assert not (phone.store / "x").exists()


def test_the_only_phone_needs_no_serial(phones: Phones) -> None:
    phone = phones()
    subprocess.run(["adb", "connect", phone.serial], check=True, capture_output=True)

    with open_transport("adb") as device:
        assert device.run(["cat", "/proc/self/comm"]).text == "cat\n"


def test_several_phones_are_named(phones: Phones) -> None:
    for phone in (first := phones(), phones()):
        subprocess.run(["adb", "connect", phone.serial], check=True, capture_output=True)

    with pytest.raises(DeviceError, match=rf"^adb: several phones: .*{first.serial}.*; say which, as adb:127"):
        open_transport("adb").__enter__()


def test_no_phone_is_said(phones: Phones) -> None:
    with pytest.raises(DeviceError, match=r"^adb: no phone; plug one in with USB debugging on"):
        open_transport("adb").__enter__()


def test_an_unknown_serial_is_said(phones: Phones) -> None:
    subprocess.run(["adb", "connect", (phone := phones()).serial], check=True, capture_output=True)

    with pytest.raises(DeviceError, match=rf"^adb:R5CT: no phone of this serial; adb knows {phone.serial}$"):
        open_transport("adb:R5CT").__enter__()


def test_an_owner_who_is_about_to_answer_is_waited_for(phones: Phones) -> None:
    phone = phones()
    phone.answer_s = 0.5  # meanwhile adb calls it unauthorized

    with open_transport(f"adb:{phone.serial}") as device:
        assert device.run(["cat", "/proc/self/comm"]).text == "cat\n"


def test_a_phone_that_does_not_allow_this_computer_is_said(phones: Phones, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adb, "ANSWER_S", 0.2)
    phone = phones(allows=False)

    with pytest.raises(DeviceError, match=rf"^adb:{phone.serial}: the phone has not allowed this computer; unlock it"):
        open_transport(f"adb:{phone.serial}").__enter__()


def test_a_phone_that_is_gone_is_said(phones: Phones) -> None:
    phone = phones()
    with open_transport(f"adb:{phone.serial}") as device:
        phone.stop()
        with pytest.raises(DeviceError, match=rf"^adb:{phone.serial}: the phone is (gone|offline)"):
            device.run(["cat", "/proc/self/comm"])


def test_a_phone_is_gone_also_while_adb_still_lists_it(phones: Phones, monkeypatch: pytest.MonkeyPatch) -> None:
    phone = phones()
    with open_transport(f"adb:{phone.serial}") as device:
        monkeypatch.setattr(adb.AdbTransport, "_states", lambda self: {phone.serial: "device"})
        phone.stop()
        with pytest.raises(DeviceError, match=rf"^adb:{phone.serial}: the phone is gone: unplugged, or switched off$"):
            device.run(["cat", "/proc/self/comm"])


def test_without_the_platform_tool_its_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(DeviceError, match=r"^adb: no adb here; install the platform tools \(Debian: apt install adb\)"):
        open_transport("adb").__enter__()


def test_states_of_every_kind_are_read() -> None:
    text = (
        "* daemon started successfully\nList of devices attached\n"
        "R5CT\tdevice\nemulator-5554\toffline\n0123\tno permissions (user in plugdev group?); see [http://x]\n\n"
    )

    assert parse_devices(text) == {
        "R5CT": "device",
        "emulator-5554": "offline",
        "0123": "no permissions (user in plugdev group?); see [http://x]",
    }
