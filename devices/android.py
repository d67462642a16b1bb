"""What an Android phone says of its battery: ``dumpsys battery`` and /sys/class/power_supply.

Both are known to vary: the current's sign says charging on some phones and discharging on others, and it is given in
microamperes or, on some, in milliamperes. Sources: Android, BatteryManager (BATTERY_PROPERTY_CURRENT_NOW,
BATTERY_STATUS_*); Linux, Documentation/ABI/testing/sysfs-class-power.
"""

import re
from dataclasses import dataclass

BATTERY = "/sys/class/power_supply/battery"
_STATUS = {1: "unknown", 2: "charging", 3: "discharging", 4: "not charging", 5: "full"}
_LEAST_MICROAMPERES = 10_000  # a phone at work draws more than 10 mA: a smaller number counts milliamperes
_LEAST_MICROVOLTS = 100_000  # a cell has more than 0.1 V, so a smaller number counts millivolts


@dataclass(frozen=True, kw_only=True)
class Battery:
    """The state of a phone's battery. `plugged` says whether anything but the battery feeds the phone: then its
    current is not what the phone draws."""

    status: str
    plugged: bool
    level: int | None = None
    volts: float | None = None
    temperature_c: float | None = None
    amperes: float | None = None
    charge_ah: float | None = None


def parse_dumpsys_battery(text: str) -> Battery | None:
    """Return the battery of ``dumpsys battery``; None where the text has no battery.

    Voltages are millivolts, temperatures tenths of a degree, the charge counter microampere-hours. A current is among
    them on some phones only (``current now`` in either unit).
    """
    values = {name.strip().lower(): value for name, value in re.findall(r"^\s+([\w ]+): *(\S+)", text, re.MULTILINE)}
    if "level" not in values and "status" not in values:
        return None
    plugged = any(values.get(f"{kind} powered") == "true" for kind in ("ac", "usb", "wireless", "dock"))
    current = _number(values.get("current now"))
    return Battery(
        status=_STATUS.get(int(_number(values.get("status")) or 1), "unknown"),
        plugged=plugged,
        level=_integer(values.get("level")),
        volts=_scaled(values.get("voltage"), 1e-3),
        temperature_c=_scaled(values.get("temperature"), 0.1),
        amperes=None if current is None else amperes(current),
        charge_ah=_scaled(values.get("charge counter"), 1e-6),
    )


def amperes(current_now: float) -> float:
    """Return the amperes, without a sign, that a ``current_now`` in either unit means."""
    size = abs(current_now)
    return size * (1e-3 if size < _LEAST_MICROAMPERES else 1e-6)


def volts(voltage_now: float) -> float:
    """Return the volts that a ``voltage_now`` in microvolts, or on some phones millivolts, means."""
    return voltage_now * (1e-3 if voltage_now < _LEAST_MICROVOLTS else 1e-6)


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _integer(text: str | None) -> int | None:
    number = _number(text)
    return None if number is None else int(number)


def _scaled(text: str | None, unit: float) -> float | None:
    number = _number(text)
    return None if number is None else number * unit
