"""A device over ssh, through the system's OpenSSH: its agent, its ssh_config with aliases, its known_hosts.

Nothing is asked for: what needs a password or an answer fails with a line that says what to do. One connection carries
everything (ControlMaster), except on Windows, whose OpenSSH cannot share one. The remote side's shell reads argv
through shlex.quote; no shell of this machine reads anything.
"""

import os
import re
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from edgeslim.devices.transports import shell
from edgeslim.devices.transports.process import Output, TimedOut, run_program
from edgeslim.devices.transports.protocol import QUICK_S, OnBytes
from edgeslim.errors import DeviceError

_CONNECT_S = 15
_OPTIONS = {
    "BatchMode": "yes",
    "ConnectTimeout": str(_CONNECT_S),
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "3",
    "LogLevel": "ERROR",
    "RemoteCommand": "none",
    "RequestTTY": "no",
    "ClearAllForwardings": "yes",
    "ControlPersist": "no",
}
_OWN_FAULT = 255  # the status by which ssh says that it failed itself
_PIECE = 1 << 18
_LONGEST_SOCKET = 90  # bytes of a Unix socket's path, with room for what ssh puts behind it while it makes one


@dataclass(frozen=True, kw_only=True)
class SshTarget:
    """Where to connect: `host` may be an alias of ssh_config, which then also says the user and the port."""

    host: str
    user: str | None = None
    port: int | None = None

    @classmethod
    def parse(cls, spec: str) -> "SshTarget":
        """Return the target of ``ssh://[user@]host[:port]``.

        Raises: DeviceError where it is none.
        """
        found = re.fullmatch(r"ssh://(?:([^@/\s]+)@)?(\[[0-9A-Fa-f:.%\w]+\]|[^:/@\s\[\]]+)(?::(\d+))?/?", spec)
        user, host, port = found.groups() if found else (None, "", None)
        if not host or host.startswith("-") or (user or "").startswith("-") or (port and not 0 < int(port) < 65536):
            raise DeviceError(f"device {spec!r}: expected ssh://[user@]host[:port]")
        return cls(host=host.strip("[]"), user=user, port=int(port) if port else None)

    def argv(self) -> list[str]:
        """Return the arguments of ssh that name it."""
        port = [] if self.port is None else ["-p", str(self.port)]
        return [*port, *([] if self.user is None else ["-l", self.user]), "--", self.host]


