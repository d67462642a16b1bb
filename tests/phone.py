"""A phone for tests: what runs on its side of adb (adbd), speaking adb's protocol on loopback.

Written after the protocol's description in AOSP, packages/modules/adb: docs/dev/internals.md, protocol.txt, SYNC.TXT,
shell_protocol.h. It authenticates by RSA as a phone does, offers shell (with and without its second version), sync and
exec services, and is a machine of its own as far as a test can see: /data/local/tmp is a folder of the test, commands
run with the programs of `bin` alone, and a program of another architecture runs under an emulator.
"""

import base64
import os
import queue
import re
import secrets
import shutil
import socket
import stat
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

_NAMES = (b"CNXN", b"AUTH", b"OPEN", b"OKAY", b"CLSE", b"WRTE")
CNXN, AUTH, OPEN, OKAY, CLSE, WRTE = (int.from_bytes(name, "little") for name in _NAMES)
TOKEN, SIGNATURE, PUBLIC_KEY = 1, 2, 3
VERSION = 0x01000000
STDOUT, STDERR, EXIT = 1, 2, 3

TOOLS = ("sh", "cat", "chmod", "cp", "df", "mkdir", "mv", "rm", "sha256sum", "stat", "tr")
HOME = "/data/local/tmp"

_SHA1_INFO = bytes.fromhex("3021300906052b0e03021a05000414")  # DigestInfo of RFC 8017, section 9.2


class Gone(Exception):
    """The other side has closed."""


class Phone:
    """A phone that listens until `stop`.

    `abi` is what it says it is; `old` one before Android 7: no exit status, stderr within stdout, lines that end in CR
    LF, pieces of 4 KiB. `allows` whether its owner accepts a computer that asks. `emulator` stands before programs.
    """

    def __init__(
        self, folder: Path, *, abi: str = "x86_64", old: bool = False, allows: bool = True, emulator: Sequence[str] = ()
    ) -> None:
        self.folder, self.home, self.bin = folder, folder / "tmp", folder / "bin"
        self.home.mkdir(parents=True)
        self.bin.mkdir()
        self.old, self.allows, self.emulator = old, allows, emulator
        self.most = 4096 if old else 256 * 1024
        """Bytes of the largest message."""
        self.answer_s = 0.0
        """Seconds that its owner takes to accept."""
        self.on_piece: Callable[[int], None] = lambda size: None
        """Called with the bytes of a file that have come, for every piece of it."""
        self.on_program: Callable[[], None] = lambda: None
        """Called when a program that was sent is about to run."""
        self._known: list[tuple[int, int]] = []
        self._connections: list[socket.socket] = []
        self._stopped = False
        self._install(abi)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def serial(self) -> str:
        """The phone's name for adb."""
        return f"127.0.0.1:{self.port}"

    @property
    def store(self) -> Path:
        """Where edgeslim keeps files on it."""
        return self.home / "edgeslim"

    def stop(self) -> None:
        """Be gone, as a phone whose cable is pulled."""
        self._stopped = True
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def inside(self, path: str) -> Path:
        """Return where a path of the phone is here."""
        return Path(path.replace(HOME, str(self.home), 1))

    def banner(self) -> bytes:
        """Return what the phone says of itself."""
        features = "" if self.old else "features=shell_v2,cmd,stat_v2,ls_v2"
        return f"device::ro.product.name=tiny;ro.product.model=Tiny;ro.product.device=tiny;{features}".encode()

    def is_known(self, token: bytes, signature: bytes) -> bool:
        """Return whether a key that was accepted has signed `token`."""
        return any(_signed(token, signature, *key) for key in self._known)

    def ask_owner(self, key: bytes) -> bool:
        """Return whether the owner accepts the public `key`."""
        time.sleep(self.answer_s)
        if self.allows:
            self._known.append(_public_key(key))
        return self.allows

    def start(self, command: str, **streams: int) -> "subprocess.Popen[bytes]":
        """Start a command of the phone's shell."""
        text = command.replace(HOME, str(self.home))
        if re.search(r"\s\./edgeslim-bench\s", text):
            self.on_program()
            text = re.sub(r"(?<=\s)\./edgeslim-bench(?=\s)", " ".join([*self.emulator, "./edgeslim-bench"]), text)
        environment = {"PATH": str(self.bin), "HOME": "/"}
        return subprocess.Popen(
            [str(self.bin / "sh"), "-c", text], env=environment, stdin=subprocess.DEVNULL, **streams
        )

    def outside(self, said: bytes) -> bytes:
        """Return what a command said as the phone's user would read it."""
        text = said.replace(os.fsencode(self.home), HOME.encode())
        return text.replace(b"\n", b"\r\n") if self.old else text

    def _install(self, abi: str) -> None:
        for tool in TOOLS:
            found = shutil.which(tool)
            assert found is not None, tool
            (self.bin / tool).symlink_to(found)
        machine = {"arm64-v8a": "aarch64"}.get(abi, abi)
        scripts = {
            "uname": f'[ "$1" = -m ] && echo {machine} || echo Linux\n',
            "getprop": f"case $1 in *abi) echo {abi};; *manufacturer) echo Tiny;; *model) echo Phone 1;; esac\n",
            # Android's policy lets the shell make no hard links
            "ln": f'[ "$1" = -s ] && exec {shutil.which("ln")} "$@"; echo "ln: $2: Permission denied" >&2; exit 1\n',
        }
        for name, text in scripts.items():
            (self.bin / name).write_text(f"#!{shutil.which('sh')}\n{text}")
            (self.bin / name).chmod(0o755)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # small answers wait for nothing
                self._connections.append(connection)
                if self._stopped:  # while this one was on its way
                    connection.shutdown(socket.SHUT_RDWR)
                threading.Thread(target=Connection(self, connection).serve, daemon=True).start()


