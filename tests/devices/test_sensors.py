"""Sensors are found in trees of files as kernels lay them out; readings become joules, degrees and throttling."""

from pathlib import Path

import pytest

from edgeslim.devices.sensors import SensorPlan, find_sensors, read_sensors

DECODE = [
    {"phase": "prefill", "run": 0, "begin": 0.0, "end": 1.0},
    {"phase": "decode", "run": 0, "begin": 1.0, "end": 3.0},
]


class Machine:
    """A machine's files in a dictionary."""

    def __init__(self, **files: str) -> None:
        self.files = dict(files)

    def add(self, folder: str, **files: object) -> "Machine":
        self.files |= {f"{folder}/{name}": f"{value}\n" for name, value in files.items()}
        return self

    def list(self, folder: str) -> list[str]:
        under = {Path(path).relative_to(folder).parts[0] for path in self.files if path.startswith(f"{folder}/")}
        return sorted(under)

    def read(self, path: str) -> str | None:
        return self.files.get(path)

    def plan(self) -> SensorPlan:
        return find_sensors(self.list, self.read)


def samples(path: str, *values: object, every: float = 0.5) -> list[dict[str, object]]:
    """Return readings of `path` from second 0 on."""
    return [{"seconds": i * every, "path": path, "text": f"{value}\n"} for i, value in enumerate(values)]


RAPL = "/sys/class/powercap/intel-rapl:0"
HWMON = "/sys/class/hwmon"
CPU = "/sys/devices/system/cpu"
BATTERY = "/sys/class/power_supply/battery"


def test_a_machine_without_sensors_measures_nothing():
    plan = Machine().plan()
    assert plan == SensorPlan() and plan.paths == ()
    found = read_sensors(plan, DECODE, [])
    assert (found.joules, found.temperature_c, found.throttling, found.energy_source) == (None, None, None, None)


def test_rapl_counts_the_packages_and_nothing_twice():
    machine = Machine().add(RAPL, name="package-0", max_energy_range_uj=999_999, energy_uj=5)
    machine.add(f"{RAPL}:0", name="core", max_energy_range_uj=999_999, energy_uj=5)
    machine.add("/sys/class/powercap/intel-rapl:1", name="psys", max_energy_range_uj=999_999, energy_uj=5)
    plan = machine.plan()
    assert plan.energy_source == "rapl" and [c.path for c in plan.counters] == [f"{RAPL}/energy_uj"]
    read = samples(f"{RAPL}/energy_uj", 0, 100_000, 300_000, 600_000, 900_000, 200_000, 500_000)  # wraps at second 2.5
    found = read_sensors(plan, DECODE, read)
    assert found.joules == pytest.approx(1.2) and found.watts == pytest.approx(0.6)  # from 0.3 to 1.5 J in two seconds


def test_an_unreadable_package_makes_energy_none():
    machine = Machine().add(RAPL, name="package-0", max_energy_range_uj=9, energy_uj=5)
    machine.add("/sys/class/powercap/intel-rapl:1", name="package-1", max_energy_range_uj=9)
    assert machine.plan().energy_source is None


def test_ina3221_of_jetpack_5_and_6_is_volts_times_amperes_of_the_rail_that_feeds_all():
    chip = f"{HWMON}/hwmon4"
    machine = Machine().add(chip, name="ina3221", in7_label="sum of shunt voltages", in7_input=3)
    for channel, label in enumerate(("VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"), start=1):
        machine.add(chip, **{f"in{channel}_label": label, f"in{channel}_input": 5000, f"curr{channel}_input": 900})
    plan = machine.plan()
    assert plan.energy_source == "rails" and [rail.name for rail in plan.rails] == ["VDD_IN"]
    read = samples(f"{chip}/in1_input", *[5000] * 7) + samples(f"{chip}/curr1_input", *[1000] * 2, *[2000] * 5)
    assert read_sensors(plan, DECODE, read).joules == pytest.approx(5.0 * 2.0 * 2.0)


