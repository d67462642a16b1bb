"""What ``vcgencmd get_throttled`` says on a Raspberry Pi, or its file in sysfs.

Source: Raspberry Pi documentation, "vcgencmd", get_throttled: bits 0 to 3 are now, 16 to 19 since the start.
"""

import re

NOW = {0: "under-voltage", 1: "clock capped", 2: "throttled", 3: "soft temperature limit"}
PATH = "/sys/devices/platform/soc/soc:firmware/get_throttled"
"""The same number, in hexadecimal without 0x, where the firmware's driver offers it."""

_PAST = 16


def parse_get_throttled(text: str) -> int | None:
    """Return the bits of ``throttled=0x50005``, or of the bare hexadecimal number; None for any other text."""
    found = re.fullmatch(r"\s*(?:throttled=)?(?:0x)?([0-9a-fA-F]{1,8})\s*", text)
    return int(found[1], 16) if found else None


def describe_throttled(bits: int) -> list[str]:
    """Return what holds now, then what has happened since the start and does not hold now."""
    now = [name for bit, name in NOW.items() if bits >> bit & 1]
    past = [f"{name} since the start" for bit, name in NOW.items() if bits >> bit + _PAST & 1 and not bits >> bit & 1]
    return now + past
