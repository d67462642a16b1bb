"""Texts of Jetsons, phones and Raspberry Pis in the forms that their documentation and users show."""

import pytest

from edgeslim.devices.android import amperes, parse_dumpsys_battery, volts
from edgeslim.devices.jetson import parse_nvpmodel, parse_nvpmodel_status, parse_tegrastats, whole
from edgeslim.devices.raspberry_pi import describe_throttled, parse_get_throttled

# L4T 28, TX2: one clock a core, powers without a unit, the PMIC's fixed temperature
TX2 = (
    "RAM 1733/7852MB (lfb 1202x4MB) CPU [18%@345,off,off,25%@345,19%@345,18%@345] EMC_FREQ 1%@1600 GR3D_FREQ 0%@114 "
    "APE 150 MTS fg 0% bg 0% BCPU@43C MCPU@43C GPU@41C PLL@43C Tboard@38C Tdiode@40.75C PMIC@100C thermal@42.3C "
    "VDD_IN 1794/1794 VDD_CPU 229/229 VDD_GPU 152/152 VDD_SOC 458/458 VDD_WIFI 0/0 VDD_DDR 480/480"
)
# L4T 32 (JetPack 4), Nano
NANO = (
    "RAM 1205/3956MB (lfb 3x4MB) SWAP 0/1978MB (cached 0MB) IRAM 0/252kB(lfb 252kB) CPU [7%@102,1%@102,0%@102,0%@102] "
    "EMC_FREQ 0%@204 GR3D_FREQ 0%@76 APE 25 PLL@25.5C CPU@28.5C PMIC@100C GPU@26C AO@33C thermal@27.25C "
    "POM_5V_IN 1022/1022 POM_5V_GPU 0/0 POM_5V_CPU 122/122"
)
# L4T 35 (JetPack 5), AGX Orin: no rail for all
AGX_ORIN = (
    "11-21-2025 08:49:48 RAM 13983/62780MB (lfb 424x4MB) SWAP 126/31390MB (cached 0MB) CPU [90%@2201,100%@2201,off] "
    "EMC_FREQ 1%@2133 GR3D_FREQ 14%@[407,407] VIC_FREQ 115 NVDLA0_FREQ @1600 APE 174 CV0@73.625C CPU@77.281C "
    "Tboard@62C SOC2@70C tj@77.281C CV2@-256C VDD_GPU_SOC 3150mW/2971mW VDD_CPU_CV 14312mW/12415mW "
    "VIN_SYS_5V0 4968mW/5048mW VDDQ_VDD2_1V8AO 1091mW/1091mW"
)
# L4T 36 (JetPack 6), Orin Nano
ORIN_NANO = (
    "05-15-2025 18:30:28 RAM 6982/7620MB (lfb 5x1MB) SWAP 2640/16384MB (cached 202MB) CPU [97%@1984,95%@1984,93%@247] "
    "EMC_FREQ 18%@3199 GR3D_FREQ 84%@[713] NVENC 1%@115 NVDEC 40%@115 NVJPG off APE 174 cv0@63.031C cpu@65.562C "
    "soc2@64.156C gpu@63.5C tj@65.562C VDD_IN 17946mW/15710mW VDD_CPU_GPU_CV 8896mW/7585mW VDD_SOC 3923mW/3515mW"
)
# L4T 38 (JetPack 7), AGX Thor: a rail that reads below zero at rest, no load of the GPU
THOR = (
    "08-29-2025 10:12:01 RAM 5120/125772MB (lfb 10x4MB) SWAP 0/0MB (cached 0MB) CPU [1%@972,0%@972,3%@2601] "
    "cpu@43.0C tj@44.2C soc012@44.2C soc345@43.5C VDD_GPU -392mW/-392mW VDD_CPU_SOC_MSS 3924mW/3924mW "
    "VIN_SYS_5V0 5058mW/5058mW VIN 23136mW/23100mW"
)


@pytest.mark.parametrize(
    ("line", "total", "hottest", "clocks"),
    [
        (TX2, 1794, ("bcpu", 43.0), (345, 345, 345, 345)),
        (NANO, 1022, ("ao", 33.0), (102, 102, 102, 102)),
        (AGX_ORIN, 3150 + 14312 + 4968, ("cpu", 77.281), (2201, 2201)),
        (ORIN_NANO, 17946, ("cpu", 65.562), (1984, 1984, 247)),
        (THOR, 23136, ("tj", 44.2), (972, 972, 2601)),
    ],
    ids=["TX2", "Nano", "AGX Orin", "Orin Nano", "Thor"],
)
def test_a_line_of_tegrastats_gives_power_temperatures_and_clocks(line, total, hottest, clocks):
    found = parse_tegrastats(line)
    assert found.total_mw == total
    assert max(found.temperatures_c.items(), key=lambda item: item[1]) == hottest
    assert found.cpu_mhz == clocks


