"""The snapshot holds every file that the search for sensors asks for."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from edgeslim.devices.sensor_plan import find_sensors
from edgeslim.devices.snapshot import Snapshot
from edgeslim.devices.transports.local import LocalTransport

SERVER = {
    "/sys/class/powercap/intel-rapl:0/name": "package-0",
    "/sys/class/powercap/intel-rapl:0/max_energy_range_uj": "262143328850",
    "/sys/class/powercap/intel-rapl:0/energy_uj": "1000",
    "/sys/class/hwmon/hwmon3/name": "coretemp",
    "/sys/class/hwmon/hwmon3/temp1_input": "51000",
    "/sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "0",
    "/sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count": "0",
    "/sys/firmware/acpi/platform_profile": "balanced",
}
JETSON = {
    "/sys/class/hwmon/hwmon1/name": "ina3221",
    "/sys/class/hwmon/hwmon1/in1_label": "VDD_IN",
    "/sys/class/hwmon/hwmon1/in1_input": "5000",
    "/sys/class/hwmon/hwmon1/curr1_input": "1200",
    "/sys/class/hwmon/hwmon1/oc1_event_cnt": "0",
    "/sys/class/thermal/thermal_zone0/type": "cpu-thermal",
    "/sys/class/thermal/thermal_zone0/temp": "48500",
    "/sys/class/thermal/cooling_device0/type": "cpufreq-cpu0",
    "/sys/class/thermal/cooling_device0/cur_state": "0",
    "/var/lib/nvpmodel/status": "pmode:0002",
    "/etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n< POWER_MODEL ID=2 NAME=MAXN >",
}
JETPACK_4 = {
    "/sys/bus/i2c/drivers/ina3221x/1-0040/iio:device0/rail_name_0": "VDD_IN",
    "/sys/bus/i2c/drivers/ina3221x/1-0040/iio:device0/in_power0_input": "4000",
}
PHONE = {
    "/sys/class/power_supply/battery/status": "Discharging",
    "/sys/class/power_supply/battery/voltage_now": "4200000",
    "/sys/class/power_supply/battery/current_now": "-350000",
    "/sys/class/power_supply/usb/type": "USB",
    "/sys/class/power_supply/usb/online": "0",
    "/sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "1800000",
    "/sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq": "1950000",
    "/sys/devices/system/cpu/cpufreq/policy0/cpuinfo_max_freq": "1950000",
    "/sys/devices/system/cpu/cpufreq/policy0/scaling_governor": "sched_pixel",
}
PI = {"/sys/devices/platform/soc/soc:firmware/get_throttled": "50005"}


@pytest.mark.parametrize("machine", [SERVER, JETSON, JETPACK_4, PHONE, PI, {}])
def test_the_plan_of_a_snapshot_is_that_of_the_machine_itself(machine: dict[str, str], tmp_path: Path) -> None:
    for path, text in machine.items():
        (tmp_path / path[1:]).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path[1:]).write_text(text + "\n")

    def names(folder: str) -> Iterable[str]:
        here = tmp_path / folder[1:]
        return [entry.name for entry in here.iterdir()] if here.is_dir() else []

    def read(path: str) -> str | None:
        here = tmp_path / path[1:]
        return here.read_text() if here.is_file() else None

    snapshot = Snapshot.take(LocalTransport(), str(tmp_path))

    assert find_sensors(snapshot.names, snapshot.text) == find_sensors(names, read)
    assert snapshot.texts == {path: f"{text}\n" for path, text in machine.items()}


def test_every_file_of_these_machines_is_asked_for() -> None:
    asked: set[str] = set()
    for machine in (SERVER, JETSON, JETPACK_4, PHONE, PI):
        snapshot = Snapshot(dict(machine))

        def read(path: str, snapshot: Snapshot = snapshot) -> str | None:
            asked.add(path)
            return snapshot.text(path)

        find_sensors(snapshot.names, read)

    assert {path for machine in (SERVER, JETSON, JETPACK_4, PHONE, PI) for path in machine} <= asked
