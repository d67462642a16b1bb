"""Ways to a device: `local`, `ssh://[user@]host[:port]`, `adb[:SERIAL]`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from edgeslim.devices.transports.adb import AdbTransport
from edgeslim.devices.transports.local import LocalTransport
from edgeslim.devices.transports.protocol import Transport
from edgeslim.devices.transports.ssh import SshTransport

__all__ = ["FORMS", "Transport", "is_transport", "open_transport"]

FORMS = "local, ssh://[user@]host[:port] or adb[:SERIAL]"

_OPEN: dict[str, Callable[[str], Transport]] = {
    "local": lambda spec: LocalTransport(),
    "ssh": SshTransport,
    "adb": AdbTransport,
}


def is_transport(spec: str) -> bool:
    """Return whether `spec` names a way to a device; any other name is one of the catalog's."""
    return _kind(spec) is not None


@contextmanager
def open_transport(spec: str) -> Iterator[Transport]:
    """Yield the device that `spec` names, which must be a transport.

    Raises: DeviceError where it does not answer.
    """
    kind = _kind(spec)
    assert kind is not None, spec
    transport = _OPEN[kind](spec)
    try:
        yield transport
    finally:
        transport.close()


def _kind(spec: str) -> str | None:
    if spec == "local":
        return "local"
    if spec.startswith("ssh://"):
        return "ssh"
    return "adb" if spec == "adb" or spec.startswith("adb:") else None