class Connection:
    """One computer at the phone."""

    def __init__(self, phone: Phone, link: socket.socket) -> None:
        self.phone, self._link = phone, link
        self._streams: dict[int, Stream] = {}
        self._sending = threading.Lock()

    def serve(self) -> None:
        """Answer until the connection ends."""
        try:
            self._let_in()
            while True:
                self._dispatch(*self._receive())
        except (Gone, OSError):
            for stream in list(self._streams.values()):  # each ends in a thread of its own, and is forgotten
                stream.close()
            with suppress(OSError):  # not closed: a stream may be sending, and the number be another file's by then
                self._link.shutdown(socket.SHUT_RDWR)

    def send(self, command: int, first: int, second: int, data: bytes = b"") -> None:
        """Send one message."""
        head = struct.pack("<6I", command, first, second, len(data), sum(data) & 0xFFFFFFFF, command ^ 0xFFFFFFFF)
        with self._sending:
            self._link.sendall(head + data)

    def forget(self, stream: "Stream") -> None:
        """Let a stream that has ended go."""
        self._streams.pop(stream.ours, None)

    def _receive(self) -> tuple[int, int, int, bytes]:
        command, first, second, size, check, magic = struct.unpack("<6I", self._exactly(24))
        data = self._exactly(size)
        assert magic == command ^ 0xFFFFFFFF and check == sum(data) & 0xFFFFFFFF, "a message is damaged"
        return command, first, second, data

    def _exactly(self, size: int) -> bytes:
        parts = []
        while size:
            part = self._link.recv(size)
            if not part:
                raise Gone
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _let_in(self) -> None:
        """Let the computer in once it has signed our token by a known key, or its owner accepts its key."""
        command, *_ = self._receive()
        assert command == CNXN
        token = secrets.token_bytes(20)
        self.send(AUTH, TOKEN, 0, token)
        while True:
            command, kind, _, data = self._receive()
            assert command == AUTH
            accepted = self.phone.is_known(token, data) if kind == SIGNATURE else self.phone.ask_owner(data)
            if accepted:
                return self.send(CNXN, VERSION, self.phone.most, self.phone.banner())
            if kind == SIGNATURE:
                token = secrets.token_bytes(20)
                self.send(AUTH, TOKEN, 0, token)

    def _dispatch(self, command: int, theirs: int, ours: int, data: bytes) -> None:
        if command == OPEN:
            stream = Stream(self, len(self._streams) + secrets.randbelow(1 << 20) * 1000 + 1, theirs)
            self._streams[stream.ours] = stream
            threading.Thread(target=stream.serve, args=(data.rstrip(b"\0").decode(),), daemon=True).start()
        elif (stream := self._streams.get(ours)) is None:
            if command != CLSE:
                self.send(CLSE, 0, theirs)
        elif command == WRTE:
            stream.take(data)
            self.send(OKAY, stream.ours, stream.theirs)
        elif command == OKAY:
            stream.acknowledged.release()
        elif command == CLSE:
            stream.close()