def test_agx_orin_adds_the_rails_of_two_chips_but_not_the_one_within_another():
    machine = Machine()
    for chip, labels in (
        ("hwmon3", ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")),
        ("hwmon4", ("NC", "VDDQ_VDD2_1V8AO")),
    ):
        machine.add(f"{HWMON}/{chip}", name="ina3221")
        for channel, label in enumerate(labels, start=1):
            values = {f"in{channel}_label": label, f"in{channel}_input": 1000, f"curr{channel}_input": 1000}
            machine.add(f"{HWMON}/{chip}", **values)
    plan = machine.plan()
    assert [rail.name for rail in plan.rails] == ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"]
    read = [sample for path in plan.paths for sample in samples(path, *[1000] * 7)]
    assert read_sensors(plan, DECODE, read).watts == pytest.approx(3.0)


def test_jetpack_4_gives_milliwatts_as_an_iio_device():
    folder = "/sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    machine = Machine().add(folder, rail_name_0="POM_5V_IN", in_power0_input=2100)
    machine.add(folder, rail_name_1="POM_5V_GPU", in_power1_input=40, rail_name_2="POM_5V_CPU", in_power2_input=800)
    plan = machine.plan()
    assert [rail.name for rail in plan.rails] == ["POM_5V_IN"]
    assert read_sensors(plan, DECODE, samples(f"{folder}/in_power0_input", *[2100] * 7)).watts == pytest.approx(2.1)


def test_thor_gives_microwatts_of_the_input_by_an_ina238():
    machine = Machine().add(f"{HWMON}/hwmon2", name="ina238", power1_input=23_136_000)
    machine.add(f"{HWMON}/hwmon1", name="ina3221", in1_label="VDD_GPU", in1_input=800, curr1_input=10)
    plan = machine.plan()
    assert [rail.name for rail in plan.rails] == ["VIN"]
    read = samples(f"{HWMON}/hwmon2/power1_input", *[23_136_000] * 7)
    assert read_sensors(plan, DECODE, read).watts == pytest.approx(23.136)


@pytest.mark.parametrize(("current", "voltage"), [(-500_000, 4_000_000), (500_000, 4_000_000), (-500, 4000)])
def test_a_phones_battery_is_read_in_any_sign_and_unit(current, voltage):
    machine = Machine().add(BATTERY, current_now=current, voltage_now=voltage, status="Discharging", type="Battery")
    machine.add("/sys/class/power_supply/usb", online=0, type="USB")
    plan = machine.plan()
    assert plan.energy_source == "battery"
    read = samples(f"{BATTERY}/current_now", *[current] * 7) + samples(f"{BATTERY}/voltage_now", *[voltage] * 7)
    found = read_sensors(plan, DECODE, read)
    assert found.joules == pytest.approx(0.5 * 4.0 * 2.0) and found.energy_source == "battery"


def test_a_plugged_phones_energy_is_not_measured_and_why_is_said():
    machine = Machine().add(BATTERY, current_now=1, voltage_now=4_000_000, status="Discharging", type="Battery")
    plan = machine.add("/sys/class/power_supply/usb", online=1, type="USB").plan()
    assert plan.energy_source is None
    found = read_sensors(plan, DECODE, [])
    assert found.joules is None and "a charger is connected" in found.notes[0]


def test_the_hottest_processor_zone_counts_and_others_do_not():
    zones = "/sys/class/thermal"
    machine = Machine().add(f"{zones}/thermal_zone0", type="cpu-thermal", temp=41000)
    machine.add(f"{zones}/thermal_zone1", type="tj-thermal", temp=42000)
    machine.add(f"{zones}/thermal_zone2", type="battery", temp=90000)
    machine.add(f"{zones}/thermal_zone10", type="gpu-thermal", temp="")
    machine.add(f"{HWMON}/hwmon0", name="coretemp", temp1_input=39000)
    plan = machine.plan()
    assert plan.temperatures == (
        f"{zones}/thermal_zone0/temp",
        f"{zones}/thermal_zone1/temp",
        f"{HWMON}/hwmon0/temp1_input",
    )
    read = samples(plan.temperatures[0], 41000, 55500, 61000, 48000) + samples(plan.temperatures[1], *[42000] * 4)
    assert read_sensors(plan, DECODE, read).temperature_c == 61.0


def test_degrees_are_read_where_a_phone_gives_them_whole():
    plan = Machine().add("/sys/class/thermal/thermal_zone0", type="mtktscpu", temp=47).plan()
    assert read_sensors(plan, DECODE, samples(plan.temperatures[0], 47, 51, 49)).temperature_c == 51.0


def cpufreq(governor: str = "performance") -> Machine:
    policy = f"{CPU}/cpufreq/policy0"
    return Machine().add(
        policy,
        scaling_governor=governor,
        scaling_cur_freq=2_400_000,
        scaling_max_freq=2_400_000,
        cpuinfo_max_freq=2_400_000,
    )


def test_governor_and_clock_are_read():
    plan = cpufreq("schedutil").plan()
    assert plan.governor == "schedutil" and plan.max_mhz == 2400
    read = samples(f"{CPU}/cpufreq/policy0/scaling_cur_freq", 600_000, 1_000_000, *[1_800_000] * 6)
    found = read_sensors(plan, DECODE, read)
    assert found.clock_mhz == 1800 and found.governor == "schedutil"


def test_a_clock_that_is_meant_to_be_the_highest_and_is_not_is_throttling():
    plan = cpufreq().plan()
    path = f"{CPU}/cpufreq/policy0/scaling_cur_freq"
    assert read_sensors(plan, DECODE, samples(path, *[2_400_000] * 7)).throttling == "none"
    assert read_sensors(plan, DECODE, samples(path, *[1_500_000] * 7)).throttling == "clock 1500 of 2400 MHz"


def test_a_limit_that_falls_is_throttling():
    plan = cpufreq("schedutil").plan()
    path = f"{CPU}/cpufreq/policy0/scaling_max_freq"
    said = read_sensors(plan, DECODE, samples(path, 2_400_000, 2_400_000, 1_700_000, 2_400_000)).throttling
    assert said == "clock limited to 1700 MHz"


def test_throttle_counters_of_x86_and_over_current_events_of_a_jetson_are_what_they_grew_by():
    machine = Machine().add(f"{CPU}/cpu0/thermal_throttle", core_throttle_count=7, package_throttle_count=1)
    machine.add(f"{HWMON}/hwmon5", name="soctherm_oc", oc1_event_cnt=0, oc2_event_cnt=3)
    plan = machine.plan()
    assert len(plan.throttle_counters) == 4
    read = samples(plan.throttle_counters[0], 7, 7, 9, 9, 9, 9, 9) + samples(plan.throttle_counters[3], *[3] * 7)
    assert read_sensors(plan, DECODE, read).throttling == "2 throttle events"


def test_a_raspberry_pis_bits_are_sampled_and_only_what_holds_now_counts():
    path = "/sys/devices/platform/soc/soc:firmware/get_throttled"
    machine = Machine()
    machine.files[path] = "50000\n"
    plan = machine.plan()
    assert plan.get_throttled == path
    assert read_sensors(plan, DECODE, samples(path, "50000", "50000", "50000")).throttling == "none"
    said = read_sensors(plan, DECODE, samples(path, "50000", "50004", "50001")).throttling
    assert said == "under-voltage; throttled"


def test_cooling_devices_of_processors_tell_and_fans_do_not():
    root = "/sys/class/thermal"
    machine = Machine().add(f"{root}/cooling_device0", type="pwm-fan", cur_state=3)
    machine.add(f"{root}/cooling_device1", type="cpufreq-cpu0", cur_state=0)
    plan = machine.plan()
    assert plan.cooling == (f"{root}/cooling_device1/cur_state",)
    assert (
        read_sensors(plan, DECODE, samples(plan.cooling[0], 0, 0, 2)).throttling == "cooling state 2 of cooling_device1"
    )


def test_the_power_mode_of_a_jetson_and_of_a_laptop_is_read():
    machine = Machine()
    machine.files["/sys/firmware/acpi/platform_profile"] = "low-power\n"
    assert machine.plan().power_mode == "low-power"
    machine.files["/var/lib/nvpmodel/status"] = "pmode:0001\n"
    assert machine.plan().power_mode == "mode 1"


def test_readings_that_are_no_numbers_are_passed_over():
    plan = Machine().add("/sys/class/thermal/thermal_zone0", type="cpu", temp=40000).plan()
    read = samples(plan.temperatures[0], "", "nonsense", 43000)
    assert read_sensors(plan, DECODE, read).temperature_c == 43.0
