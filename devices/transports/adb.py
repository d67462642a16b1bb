"""A phone over adb, through the platform tool: its server, its keys, its devices. No Python on the phone.

The shell of phones before Android 7 gives no exit status and mixes stderr into stdout; so the status is always asked
for in the text, and nothing here needs the two apart.
"""

import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from edgeslim.devices.transports import shell
from edgeslim.devices.transports.process import Output, TimedOut, run_program
from edgeslim.devices.transports.protocol import QUICK_S, OnBytes
from edgeslim.errors import DeviceError

FOLDER = "/data/local/tmp/edgeslim"
"""The one place on a phone where the shell may both write and run programs."""

_STATUS = re.compile(r"edgeslim-status=(\d+)\n")  # stderr of the second shell may come behind it
ANSWER_S = 3.0
"""How long a phone may take to let us in after it was connected, its owner's answer included."""
_PASSING = ("unauthorized", "authorizing", "connecting", "offline")
_ALIVE_S = 10.0  # within which a phone that is there echoes a word
_STATES = {
    "unauthorized": "the phone has not allowed this computer; unlock it and accept its question about USB debugging",
    "authorizing": "the phone is still being asked whether it allows this computer; answer it and try again",
    "offline": "the phone is offline for adb; plug it in again, or run `adb reconnect`",
    "no permissions": "this user may not open the phone's USB device; see `adb devices` and the udev rules it names",
    "recovery": "the phone is in recovery; start Android",
    "sideload": "the phone is in sideload; start Android",
    "connecting": "adb is still connecting to the phone; try again",
    "bootloader": "the phone is in its bootloader; start Android",
}