class Stream:
    """One service in use."""

    def __init__(self, connection: Connection, ours: int, theirs: int) -> None:
        self.ours, self.theirs = ours, theirs
        self.acknowledged = threading.Semaphore(0)
        self._connection, self._phone = connection, connection.phone
        self._came: queue.Queue[bytes] = queue.Queue()
        self._rest = b""
        self._ended = False

    def serve(self, service: str) -> None:
        """Offer `service` until it or the other side ends."""
        kind, _, argument = service.partition(":")
        try:
            self._connection.send(OKAY, self.ours, self.theirs)
            if kind == "sync":
                self._sync()
            elif kind.startswith("shell,v2"):
                self._shell(argument)
            elif kind in ("shell", "exec"):
                self._plain(argument)
            self._connection.send(CLSE, self.ours, self.theirs)
        except (Gone, OSError):
            pass
        finally:
            self._connection.forget(self)

    def take(self, data: bytes) -> None:
        """Take what has come."""
        self._came.put(data)

    def close(self) -> None:
        """Let whoever waits know that there is no more."""
        self._ended = True
        self._came.put(b"")
        self.acknowledged.release()

    def write(self, data: bytes) -> None:
        """Send `data`, a piece after the other, each once the one before it was taken."""
        for start in range(0, len(data), self._phone.most):
            if self._ended:
                raise Gone
            self._connection.send(WRTE, self.ours, self.theirs, data[start : start + self._phone.most])
            self.acknowledged.acquire()

    def exactly(self, size: int) -> bytes:
        """Return the next `size` bytes that come."""
        while len(self._rest) < size:
            data = self._came.get()
            if not data and self._ended:
                raise Gone
            self._rest += data
        found, self._rest = self._rest[:size], self._rest[size:]
        return found

    def _plain(self, command: str) -> None:
        """The first shell: no status, both outputs in one."""
        process = self._phone.start(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert process.stdout is not None
        with process:
            while piece := os.read(process.stdout.fileno(), 4096):
                self.write(self._phone.outside(piece))

    def _shell(self, command: str) -> None:
        """The second shell: packets of either output, and the status at the end."""
        process = self._phone.start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None and process.stderr is not None
        sending = threading.Lock()

        def forward(pipe: int, stream: int) -> None:
            with suppress(Gone, OSError):
                while piece := os.read(pipe, 4096):
                    with sending:
                        said = self._phone.outside(piece)
                        self.write(struct.pack("<BI", stream, len(said)) + said)

        with process:
            errors = threading.Thread(target=forward, args=(process.stderr.fileno(), STDERR))
            errors.start()
            forward(process.stdout.fileno(), STDOUT)
            errors.join()
        self.write(struct.pack("<BI", EXIT, 1) + bytes([process.returncode & 0xFF]))

    def _sync(self) -> None:
        while True:
            name, size = struct.unpack("<4sI", self.exactly(8))
            argument = self.exactly(size).decode() if name != b"QUIT" else ""
            if name == b"QUIT":
                return
            answer = {
                b"STAT": self._stat,
                b"STA2": self._stat2,
                b"LST2": self._stat2,
                b"LIST": self._list,
                b"SEND": self._take_file,
                b"RECV": self._give_file,
            }[name]
            answer(argument) if name not in (b"STA2", b"LST2") else self._stat2(argument, name)

    def _stat(self, path: str) -> None:
        try:
            found = self._phone.inside(path).lstat()
        except OSError:
            return self.write(struct.pack("<4s3I", b"STAT", 0, 0, 0))
        self.write(struct.pack("<4s3I", b"STAT", found.st_mode, found.st_size, int(found.st_mtime)))

    def _stat2(self, path: str, name: bytes = b"STA2") -> None:
        layout = "<4sIQQIIIIQqqq"
        try:
            here = self._phone.inside(path)
            found = here.lstat() if name == b"LST2" else here.stat()
        except OSError as fault:
            return self.write(struct.pack(layout, name, fault.errno or 1, *[0] * 10))
        times = (int(found.st_atime), int(found.st_mtime), int(found.st_ctime))
        facts = (found.st_dev, found.st_ino, found.st_mode, found.st_nlink, found.st_uid, found.st_gid, found.st_size)
        self.write(struct.pack(layout, name, 0, *facts, *times))

    def _list(self, path: str) -> None:
        with suppress(OSError):
            for entry in self._phone.inside(path).iterdir():
                found, name = entry.lstat(), entry.name.encode()
                head = (b"DENT", found.st_mode, found.st_size, int(found.st_mtime), len(name))
                self.write(struct.pack("<4s4I", *head) + name)
        self.write(struct.pack("<4s4I", b"DONE", 0, 0, 0, 0))

    def _take_file(self, argument: str) -> None:
        path, _, mode = argument.rpartition(",")
        here, size, fault = self._phone.inside(path), 0, ""
        while (head := struct.unpack("<4sI", self.exactly(8)))[0] != b"DONE":
            piece = self.exactly(head[1])
            size += len(piece)
            self._phone.on_piece(size)
            try:
                with here.open("wb" if size == len(piece) else "ab") as file:
                    file.write(piece)
            except OSError as error:  # the rest comes all the same, and is let pass
                fault = fault or f"couldn't write file: {error.strerror}"
        if fault:
            with suppress(OSError):
                here.unlink()
            return self._fail(fault)
        here.chmod(stat.S_IMODE(int(mode)))
        self.write(struct.pack("<4sI", b"OKAY", 0))

    def _give_file(self, path: str) -> None:
        try:
            content = self._phone.inside(path).read_bytes()
        except OSError as error:
            return self._fail(f"open failed: {error.strerror}")
        for start in range(0, len(content), 1 << 16):
            piece = content[start : start + (1 << 16)]
            self.write(struct.pack("<4sI", b"DATA", len(piece)) + piece)
        self.write(struct.pack("<4sI", b"DONE", 0))

    def _fail(self, message: str) -> None:
        self.write(struct.pack("<4sI", b"FAIL", len(message)) + message.encode())


def _public_key(sent: bytes) -> tuple[int, int]:
    """Return modulus and exponent of a key as adb sends it: words, n0inv, modulus, rr, exponent, in base64, a name."""
    raw = base64.b64decode(sent.split(b" ")[0].rstrip(b"\0"))
    words = int.from_bytes(raw[:4], "little")
    modulus = int.from_bytes(raw[8 : 8 + 4 * words], "little")
    return modulus, int.from_bytes(raw[8 + 8 * words : 12 + 8 * words], "little")


def _signed(token: bytes, signature: bytes, modulus: int, exponent: int) -> bool:
    """Return whether `signature` is that of `token`, taken as a SHA-1 hash, by PKCS #1 v1.5."""
    size = (modulus.bit_length() + 7) // 8
    opened = pow(int.from_bytes(signature, "big"), exponent, modulus).to_bytes(size, "big")
    tail = b"\0" + _SHA1_INFO + token
    return opened == b"\0\1" + b"\xff" * (size - 2 - len(tail)) + tail
