"""Energy is the sum of the packages' counters, wraps included; what cannot be read is None."""

from pathlib import Path

import pytest

from edgeslim.runtime.energy import EnergyMeter, cpu_temperature, rapl_packages


def add_domain(root: Path, folder: str, name: str, energy: int, wrap: int = 999) -> Path:
    """Write a powercap domain and return its counter."""
    (root / folder).mkdir(parents=True)
    (root / folder / "name").write_text(f"{name}\n")
    (root / folder / "max_energy_range_uj").write_text(f"{wrap}\n")
    (root / folder / "energy_uj").write_text(f"{energy}\n")
    return root / folder / "energy_uj"


def test_joules_are_the_sum_over_packages(tmp_path):
    one = add_domain(tmp_path, "intel-rapl:0", "package-0", 100)
    two = add_domain(tmp_path, "intel-rapl:1", "package-1", 500)
    meter = EnergyMeter(rapl_packages(tmp_path))
    meter.start()
    one.write_text("150")
    two.write_text("507")
    meter.stop()
    assert meter.joules() == pytest.approx(57e-6)


def test_a_counter_that_wrapped_around_is_continued(tmp_path):
    counter = add_domain(tmp_path, "intel-rapl:0", "package-0", 990, wrap=999)
    meter = EnergyMeter(rapl_packages(tmp_path))
    meter.start()
    counter.write_text("5")  # 990 … 999, then 0 … 5
    meter.stop()
    assert meter.joules() == pytest.approx(15e-6)


def test_only_the_stretches_between_start_and_stop_count(tmp_path):
    counter = add_domain(tmp_path, "intel-rapl:0", "package-0", 0)
    meter = EnergyMeter(rapl_packages(tmp_path))
    for begin, end in ((0, 10), (300, 305)):
        counter.write_text(str(begin))
        meter.start()
        counter.write_text(str(end))
        meter.stop()
    assert meter.joules() == pytest.approx(15e-6)


def test_domains_that_count_the_same_energy_again_are_left_out(tmp_path):
    add_domain(tmp_path, "intel-rapl:0", "package-0", 1)
    add_domain(tmp_path, "intel-rapl:0:0", "core", 1)
    add_domain(tmp_path, "intel-rapl:1", "psys", 1)
    add_domain(tmp_path, "intel-rapl-mmio:0", "package-0", 1)
    assert [d.energy.parent.name for d in rapl_packages(tmp_path)] == ["intel-rapl:0"]


def test_without_counters_energy_is_none(tmp_path):
    meter = EnergyMeter(rapl_packages(tmp_path / "nowhere"))
    meter.start()
    meter.stop()
    assert meter.joules() is None


def test_one_unreadable_package_makes_energy_none(tmp_path):
    add_domain(tmp_path, "intel-rapl:0", "package-0", 1)
    add_domain(tmp_path, "intel-rapl:1", "package-1", 1).unlink()
    assert rapl_packages(tmp_path) == []


def test_the_hottest_cpu_sensor_counts(tmp_path):
    hwmon = tmp_path / "hwmon" / "hwmon3"
    hwmon.mkdir(parents=True)
    (hwmon / "name").write_text("coretemp\n")
    (hwmon / "temp1_input").write_text("41000\n")
    (hwmon / "temp2_input").write_text("53500\n")
    zone = tmp_path / "thermal" / "thermal_zone0"
    zone.mkdir(parents=True)
    (zone / "type").write_text("cpu-thermal\n")
    (zone / "temp").write_text("47000\n")
    assert cpu_temperature(tmp_path) == 53.5


def test_sensors_of_other_parts_do_not_count(tmp_path):
    hwmon = tmp_path / "hwmon" / "hwmon0"
    hwmon.mkdir(parents=True)
    (hwmon / "name").write_text("nvme\n")
    (hwmon / "temp1_input").write_text("80000\n")
    assert cpu_temperature(tmp_path) is None


def test_a_sensor_that_is_switched_off_is_passed_over(tmp_path):
    zone = tmp_path / "thermal" / "thermal_zone0"
    zone.mkdir(parents=True)
    (zone / "type").write_text("cpu0-thermal\n")
    (zone / "temp").write_text("")
    assert cpu_temperature(tmp_path) is None