class AdbTransport:
    """One phone of those that adb knows."""

    folder: str | None = FOLDER

    def __init__(self, spec: str) -> None:
        """Find the phone of ``adb`` (the only one) or ``adb:SERIAL``, and connect to a serial that is HOST:PORT.

        Raises: DeviceError where there is no adb, no such phone, several, or one that does not let us in.
        """
        self.name = spec
        found = shutil.which("adb")
        if found is None:
            raise DeviceError(f"{spec}: no adb here; install the platform tools (Debian: apt install adb)")
        self._adb = found
        wanted = spec.partition(":")[2] or None
        self._serial = self._find(wanted)

    def run(
        self, argv: Sequence[str], *, timeout: float | None = QUICK_S, on_text: Callable[[str], None] | None = None
    ) -> Output:
        """See `Transport`."""
        done = self._call("shell", f"{shlex.join(argv)}; echo edgeslim-status=$?", timeout=timeout, on_text=on_text)
        text = done.text.replace("\r\n", "\n")
        status = _STATUS.search(text)
        if status is None:
            raise DeviceError(self._lost(done))
        return Output(status=int(status[1]), text=text[: status.start()] + text[status.end() :])

    def put(self, source: Path, target: str, on_bytes: OnBytes) -> None:
        """See `Transport`."""
        done = self._call("push", str(source), target, on_wait=self._watch(target, on_bytes))
        if done.status != 0:
            if re.search("no space left|quota", done.text, re.IGNORECASE):
                raise DeviceError(f"{self.name}: {target}: No space left on device")
            raise DeviceError(self._lost(done))
        on_bytes(source.stat().st_size)

    def read(self, path: str) -> bytes:
        """See `Transport`."""
        with tempfile.TemporaryDirectory(prefix="edgeslim-") as folder:
            copy = Path(folder) / "copy"
            done = self._call("pull", path, str(copy))
            if done.status != 0 or not copy.is_file():
                raise DeviceError(self._lost(done) if self._is_gone() else f"{self.name}: {path}: {done.last_line}")
            return copy.read_bytes()

    def list(self, folder: str) -> dict[str, int]:
        """See `Transport`."""
        return shell.parse_list(self.run(shell.list_argv(folder)).text)

    def remove(self, path: str) -> None:
        """See `Transport`."""
        self.run(shell.remove_argv(path))

    def close(self) -> None:
        """See `Transport`."""

    def _find(self, wanted: str | None) -> str:
        """Return the serial of the phone that is `wanted`, or of the only one."""
        states = self._states()
        if wanted is not None and wanted not in states and re.fullmatch(r"[^:]+:\d+", wanted):
            self._plain("connect", wanted)
            states = self._states()
        states = self._answered(states, wanted)
        if wanted is None and len(states) > 1:
            raise DeviceError(
                f"{self.name}: several phones: {', '.join(states)}; say which, as adb:{next(iter(states))}"
            )
        if wanted is None and not states:
            raise DeviceError(f"{self.name}: no phone; plug one in with USB debugging on, and look at `adb devices`")
        serial = next(iter(states)) if wanted is None else wanted
        if serial not in states:
            known = f"adb knows {', '.join(states)}" if states else "adb knows none"
            raise DeviceError(f"{self.name}: no phone of this serial; {known}")
        self._refuse(states[serial])
        return serial

    def _states(self) -> dict[str, str]:
        """Return serial → state of the phones that adb knows."""
        return parse_devices(self._plain("devices").text)

    def _answered(self, states: dict[str, str], wanted: str | None) -> dict[str, str]:
        """Return the states once the phone that is meant has let us in or had its time to: adb calls a phone that is
        about to accept our key unauthorized."""
        until = time.monotonic() + ANSWER_S
        while time.monotonic() < until and _is_passing(states, wanted):
            time.sleep(0.05)
            states = self._states()
        return states

    def _refuse(self, state: str) -> None:
        if state != "device":
            meaning = next((text for sign, text in _STATES.items() if state.startswith(sign)), f"adb says {state!r}")
            raise DeviceError(f"{self.name}: {meaning}")

    def _lost(self, done: Output) -> str:
        """Return one line for a command that did not come to its end."""
        if not self._is_gone():
            return f"{self.name}: {done.last_line}"
        state = self._states().get(self._serial, "device")
        try:
            self._refuse(state)
        except DeviceError as fault:
            return str(fault)
        return f"{self.name}: the phone is gone: unplugged, or switched off"

    def _is_gone(self) -> bool:
        """Whether the phone answers no more: it is asked itself, as adb's list still has it for a moment."""
        try:
            return self._call("shell", "echo alive", timeout=_ALIVE_S).text.strip() != "alive"
        except DeviceError:
            return True

    def _watch(self, target: str, on_bytes: OnBytes) -> Callable[[], None]:
        """Return what tells how far a push has come, which adb itself only shows on a terminal."""
        seen, since = 0, time.monotonic()

        def look() -> None:
            nonlocal seen, since
            size = self._size(target)
            if size > seen:
                seen, since = size, time.monotonic()
                on_bytes(size)
            elif time.monotonic() - since > QUICK_S:
                raise DeviceError(f"{self.name}: nothing has been copied for {QUICK_S:g} s; is the phone still there?")

        return look

    def _size(self, path: str) -> int:
        """Return the bytes that the file at `path` has by now."""
        done = self._call("shell", f"{shlex.join(['stat', '-c', '%s', path])} 2>/dev/null", timeout=QUICK_S)
        return int(done.text) if done.text.strip().isdigit() else 0

    def _call(
        self,
        *arguments: str,
        timeout: float | None = None,
        on_text: Callable[[str], None] | None = None,
        on_wait: Callable[[], None] | None = None,
    ) -> Output:
        return self._plain("-s", self._serial, *arguments, timeout=timeout, on_text=on_text, on_wait=on_wait)

    def _plain(
        self,
        *arguments: str,
        timeout: float | None = QUICK_S,
        on_text: Callable[[str], None] | None = None,
        on_wait: Callable[[], None] | None = None,
    ) -> Output:
        try:
            return run_program([self._adb, *arguments], timeout=timeout, on_text=on_text, on_wait=on_wait)
        except TimedOut:
            verb = arguments[2] if arguments[0] == "-s" else arguments[0]
            raise DeviceError(f"{self.name}: no answer to adb {verb} within {timeout:g} s") from None


def _is_passing(states: dict[str, str], wanted: str | None) -> bool:
    """Return whether the phone that is meant, or the only one, is in a state that may pass by itself."""
    state = states.get(wanted, "") if wanted is not None else next(iter(states.values()), "")
    return state.startswith(_PASSING) and (wanted is not None or len(states) == 1)


def parse_devices(text: str) -> dict[str, str]:
    """Return serial → state of what ``adb devices`` prints, in its order."""
    rows = (line.partition("\t") for line in text.splitlines() if "\t" in line)
    return {serial.strip(): state.strip() for serial, _, state in rows}
