"""Which files of a Linux machine to read while a bundle is measured, found by looking at what there is.

Nothing here reads a file by itself: `find_sensors` asks a transport, or the local file system. Known are RAPL (Linux,
powercap), INA3221 and INA238 rails of Jetsons (hwmon of JetPack 5 and later, iio of JetPack 4), a battery's current and
voltage (Android), thermal zones and hwmon temperatures, clock rates and governors (cpufreq), throttle counters (x86),
over-current events (Jetson), the Raspberry Pi's get_throttled, and cooling devices.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from edgeslim.devices import android, jetson, raspberry_pi

ListFolder = Callable[[str], Iterable[str]]
"""Names in a folder, none where there is no such folder."""
ReadText = Callable[[str], str | None]
"""What a file holds, None where it cannot be read."""

_CPU_SENSORS = (
    "coretemp",
    "k10temp",
    "zenpower",
    "cpu",
    "x86_pkg_temp",
    "soc",
    "tj",
    "gpu",
    "mtktscpu",
    "tsens",
    "big",
)


@dataclass(frozen=True, kw_only=True)
class Counter:
    """A counter of microjoules that wraps around: its file, and the value that it never reaches."""

    path: str
    wrap: int


@dataclass(frozen=True, kw_only=True)
class Rail:
    """A place where power is measured: a file of power, or files of voltage and current, and the units that turn their
    numbers into watts (power), volts and amperes; 0 means that the number says its unit by its size (Android)."""

    name: str
    power: str | None = None
    voltage: str | None = None
    current: str | None = None
    power_unit: float = 1e-6
    voltage_unit: float = 1e-3
    current_unit: float = 1e-3


@dataclass(frozen=True, kw_only=True)
class SensorPlan:
    """What to read on a machine and how. `facts` are readings that do not change: the governor, the power mode."""

    energy_source: Literal["rapl", "rails", "battery", "tegrastats"] | None = None
    counters: tuple[Counter, ...] = ()
    rails: tuple[Rail, ...] = ()
    temperatures: tuple[str, ...] = ()
    clocks: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    throttle_counters: tuple[str, ...] = ()
    cooling: tuple[str, ...] = ()
    get_throttled: str | None = None
    governor: str | None = None
    power_mode: str | None = None
    max_mhz: float | None = None
    unmeasured: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[str, ...]:
        """Return every file to read while a bundle is measured."""
        rails = [path for r in self.rails for path in (r.power, r.voltage, r.current) if path is not None]
        single = [self.get_throttled] if self.get_throttled is not None else []
        return tuple(
            dict.fromkeys(
                (
                    *(c.path for c in self.counters),
                    *rails,
                    *self.temperatures,
                    *self.clocks,
                    *self.limits,
                    *self.throttle_counters,
                    *self.cooling,
                    *single,
                )
            )
        )


def find_sensors(list_folder: ListFolder, read_text: ReadText) -> SensorPlan:
    """Return what can be read on the machine that the two functions look at."""
    look = _Look(list_folder, read_text)
    counters, rails, battery = look.rapl(), look.jetson_rails(), look.battery()
    plan: dict[str, Any] = {}
    if rails:
        plan = {"energy_source": "rails", "rails": rails}
    elif counters:
        plan = {"energy_source": "rapl", "counters": counters}
    elif battery is not None:
        plan = {"energy_source": "battery", "rails": (battery,)} if look.on_battery() else {"unmeasured": (_PLUGGED,)}
    clocks = look.cpufreq("scaling_cur_freq")
    return SensorPlan(
        **plan,
        temperatures=look.temperatures(),
        clocks=clocks,
        limits=look.cpufreq("scaling_max_freq"),
        throttle_counters=look.throttle_counters(),
        cooling=look.cooling(),
        get_throttled=raspberry_pi.PATH if look.number(raspberry_pi.PATH, 16) is not None else None,
        governor=look.governor(),
        power_mode=look.power_mode(),
        max_mhz=look.max_mhz(),
    )


_PLUGGED = "energy: a charger is connected, so the battery's current is not what the phone draws"


class _Look:
    """Questions to a machine's file system."""

    def __init__(self, list_folder: ListFolder, read_text: ReadText) -> None:
        self._list, self._read = list_folder, read_text

    def names(self, folder: str, pattern: str) -> list[str]:
        return sorted((n for n in self._list(folder) if re.fullmatch(pattern, n)), key=_natural)

    def text(self, path: str) -> str | None:
        found = self._read(path)
        return None if found is None else found.strip("\0 \n\t")

    def number(self, path: str, base: int = 10) -> int | None:
        try:
            return int(self.text(path) or "", base)
        except ValueError:
            return None

    def rapl(self) -> tuple[Counter, ...]:
        """Counters of the CPU packages; none where one cannot be read: the sum of some is not the machine's energy."""
        found = []
        for name in self.names("/sys/class/powercap", r"intel-rapl:\d+"):
            folder = f"/sys/class/powercap/{name}"
            if not (self.text(f"{folder}/name") or "").startswith("package"):
                continue
            wrap = self.number(f"{folder}/max_energy_range_uj")
            if wrap is None or self.number(f"{folder}/energy_uj") is None:
                return ()
            found.append(Counter(path=f"{folder}/energy_uj", wrap=wrap + 1))
        return tuple(found)

    def jetson_rails(self) -> tuple[Rail, ...]:
        rails = {rail.name: rail for rail in (*self._hwmon_rails(), *self._iio_rails())}
        wanted = jetson.whole_rails(set(rails))
        return tuple(rail for name, rail in rails.items() if name in wanted)

    def _hwmon_rails(self) -> Iterable[Rail]:
        """INA3221 in millivolts and milliamperes, three channels a chip (JetPack 5 and later); INA238 in microwatts."""
        for name in self.names("/sys/class/hwmon", r"hwmon\d+"):
            folder = f"/sys/class/hwmon/{name}"
            chip = self.text(f"{folder}/name") or ""
            if chip == "ina3221":
                for channel in (1, 2, 3):
                    label = self.text(f"{folder}/in{channel}_label") or ""
                    current, voltage = f"{folder}/curr{channel}_input", f"{folder}/in{channel}_input"
                    if label in ("", "NC") or self.number(current) is None or self.number(voltage) is None:
                        continue
                    yield Rail(name=label, voltage=voltage, current=current)
            elif chip == "ina238" and self.number(f"{folder}/power1_input") is not None:
                label = self.text(f"{folder}/in1_label") or self.text(f"{folder}/power1_label") or "VIN"
                yield Rail(name=label, power=f"{folder}/power1_input")

    def _iio_rails(self) -> Iterable[Rail]:
        """INA3221 as an iio device, in milliwatts (JetPack 4)."""
        drivers = "/sys/bus/i2c/drivers/ina3221x"
        for chip in self.names(drivers, r"\d+-00[0-9a-f]{2}"):
            for device in self.names(f"{drivers}/{chip}", r"iio[:_]device\d*"):
                folder = f"{drivers}/{chip}/{device}"
                for channel in (0, 1, 2):
                    label, power = self.text(f"{folder}/rail_name_{channel}"), f"{folder}/in_power{channel}_input"
                    if label and label != "NC" and self.number(power) is not None:
                        yield Rail(name=label, power=power, power_unit=1e-3)

    def battery(self) -> Rail | None:
        voltage, current = f"{android.BATTERY}/voltage_now", f"{android.BATTERY}/current_now"
        if self.number(voltage) is None or self.number(current) is None:
            return None
        return Rail(name="battery", voltage=voltage, current=current, voltage_unit=0, current_unit=0)

    def on_battery(self) -> bool:
        """Whether the battery alone feeds the phone."""
        status = (self.text(f"{android.BATTERY}/status") or "").lower()
        supplies = "/sys/class/power_supply"
        plugged = any(
            self.number(f"{supplies}/{name}/online") == 1
            for name in self.names(supplies, r".*")
            if name != "battery" and self.text(f"{supplies}/{name}/type") not in ("Battery", "UPS")
        )
        return status in ("discharging", "") and not plugged

    def temperatures(self) -> tuple[str, ...]:
        zones = [
            f"/sys/class/thermal/{name}/temp"
            for name in self.names("/sys/class/thermal", r"thermal_zone\d+")
            if _is_processor(self.text(f"/sys/class/thermal/{name}/type"))
        ]
        chips = [
            f"/sys/class/hwmon/{name}/{file}"
            for name in self.names("/sys/class/hwmon", r"hwmon\d+")
            if _is_processor(self.text(f"/sys/class/hwmon/{name}/name"))
            for file in self.names(f"/sys/class/hwmon/{name}", r"temp\d+_input")
        ]
        return tuple(path for path in (*zones, *chips) if self.number(path) is not None)

    def _policies(self) -> list[str]:
        """Folders of clock domains, one for all CPUs that share a clock."""
        root = "/sys/devices/system/cpu/cpufreq"
        return [f"{root}/{name}" for name in self.names(root, r"policy\d+")]

    def cpufreq(self, file: str) -> tuple[str, ...]:
        return tuple(f"{p}/{file}" for p in self._policies() if self.number(f"{p}/{file}") is not None)

    def governor(self) -> str | None:
        found = dict.fromkeys(filter(None, (self.text(f"{p}/scaling_governor") for p in self._policies())))
        return ", ".join(found) or None

    def max_mhz(self) -> float | None:
        found = [khz for p in self._policies() if (khz := self.number(f"{p}/cpuinfo_max_freq")) is not None]
        return max(found) / 1e3 if found else None

    def power_mode(self) -> str | None:
        status, conf = self.text("/var/lib/nvpmodel/status") or "", self.text("/etc/nvpmodel.conf") or ""
        nvpmodel = jetson.parse_nvpmodel_status(status, conf)
        return nvpmodel or self.text("/sys/firmware/acpi/platform_profile") or None

    def throttle_counters(self) -> tuple[str, ...]:
        """Counts of throttling: of x86 cores and packages, of over-current events of a Jetson."""
        root = "/sys/devices/system/cpu"
        files = [
            f"{root}/{cpu}/thermal_throttle/{kind}_throttle_count"
            for cpu in self.names(root, r"cpu\d+")
            for kind in ("core", "package")
        ]
        files += [
            f"/sys/class/hwmon/{chip}/{file}"
            for chip in self.names("/sys/class/hwmon", r"hwmon\d+")
            for file in self.names(f"/sys/class/hwmon/{chip}", r"oc\d+_event_cnt")
        ]
        return tuple(path for path in files if self.number(path) is not None)

    def cooling(self) -> tuple[str, ...]:
        """States of cooling devices that slow a processor down; 0 is at full speed."""
        return tuple(
            f"/sys/class/thermal/{name}/cur_state"
            for name in self.names("/sys/class/thermal", r"cooling_device\d+")
            if re.search(r"cpufreq|cpu-|devfreq|gpu", (self.text(f"/sys/class/thermal/{name}/type") or "").lower())
            and self.number(f"/sys/class/thermal/{name}/cur_state") is not None
        )


def _is_processor(label: str | None) -> bool:
    return (label or "").lower().startswith(_CPU_SENSORS)


def _natural(name: str) -> list[int | str]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
