"""What a device's sensor files hold at one moment, read by one command.

`find_sensors` asks hundreds of questions: a round trip for each would take longer than the measurement.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from edgeslim.devices import android, raspberry_pi
from edgeslim.devices.transports import Transport
from edgeslim.devices.transports.shell import script

PATTERNS = (
    "/sys/class/powercap/intel-rapl:*/name",
    "/sys/class/powercap/intel-rapl:*/max_energy_range_uj",
    "/sys/class/powercap/intel-rapl:*/energy_uj",
    "/sys/class/hwmon/hwmon*/name",
    "/sys/class/hwmon/hwmon*/in*_label",
    "/sys/class/hwmon/hwmon*/in*_input",
    "/sys/class/hwmon/hwmon*/curr*_input",
    "/sys/class/hwmon/hwmon*/power1_*",
    "/sys/class/hwmon/hwmon*/temp*_input",
    "/sys/class/hwmon/hwmon*/oc*_event_cnt",
    "/sys/bus/i2c/drivers/ina3221x/*/iio*/rail_name_*",
    "/sys/bus/i2c/drivers/ina3221x/*/iio*/in_power*_input",
    "/sys/class/power_supply/*/type",
    "/sys/class/power_supply/*/online",
    f"{android.BATTERY}/status",
    f"{android.BATTERY}/voltage_now",
    f"{android.BATTERY}/current_now",
    "/sys/class/thermal/thermal_zone*/type",
    "/sys/class/thermal/thermal_zone*/temp",
    "/sys/class/thermal/cooling_device*/type",
    "/sys/class/thermal/cooling_device*/cur_state",
    "/sys/devices/system/cpu/cpufreq/policy*/scaling_*",
    "/sys/devices/system/cpu/cpufreq/policy*/cpuinfo_max_freq",
    "/sys/devices/system/cpu/cpu*/thermal_throttle/*_throttle_count",
    "/sys/firmware/acpi/platform_profile",
    "/var/lib/nvpmodel/status",
    "/etc/nvpmodel.conf",
    raspberry_pi.PATH,
)
"""Patterns of the shell for every file that `find_sensors` may ask for."""

_READ = """
for file in {patterns}; do
  line=; while IFS= read -r line || [ -n "$line" ]; do
    printf '%s\\t%s\\n' "$file" "$line"; line=
  done < "$file"
done 2>/dev/null
exit 0
"""


@dataclass(frozen=True)
class Snapshot:
    """The text of each file, by path."""

    texts: dict[str, str]

    @classmethod
    def take(cls, transport: Transport, root: str = "") -> Self:
        """Return what the device's files hold; `root` is a folder to look in instead of the device's own root.

        Raises: DeviceError where the device does not answer.
        """
        done = transport.run(script(_READ.format(patterns=" ".join(f'"$1"{pattern}' for pattern in PATTERNS)), root))
        texts: dict[str, str] = {}
        for line in done.text.splitlines():
            path, tab, text = line.partition("\t")
            if tab:
                texts.setdefault(path.removeprefix(root), "")
                texts[path.removeprefix(root)] += text + "\n"
        return cls(texts)

    def names(self, folder: str) -> Iterable[str]:
        """Return the names in `folder`, as far as files below it were read."""
        inside = (path.removeprefix(f"{folder}/") for path in self.texts if path.startswith(f"{folder}/"))
        return dict.fromkeys(path.partition("/")[0] for path in inside)

    def text(self, path: str) -> str | None:
        """Return what the file at `path` holds, None where it could not be read."""
        return self.texts.get(path)
