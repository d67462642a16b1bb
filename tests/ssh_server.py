"""An OpenSSH server on loopback for tests: keys, known_hosts and a port of its own, and the machine behind it as a test
wants it: a cache folder of its own, and no programs but those that are named."""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")

TOOLS = ("sh", "cat", "chmod", "cp", "df", "ln", "mkdir", "mv", "rm", "sha256sum", "stat", "tr", "uname", "getconf")
"""All that a device has to have."""


def need_sshd() -> str:
    """Return the server's program, or skip."""
    if SSHD is None:
        pytest.skip("no sshd: the Debian package openssh-server has it")
    return SSHD


class SshServer:
    """A server that runs until `stop`. `environment` is set for everything that runs behind it."""

    def __init__(
        self, folder: Path, *, tools: Sequence[str] = TOOLS, environment: Mapping[str, str] | None = None
    ) -> None:
        self.folder, self.cache, self.bin = folder, folder / "cache", folder / "bin"
        for made in (self.cache, self.bin, folder / "here"):
            made.mkdir(parents=True)
        for tool in tools:
            found = shutil.which(tool)
            assert found is not None, tool
            (self.bin / tool).symlink_to(found)
        quiet = {"SHLVL": "1"}  # bash then leaves the ~/.bashrc of whoever runs the tests alone
        self._environment = {"XDG_CACHE_HOME": str(self.cache), "PATH": str(self.bin), **quiet, **(environment or {})}
        for name in ("host_key", "user_key", "other_key"):
            _make_key(folder / name)
        self.port = _free_port()
        self._start()
        self.trust_host_key()
        self.use_key("user_key")
        (folder / "here" / "ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/ssh_config "$@"\n')
        (folder / "here" / "ssh").chmod(0o755)

    @property
    def spec(self) -> str:
        """The device as a user names it, by an alias of ssh_config."""
        return "ssh://board"

    @property
    def path(self) -> str:
        """A PATH by which `ssh` finds this server's configuration."""
        return f"{self.folder / 'here'}:{os.environ['PATH']}"

    @property
    def store(self) -> Path:
        """Where edgeslim keeps files behind the server."""
        return self.cache / "edgeslim"

    def trust_host_key(self, name: str = "host_key") -> None:
        """Let known_hosts hold the key `name` as this server's."""
        kind, key, *_ = (self.folder / f"{name}.pub").read_text().split()
        (self.folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {kind} {key}\n")

    def use_key(self, name: str) -> None:
        """Log in by the key `name`; only user_key is let in."""
        (self.folder / "ssh_config").write_text(
            f"Host board\n  HostName 127.0.0.1\n  Port {self.port}\n  User {getpass.getuser()}\n"
            "Host silent\n  HostName 127.0.0.1\n"
            f"Host *\n  IdentityFile {self.folder / name}\n  IdentitiesOnly yes\n  IdentityAgent none\n"
            f"  UserKnownHostsFile {self.folder / 'known_hosts'}\n  GlobalKnownHostsFile /dev/null\n"
        )

    def connections(self) -> set[int]:
        """Return the processes that each serve one connection."""
        return {process.pid for process in psutil.Process(self._process.pid).children()}

    def sessions(self) -> list[psutil.Process]:
        """Return the server's processes that serve a connection, and what runs behind them."""
        try:
            return psutil.Process(self._process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def drop_connections(self) -> None:
        """End every connection as a power cut does, and what runs behind it."""
        for process in self.sessions():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)

    def stop(self) -> None:
        """End the server and its connections."""
        self.drop_connections()
        self._process.terminate()
        self._process.wait(timeout=10)

    def _start(self) -> None:
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # where a service manager has not made it
        variables = " ".join(f'"{name}={value}"' for name, value in self._environment.items())
        (self.folder / "authorized_keys").write_text((self.folder / "user_key.pub").read_text())
        (self.folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {self.folder / 'host_key'}\n"
            f"AuthorizedKeysFile {self.folder / 'authorized_keys'}\nPidFile none\nUsePAM no\nStrictModes no\n"
            f"PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin yes\nSetEnv {variables}\n"
        )
        log = (self.folder / "sshd.log").open("w")
        command = [need_sshd(), "-D", "-e", "-f", str(self.folder / "sshd_config")]
        self._process = subprocess.Popen(command, stdout=log, stderr=log)
        for _ in range(500):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            if self._process.poll() is not None:
                break
            time.sleep(0.01)
        raise AssertionError((self.folder / "sshd.log").read_text())


def _make_key(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