class SshTransport:
    """A device behind one ssh connection."""

    folder: str | None = None

    def __init__(self, spec: str) -> None:
        """Connect.

        Raises: DeviceError where there is no OpenSSH, or the host is not found, refuses, is not known or is silent.
        """
        self.name = spec
        self._target = SshTarget.parse(spec)
        ssh = shutil.which("ssh")
        if ssh is None:
            raise DeviceError(f"{spec}: no ssh here; install OpenSSH's client (Debian: apt install openssh-client)")
        self._ssh = [ssh, *(part for key, value in _OPTIONS.items() for part in ("-o", f"{key}={value}"))]
        self._room: Path | None = None
        self._master: subprocess.Popen[bytes] | None = None
        if os.name != "nt":
            try:
                self._connect()
            except BaseException:
                self.close()
                raise

    def run(
        self, argv: Sequence[str], *, timeout: float | None = QUICK_S, on_text: Callable[[str], None] | None = None
    ) -> Output:
        """See `Transport`."""
        return self._checked(self._execute(argv, timeout=timeout, on_text=on_text))

    def put(self, source: Path, target: str, on_bytes: OnBytes) -> None:
        """See `Transport`."""
        with source.open("rb") as file:
            done = self._execute(shell.script('cat > "$1"', target), pieces=_counted(file, on_bytes))
        self._checked(done)
        if done.status != 0:
            raise DeviceError(f"{self.name}: {target}: {done.last_line}")

    def read(self, path: str) -> bytes:
        """See `Transport`."""
        with tempfile.TemporaryFile() as file:
            command = [*self._command(), shlex.join(["cat", "--", path])]
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.PIPE)
            said = Output(status=done.returncode, text=done.stderr.decode(errors="replace"))
            if self._checked(said).status != 0:
                raise DeviceError(f"{self.name}: {path}: {said.last_line}")
            file.seek(0)
            return file.read()

    def list(self, folder: str) -> dict[str, int]:
        """See `Transport`."""
        return shell.parse_list(self.run(shell.list_argv(folder)).text)

    def remove(self, path: str) -> None:
        """See `Transport`."""
        self.run(shell.remove_argv(path))

    def close(self) -> None:
        """See `Transport`."""
        if self._master is not None and self._master.poll() is None:
            self._master.terminate()
            self._master.wait()
        self._master = None
        if self._room is not None:
            shutil.rmtree(self._room, ignore_errors=True)

    def _connect(self) -> None:
        """Start the shared connection and wait until it stands."""
        self._room = _short_folder()
        with (self._room / "said").open("w+b") as said:
            command = [*self._ssh, "-M", "-N", "-S", str(self._room / "socket"), *self._target.argv()]
            self._master = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
            deadline = time.monotonic() + 2 * _CONNECT_S
            while self._master.poll() is None:
                if (self._room / "socket").exists():
                    return
                if time.monotonic() > deadline:
                    raise DeviceError(f"{self.name}: no answer within {2 * _CONNECT_S} s")
                time.sleep(0.01)
            said.seek(0)
            raise DeviceError(self._fault(said.read().decode(errors="replace")))

    def _command(self) -> Sequence[str]:
        shared = [] if self._room is None else ["-o", "ControlMaster=no", "-S", str(self._room / "socket")]
        return [*self._ssh, *shared, *self._target.argv()]

    def _execute(
        self,
        argv: Sequence[str],
        *,
        timeout: float | None = None,
        on_text: Callable[[str], None] | None = None,
        pieces: Iterator[bytes] | None = None,
    ) -> Output:
        command = [*self._command(), shlex.join(argv)]
        try:
            return run_program(command, timeout=timeout, on_text=on_text, pieces=pieces)
        except TimedOut:
            raise DeviceError(f"{self.name}: {argv[0]} did not end within {timeout:g} s") from None

    def _checked(self, done: Output) -> Output:
        if done.status == _OWN_FAULT:
            raise DeviceError(self._fault(done.text))
        return done

    def _fault(self, said: str) -> str:
        """Return one line for what ssh said of its own failure."""
        by_hand = shlex.join(["ssh", *(part for part in self._target.argv() if part != "--")])
        for sign, meaning in _FAULTS:
            if re.search(sign, said, re.IGNORECASE):
                return f"{self.name}: {meaning.format(by_hand=by_hand, host=self._target.host)}"
        said_last = Output(status=_OWN_FAULT, text=said).last_line
        return f"{self.name}: the connection was lost ({said_last})"


_FAULTS = (
    (r"could not resolve|name or service not known", "host {host!r} is not found; check its name or ~/.ssh/config"),
    (
        r"identification has changed",
        "its host key is another one than known_hosts has: a new system there, or somebody between; "
        "`ssh-keygen -R {host}` forgets the old one",
    ),
    (
        r"host key verification failed|host key is known for",
        "its host key is not known yet; run `{by_hand}` once and compare the fingerprint",
    ),
    (
        r"permission denied \(",
        "the login was refused; no password is asked for: load a key (`ssh-add`), try `{by_hand}`",
    ),
    (r"connection refused", "nothing listens there; is the ssh server on, and the port right?"),
    (r"no route to host|network is unreachable", "the network has no way there"),
    (r"connect to .* timed out|connection timed out during", "no answer; is the device on?"),
    (r"server .* not responding|timed out", "the connection was lost: the device no longer answers"),
    (
        r"bad configuration option|bad number|configuration file",
        "ssh does not accept its configuration; try `{by_hand}`",
    ),
)
"""What ssh says → what to tell, the first that fits."""


def _counted(file: BinaryIO, on_bytes: OnBytes) -> Iterator[bytes]:
    """Yield the file's bytes, telling how many the connection has taken."""
    sent = 0
    while piece := file.read(_PIECE):
        yield piece
        sent += len(piece)
        on_bytes(sent)


def _short_folder() -> Path:
    """Return a new private folder whose path leaves room for a socket's name."""
    folder = Path(tempfile.mkdtemp(prefix="edgeslim-"))
    if len(os.fsencode(folder)) <= _LONGEST_SOCKET:
        return folder
    folder.rmdir()
    return Path(tempfile.mkdtemp(prefix="edgeslim-", dir="/tmp"))
