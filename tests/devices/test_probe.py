"""A probe describes the machine it runs on, by micro-runs whose costs add up."""

import pytest

from edgeslim.devices.catalog import read_device
from edgeslim.devices.device_file import write_device
from edgeslim.devices.micro_runs import MicroRuns, Timing, cost, timing_of
from edgeslim.devices.native_runs import NativeRuns
from edgeslim.devices.probe import clusters, error_of, last_cache_bytes, middle, probe_machine
from edgeslim.runtime import machine
from edgeslim.runtime.library import kernel_library

needs_kernels = pytest.mark.skipif(kernel_library() is None, reason="no kernel library")
needs_native = pytest.mark.skipif(not NativeRuns.is_possible(), reason="the native runtime does not run by itself")
on_each_runtime = pytest.mark.parametrize(
    "runs_on",
    [
        pytest.param(MicroRuns, id="onnxruntime", marks=needs_kernels),
        pytest.param(NativeRuns, id="native", marks=needs_native),
    ],
)


def timing(nodes: int, work: float, seconds: float) -> Timing:
    return Timing(nodes=nodes, work=work, seconds=seconds, spread=0.0)


def test_a_cost_is_the_line_through_two_timings():
    line = cost(timing(10, 100.0, 10 * 3e-6), timing(5, 1000.0, 5 * 12e-6))
    assert line.fixed == pytest.approx(2e-6) and line.rate == pytest.approx(100.0 / 1e-6)


def test_a_cost_of_noise_stays_positive():
    line = cost(timing(1, 10.0, 9e-6), timing(1, 100.0, 5e-6))
    assert line.fixed >= 0 and line.rate > 0


def test_plain_operators_take_time_and_more_for_more_numbers():
    runs = MicroRuns(threads=1, rounds=3)
    small, large = runs.plain(tokens=1, width=64), runs.plain(tokens=64, width=4096)
    assert 0 < small.each < large.each < 0.1
    assert (small.work, large.work) == (64, 64 * 4096)


def test_stock_products_of_every_form_run():
    runs = MicroRuns(threads=1, rounds=2)
    for form in ("stock_fp32", "stock_int8", "stock_int4"):
        assert runs.stock_product(form, tokens=2, k=256, n=384, megabytes=0.4).work == 2 * 256 * 384


@on_each_runtime
@pytest.mark.parametrize("form", ["dense_int8", "bitmap_int4g64", "nm2of4_int3g64", "dense_fp16", "bitmap_fp32"])
def test_products_of_ours_run_in_every_form(runs_on, form):
    timed = runs_on(threads=1, rounds=2).product(form, 0.5, tokens=1, k=256, n=384, megabytes=0.4)
    assert timed.nodes % 2 == 0 and timed.seconds > 0 and timed.work == 256 * 384


@on_each_runtime
def test_the_other_operators_run_for_a_token_and_a_prompt(runs_on):
    runs = runs_on(threads=1, rounds=2)
    for tokens in (1, 4):
        assert runs.attention(tokens=tokens, past=8, heads=2, kv_heads=1, size=32).seconds > 0
        assert runs.scan(tokens=tokens, state=16, heads=2, size=32).seconds > 0
        assert runs.convolution(tokens=tokens, channels=64).seconds > 0
        assert runs.plain(tokens=tokens, width=64).seconds > 0


@needs_native
def test_loading_takes_time_on_the_native_runtime():
    assert NativeRuns(threads=1, rounds=2).load_seconds(nodes=4) > 0


@needs_native
def test_attention_takes_longer_where_there_is_more_to_look_at_on_the_native_runtime():
    runs = NativeRuns(threads=1, rounds=5)
    few, many = (min(runs.attention(tokens=1, past=past, heads=4).seconds for _ in range(2)) for past in (8, 600))
    assert many > 2 * few


def test_a_timing_is_the_mean_of_its_runs_and_a_probe_takes_the_median_of_its_passes():
    assert timing_of([1.0, 1.0, 4.0], nodes=1, work=1.0).seconds == 2.0
    assert middle([timing(1, 1.0, seconds) for seconds in (9.0, 2.0, 3.0, 1.0)]).seconds == 2.0


def test_the_band_is_as_wide_as_the_passes_lie_apart():
    def passes(*seconds: float) -> list[Timing]:
        return [timing(1, 1.0, s) for s in seconds]

    assert error_of([passes(1.0, 1.0, 1.0)] * 3) == 0.2
    assert error_of([passes(1.0, 1.2, 1.5), passes(1.0, 1.0, 1.6), passes(1.0, 1.0, 1.0)]) == 0.36
    assert error_of([passes(1.0, 1.0, 2.0)] * 3) == 0.65
    rounds = timing_of([1.0, 2.0, 2.0, 3.0], nodes=1, work=1.0)
    assert error_of([[rounds]]) == pytest.approx(0.15 + rounds.spread / 2, abs=0.01), "one pass has its rounds alone"


def test_cores_are_told_apart_by_kind_and_clock(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "usable_cpus", lambda: [0, 1, 2, 3])
    parts = ["0xd82", "0xd81", "0xd81", "0x999"]
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("\n\n".join(f"processor\t: {n}\nCPU part\t: {part}" for n, part in enumerate(parts)))
    for number, khz in enumerate((3_300_000, 3_200_000, 3_000_000, 2_000_000)):
        folder = tmp_path / f"cpu{number}" / "cpufreq"
        folder.mkdir(parents=True)
        (folder / "cpuinfo_max_freq").write_text(f"{khz}\n")
    found = clusters(tmp_path, cpuinfo)
    assert [(c.name, c.count, c.max_mhz) for c in found] == [
        ("Cortex-X4", 1, 3300),
        ("Cortex-A720", 1, 3200),
        ("Cortex-A720", 1, 3000),
        ("Arm part 0x999", 1, 2000),
    ]


def test_the_last_cache_is_the_largest(tmp_path):
    for index, size in enumerate(("32K", "1024K", "32M")):
        (tmp_path / "cpu0" / "cache" / f"index{index}").mkdir(parents=True)
        (tmp_path / "cpu0" / "cache" / f"index{index}" / "size").write_text(f"{size}\n")
    assert last_cache_bytes(tmp_path) == 32 << 20
    assert last_cache_bytes(tmp_path / "nowhere") is None


@pytest.mark.slow
def test_a_probe_describes_this_machine_and_its_file_reads_back(tmp_path):
    seen = []
    device = probe_machine(name="here", threads=1, passes=1, on_progress=lambda done, total: seen.append((done, total)))
    write_device(device, tmp_path / "here.toml")
    assert read_device(tmp_path / "here.toml") == device
    assert device.measured and device.threads == 1 and 0.5 < device.dram_gb_per_s < 2000
    assert {"stock_fp32", "stock_int8"} <= {rate.form for rate in device.kernels}
    assert {cost.engine for cost in device.engines} >= {"ort"}
    assert (device.native_costs is not None) == ("native" in {rate.engine for rate in device.kernels})
    assert seen[-1][0] == seen[-1][1] and [done for done, _ in seen] == sorted(done for done, _ in seen)
