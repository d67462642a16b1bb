"""Over a real OpenSSH server: words arrive as they left, files as they are, and every fault is one line."""

import socket
from pathlib import Path

import pytest
from ssh_server import SshServer

from edgeslim.devices.transports import open_transport, ssh
from edgeslim.devices.transports.ssh import SshTarget
from edgeslim.errors import DeviceError

LONG_LOOP = "i=0; while [ $i -lt 2000000 ]; do i=$((i + 1)); done"  # seconds; it ends where nobody ends it


@pytest.mark.parametrize(
    ("spec", "target"),
    [
        ("ssh://pi", SshTarget(host="pi")),
        ("ssh://me@pi.local:2222", SshTarget(host="pi.local", user="me", port=2222)),
        ("ssh://[fe80::1%eth0]:22/", SshTarget(host="fe80::1%eth0", port=22)),
    ],
)
def test_a_target_is_read_from_its_url(spec: str, target: SshTarget) -> None:
    assert SshTarget.parse(spec) == target


@pytest.mark.parametrize(
    "spec",
    ["ssh://", "ssh://-oProxyCommand=touch", "ssh://-l@pi", "ssh://pi:0", "ssh://pi:99999", "ssh://a b", "ssh://pi/x"],
)
def test_what_is_no_target_is_refused_before_ssh_sees_it(spec: str) -> None:
    with pytest.raises(DeviceError, match=r"expected ssh://\[user@\]host\[:port\]"):
        SshTarget.parse(spec)


def test_arguments_arrive_as_they_are(board: SshServer) -> None:
    words = ["a b", "$(touch /tmp/no)", "it's", '"', "\\", "*", "", ";", "line\nline", "ü"]

    with open_transport("ssh://board") as device:
        done = device.run(["sh", "-c", 'for word in "$@"; do printf "<%s>" "$word"; done; exit 7', "sh", *words])

    assert done.text == "".join(f"<{word}>" for word in words)
    assert done.status == 7


def test_bytes_are_put_and_read_back_and_listed_and_removed(board: SshServer, tmp_path: Path) -> None:
    content = bytes(range(256)) * 5_000
    (tmp_path / "file").write_bytes(content)
    told: list[int] = []
    folder = board.folder / "a folder"
    folder.mkdir()

    with open_transport("ssh://board") as device:
        device.put(tmp_path / "file", f"{folder}/it's one", told.append)
        device.put(tmp_path / "file", f"{folder}/.hidden", told.append)

        assert device.read(f"{folder}/it's one") == content
        assert device.list(str(folder)) == {"it's one": len(content), ".hidden": len(content)}
        assert told[-1] == len(content) and told[:2] == [1 << 18, 2 << 18]
        assert device.list(f"{folder}/nowhere") == {}
        device.remove(str(folder))
        device.remove(str(folder))
        with pytest.raises(DeviceError, match="No such file"):
            device.read(f"{folder}/it's one")

    assert not folder.exists()


def test_one_connection_carries_everything_and_ends_with_it(board: SshServer) -> None:
    with open_transport("ssh://board") as device:
        before = board.connections()  # one that has just been closed may still be among them
        device.run(["sh", "-c", "exit 0"])
        device.list("/")
        after = board.connections()
        assert after and after <= before
        room = device._room  # type: ignore[attr-defined]

    assert not room.exists()


def test_an_unknown_host_key_is_not_accepted(board: SshServer) -> None:
    (board.folder / "known_hosts").write_text("")

    with pytest.raises(DeviceError, match=r"^ssh://board: its host key is not known yet; run `ssh board` once"):
        open_transport("ssh://board").__enter__()


def test_a_changed_host_key_is_said(board: SshServer) -> None:
    board.trust_host_key("other_key")

    with pytest.raises(DeviceError, match=r"^ssh://board: its host key is another one than known_hosts has"):
        open_transport("ssh://board").__enter__()


def test_a_refused_login_asks_for_nothing(board: SshServer) -> None:
    board.use_key("other_key")

    with pytest.raises(DeviceError, match=r"^ssh://board: the login was refused; no password is asked for"):
        open_transport("ssh://board").__enter__()


def test_a_host_that_is_not_found_is_named(board: SshServer) -> None:
    with pytest.raises(DeviceError, match=r"^ssh://nowhere.invalid: host 'nowhere.invalid' is not found"):
        open_transport("ssh://nowhere.invalid").__enter__()


def test_a_closed_port_is_said(board: SshServer) -> None:
    board.stop()

    with pytest.raises(DeviceError, match=r"^ssh://board: nothing listens there"):
        open_transport("ssh://board").__enter__()


def test_a_host_that_never_answers_is_given_up(board: SshServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ssh._OPTIONS, "ConnectTimeout", "1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        spec = f"ssh://silent:{silent.getsockname()[1]}"
        with pytest.raises(DeviceError, match=rf"^{spec}: no answer; is the device on\?$"):
            open_transport(spec).__enter__()


def test_a_command_that_takes_too_long_is_ended(board: SshServer) -> None:
    with (
        open_transport("ssh://board") as device,
        pytest.raises(DeviceError, match=r"^ssh://board: sh did not end within 0.3 s"),
    ):
        device.run(["sh", "-c", LONG_LOOP], timeout=0.3)


def test_a_connection_that_ends_is_one_line(board: SshServer) -> None:
    def drop(text: str) -> None:
        board.drop_connections()

    with (
        open_transport("ssh://board") as device,
        pytest.raises(DeviceError, match=r"^ssh://board: the connection was lost"),
    ):
        device.run(["sh", "-c", f"echo begun; {LONG_LOOP}"], on_text=drop)


def test_without_an_ssh_program_its_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(DeviceError, match="no ssh here; install OpenSSH's client"):
        open_transport("ssh://pi").__enter__()
