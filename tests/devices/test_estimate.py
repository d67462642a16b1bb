"""What a bundle does is counted from its graph; an estimate is arithmetic on that and on a device."""

import json
import math
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from edgeslim import api
from edgeslim.cli import app
from edgeslim.devices.catalog import Costs, EngineCost, KernelRate, Source, known_devices, load_device
from edgeslim.devices.estimate import estimate_bundle
from edgeslim.devices.workload import read_workload
from edgeslim.errors import DeviceError, RecipeError
from edgeslim.runtime.manifest import Manifest


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Tiny bundles by family and form, all on kernels of ours but one."""
    from families import save_tiny

    made = {}
    for family in ("llama", "mamba2"):
        root = tmp_path_factory.mktemp(family)
        checkpoint = save_tiny(root / "checkpoint", family)
        for name, options in (("int8", {"lowering": "kernel"}), ("stock", {"lowering": "dense", "weights": "int8"})):
            api.export(checkpoint, root / name, **options)
            made[family, name] = root / name
    return made


def probed(**costs: float):
    """Return a device with one measured kernel and simple costs."""
    ones = dict.fromkeys(Costs.__dataclass_fields__, 0.0) | {
        name: 1.0 for name in Costs.__dataclass_fields__ if name.endswith("_per_s") or "gflops" in name
    }
    device = load_device("x86-64-avx512")
    rates = [
        KernelRate(
            form=form, density=density, decode_gweights_per_s=decode, prefill_gweights_per_s=prefill, source="ours"
        )
        for form, density, decode, prefill in (
            ("dense_int8", 1.0, 10.0, 100.0),
            ("bitmap_int8", 0.5, 20.0, 80.0),
            ("stock_int8", 1.0, 5.0, 50.0),
        )
    ]
    return replace(
        device,
        kernels=tuple(rates),
        costs=Costs(**{**ones, **costs, "source": "ours"}),
        engines=(),
        cache_bytes=None,
        source={k: v for k, v in device.source.items() if k != "cache_bytes"},
    )


@pytest.mark.parametrize("family", ["llama", "mamba2"])
@pytest.mark.parametrize("form", ["int8", "stock"])
def test_products_are_those_of_the_manifest_with_their_bytes_and_the_head(bundles, family, form):
    bundle = bundles[family, form]
    layers = {layer.name: layer for layer in Manifest.read(bundle).layers}
    products = read_workload(bundle).products
    assert sum(p.bytes for p in products) == pytest.approx(sum(layer.bytes for layer in layers.values()), rel=0.05)
    assert sorted(p.weights for p in products) == sorted(math.prod(layer.shape) for layer in layers.values())
    assert [p.last_only for p in products].count(True) == 1
    assert {p.form for p in products} == {"dense_int8" if form == "int8" else "stock_int8"}


def test_attention_scans_and_states_are_counted(bundles):
    llama, mamba = read_workload(bundles["llama", "int8"]), read_workload(bundles["mamba2", "int8"])
    config = json.loads((bundles["llama", "int8"] / "config.json").read_text())
    size = config["hidden_size"] // config["num_attention_heads"]
    assert len(llama.attentions) == config["num_hidden_layers"] == llama.layers
    assert llama.attentions[0].read_bytes(10) == 2 * 4 * config["num_key_value_heads"] * size * 10
    assert llama.cache_bytes_per_token == config["num_hidden_layers"] * 8 * config["num_key_value_heads"] * size
    assert llama.state_bytes == 0 and not llama.scans
    inner = json.loads((bundles["mamba2", "int8"] / "config.json").read_text())
    assert set(mamba.scans) == {inner["num_heads"] * inner["head_dim"] * inner["state_size"]}
    assert len(mamba.scans) == len(mamba.convolutions) == inner["num_hidden_layers"] and mamba.state_bytes > 0


def test_flops_of_a_prompt_are_two_a_weight_and_token_and_the_head_counts_once(bundles):
    work = read_workload(bundles["mamba2", "int8"])
    head = next(p.weights for p in work.products if p.last_only)
    rest = work.weights - head
    assert work.flops(100) == pytest.approx(2 * (100 * rest + head) + 6 * 100 * sum(work.scans))


def test_a_token_takes_the_weights_over_the_kernels_rate_and_the_costs_beside(bundles):
    work = read_workload(bundles["llama", "int8"])
    fast = probed()
    plain = estimate_bundle(bundles["llama", "int8"], fast)
    assert plain.parts_ms["products"] == pytest.approx(work.weights / 10e9 * 1e3, rel=1e-3)
    slower = estimate_bundle(bundles["llama", "int8"], probed(product_us=100.0))
    assert slower.parts_ms["products"] - plain.parts_ms["products"] == pytest.approx(len(work.products) * 0.1, rel=1e-3)
    engine = EngineCost(engine="genai", step_us=500.0, logit_ns=0.0, source="ours")
    looped = estimate_bundle(bundles["llama", "int8"], replace(fast, engines=(engine,)))
    assert looped.parts_ms["engine"] == 0.5
    assert looped.decode_tok_s.value == pytest.approx(1e3 / (sum(plain.parts_ms.values()) + 0.5), rel=1e-2)


def test_packed_bundles_on_the_native_runtime_take_its_own_rates_and_costs_and_nothing_else_does(bundles):
    device = probed()
    ours = [replace(rate, engine="native", decode_gweights_per_s=40.0) for rate in device.kernels[:1]]
    engines = tuple(EngineCost(engine=e, step_us=0.0, logit_ns=0.0, source="ours") for e in ("genai", "native"))
    costs = replace(device.costs, product_us=2.0)
    device = replace(device, kernels=(*device.kernels, *ours), engines=engines, native_costs=costs)

    def products(form: str, engine: str) -> float:
        return estimate_bundle(bundles["llama", form], device, engine=engine).parts_ms["products"]

    work = read_workload(bundles["llama", "int8"])
    assert products("int8", "genai") == pytest.approx(work.weights / 10e9 * 1e3, rel=1e-3)
    native = work.weights / 40e9 * 1e3 + len(work.products) * 2e-3
    assert products("int8", "native") == products("int8", "auto") == pytest.approx(native, rel=1e-3)
    assert products("stock", "native") == products("stock", "genai"), "onnxruntime runs these"
    plain = replace(device, kernels=device.kernels[:-1], native_costs=None)
    assert estimate_bundle(bundles["llama", "int8"], plain, engine="native").parts_ms["products"] == pytest.approx(
        products("int8", "genai")
    ), "a file that was probed without the native runtime's own figures"


def test_a_longer_context_decodes_slower_where_there_is_attention_and_not_where_there_is_none(bundles):
    def decode(family: str, prompt: int) -> float:
        return estimate_bundle(bundles[family, "int8"], probed(), prompt_tokens=prompt).decode_tok_s.value

    assert decode("llama", 2000) < decode("llama", 100)
    assert decode("mamba2", 2000) == decode("mamba2", 100)


def test_rates_between_two_densities_are_read_off_between_their_times(bundles):
    rates = [
        KernelRate(form="dense_int8", density=d, decode_gweights_per_s=r, prefill_gweights_per_s=r, source="ours")
        for d, r in ((0.5, 20.0), (1.0, 10.0))
    ]
    from edgeslim.devices.estimate import _at_density

    assert _at_density(rates, 0.75).decode_gweights_per_s == pytest.approx(1 / (0.5 / 20 + 0.5 / 10))


def test_a_form_that_was_not_measured_is_taken_from_the_bandwidth_and_said(bundles):
    device = probed()
    without = replace(device, kernels=tuple(r for r in device.kernels if r.form == "bitmap_int8"))
    estimate = estimate_bundle(bundles["llama", "stock"], without)
    assert any("not measured on the device: stock_int8" in note for note in estimate.notes)
    assert estimate.decode_tok_s.value > 0


def test_the_band_holds_the_value_and_is_as_wide_as_the_device_says(bundles):
    estimate = estimate_bundle(bundles["llama", "int8"], load_device("pixel-9"))
    band = estimate.decode_tok_s
    assert band.low == pytest.approx(band.value / 1.6) and band.high == pytest.approx(band.value * 1.6)
    assert not estimate.measured and "estimate of ours" in estimate.basis


def test_memory_that_a_device_does_not_have_is_said(bundles):
    device = load_device("raspberry-pi-5")
    assert estimate_bundle(bundles["llama", "int8"], device).fits
    assert not estimate_bundle(bundles["llama", "int8"], replace(device, memory_bytes=1 << 30)).fits


def test_an_accelerator_runs_what_is_made_for_it_and_nothing_else(bundles):
    from families import save_tiny

    root = bundles["llama", "int8"].parent
    api.export(save_tiny(root / "for-trt", "llama"), root / "trt", lowering="tensorrt")
    device = load_device("jetson-orin-nano")
    on_gpu, on_cpu = estimate_bundle(root / "trt", device), estimate_bundle(bundles["llama", "int8"], device)
    assert on_gpu.isa == "TensorrtExecutionProvider" and "Ampere" in on_gpu.runs_on
    assert on_cpu.isa == "neon-dotprod" and any("runs on the CPU" in note for note in on_cpu.notes)
    elsewhere = estimate_bundle(root / "trt", load_device("raspberry-pi-5"))
    assert any("made for" in note and "on its CPU" in note for note in elsewhere.notes)


def test_the_json_says_that_it_is_an_estimate_and_gives_each_band(bundles):
    value = api.profile(bundles["llama", "int8"], device="raspberry-pi-5", estimate=True).to_json()
    assert value["kind"] == "estimate" and value["measured"] is False
    assert value["decode_tok_s_low"] < value["decode_tok_s_p50"] < value["decode_tok_s_high"]
    assert json.loads(json.dumps(value)) == value


@pytest.mark.parametrize("name", known_devices())
@pytest.mark.parametrize("family", ["llama", "mamba2"])
def test_every_known_device_is_shown_and_estimated_within_what_it_can_do(bundles, name, family):
    shown = CliRunner().invoke(app, ["devices", "show", name])
    assert shown.exit_code == 0 and shown.stderr == "", shown.output
    device = load_device(name)
    assert all(source.title.split()[0] in shown.stdout for source in device.sources.values())

    options = ["profile", str(bundles[family, "int8"]), "--device", name, "--estimate"]
    table, result = (CliRunner().invoke(app, [*options, *more]) for more in ([], ["--json"]))
    assert table.exit_code == result.exit_code == 0, table.output + result.output
    assert table.stdout.startswith("ESTIMATED, not measured")
    value = json.loads(result.stdout)
    assert value["kind"] == "estimate" and value["measured"] is False and value["device"] == name
    for key, unit in (("decode_tok_s", "_p50"), ("prefill_tok_s", "_p50"), ("ttft_ms", "_p50"), ("load_s", "")):
        assert 0 < value[f"{key}_low"] < value[key + unit] < value[f"{key}_high"]
    decode, prompt_s = value["decode_tok_s_p50"], value["ttft_ms_p50"] / 1e3
    assert 50 < decode < value["prefill_tok_s_p50"] < 1e6
    assert decode * value["bytes_per_token"] < device.dram_gb_per_s * 1e9
    assert value["prompt_flops"] / prompt_s < (device.int8_gops or math.inf) * 1e9
    assert value["peak_rss_bytes"] > value["weight_bytes"] and value["fits"]
    assert value["energy_j_per_token"] is None, "nothing reckons it"


def test_what_cannot_be_estimated_is_refused(bundles):
    with pytest.raises(RecipeError, match="estimate needs device"):
        api.estimate(bundles["llama", "int8"])
    with pytest.raises(DeviceError, match="unknown device 'pixel9'; did you mean 'pixel-9'"):
        api.estimate(bundles["llama", "int8"], "pixel9")
    with pytest.raises(RecipeError, match="new_tokens must be at least 2"):
        estimate_bundle(bundles["llama", "int8"], load_device("pixel-9"), new_tokens=1)
    with pytest.raises(RecipeError, match=r"from a device file, got 'ssh://pi': .*`edgeslim devices probe -o FILE`"):
        api.estimate(bundles["llama", "int8"], "ssh://pi")


def test_the_table_is_marked_and_shows_the_fit(bundles, capsys):
    from edgeslim.device_tables import print_estimate

    print_estimate(estimate_bundle(bundles["llama", "int8"], load_device("raspberry-pi-5")).to_json())
    said = capsys.readouterr().out
    assert said.startswith("ESTIMATED, not measured") and "fits" in said


def test_sources_are_needed_for_probed_devices_too():
    device = probed()
    with pytest.raises(DeviceError, match="source 'probe' is not in"):
        replace(device, kernels=(replace(device.kernels[0], source="probe"),))
    assert Source(title="x", kind="measured").url is None