def test_memory_and_the_gpu_are_read_where_the_line_has_them():
    orin, thor = parse_tegrastats(ORIN_NANO), parse_tegrastats(THOR)
    assert (orin.ram_used_mb, orin.ram_total_mb, orin.gpu_load, orin.gpu_mhz) == (6982, 7620, 84, 713)
    assert orin.memory_mhz == 3199 and thor.gpu_load is None and thor.ram_total_mb == 125772
    assert parse_tegrastats(NANO).gpu_mhz == 76 and parse_tegrastats(AGX_ORIN).gpu_mhz == 407


def test_one_clock_for_all_cores_is_each_ones():
    assert parse_tegrastats("RAM 1/2MB cpu CPU [10%,0%,off,off]@1420 GR3D 0%@76").cpu_mhz == (1420, 1420)


def test_a_line_of_something_else_gives_nothing():
    found = parse_tegrastats("no such command")
    assert found.total_mw is None and not found.cpu_mhz and found.ram_used_mb is None


def test_a_rail_within_another_does_not_count_twice():
    assert whole({"VDD_GPU_SOC": 1.0, "VDD_CPU_CV": 2.0, "VIN_SYS_5V0": 4.0, "VDDQ_VDD2_1V8AO": 8.0}) == 7.0
    assert whole({"VDD_IN": 10.0, "VDD_SOC": 3.0}) == 10.0
    assert whole({}) is None


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("NV Power Mode: MAXN\n0\n", "MAXN"),
        ("NVPM WARN: fan mode is not set!\nNV Power Mode: MODE_15W_6CORE\n2\n", "MODE_15W_6CORE"),
        ("NV Fan Mode:quiet\nNV Power Mode: 25W\n1\n", "25W"),
        ("NV Power Mode: MAXN_SUPER\n2\n", "MAXN_SUPER"),
        ("nvpmodel: command not found\n", None),
    ],
)
def test_the_power_mode_is_what_nvpmodel_names(text, mode):
    assert parse_nvpmodel(text) == mode


def test_the_status_file_of_nvpmodel_gives_the_modes_number():
    assert parse_nvpmodel_status("pmode:0002\nfmode:quiet\n") == "mode 2"
    assert parse_nvpmodel_status("") is None
    conf = "< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n"
    assert (
        parse_nvpmodel_status("pmode:0002", conf) == "MAXN_SUPER" and parse_nvpmodel_status("pmode:1", conf) == "mode 1"
    )


@pytest.mark.parametrize(
    ("text", "bits", "said"),
    [
        ("throttled=0x0", 0, []),
        ("throttled=0x50000", 0x50000, ["under-voltage since the start", "throttled since the start"]),
        ("throttled=0x50005\n", 0x50005, ["under-voltage", "throttled"]),
        ("throttled=0x80008", 0x80008, ["soft temperature limit"]),
        ("e0006", 0xE0006, ["clock capped", "throttled", "soft temperature limit since the start"]),
    ],
)
def test_what_throttles_a_raspberry_pi_is_told_apart_from_what_did(text, bits, said):
    assert parse_get_throttled(text) == bits
    assert describe_throttled(bits) == said


def test_other_texts_are_no_throttle_bits():
    assert parse_get_throttled("vcgencmd: not found") is None


ANDROID = """Current Battery Service state:
  AC powered: false
  USB powered: {usb}
  Wireless powered: false
  Dock powered: false
  Max charging current: 0
  Max charging voltage: 0
  Charge counter: 2848000
  status: {status}
  health: 2
  present: true
  level: 71
  scale: 100
  voltage: 4123
  temperature: 287
  technology: Li-ion
"""
SAMSUNG = ANDROID + "  current now: -412\n  charge counter: 2848000\n"


def test_a_battery_that_feeds_the_phone_is_read_with_its_units():
    battery = parse_dumpsys_battery(ANDROID.format(usb="false", status=3))
    assert battery is not None and battery.status == "discharging" and not battery.plugged
    assert (battery.level, battery.volts, battery.amperes) == (71, pytest.approx(4.123), None)
    assert battery.temperature_c == pytest.approx(28.7) and battery.charge_ah == pytest.approx(2.848)


def test_a_plugged_phone_is_known_by_its_supplies_not_by_its_status():
    battery = parse_dumpsys_battery(ANDROID.format(usb="true", status=5))
    assert battery is not None and battery.plugged and battery.status == "full"


def test_a_current_in_milliamperes_is_read_as_such():
    battery = parse_dumpsys_battery(SAMSUNG.format(usb="false", status=3))
    assert battery is not None and battery.amperes == pytest.approx(0.412)


def test_text_without_a_battery_is_none():
    assert parse_dumpsys_battery("Can't find service: battery") is None


@pytest.mark.parametrize(("number", "expected"), [(-452_000, 0.452), (452_000, 0.452), (-380, 0.38), (2_150, 2.15)])
def test_currents_say_their_unit_by_their_size_and_have_no_sign(number, expected):
    assert amperes(number) == pytest.approx(expected)


def test_voltages_say_their_unit_by_their_size():
    assert volts(4_123_000) == pytest.approx(4.123) and volts(4123) == pytest.approx(4.123)
