"""The kernel library as a user meets it: found, measured, inspected, absent."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from edgeslim.cli import app
from edgeslim.errors import BundleError, RecipeError, RuntimeUnavailable
from edgeslim.runtime.bundle_library import BundleLibrary
from edgeslim.runtime.costs import read_costs, refreshed_path, speed, write_costs
from edgeslim.runtime.inspection import inspect_bundle
from edgeslim.runtime.kernel_bench import bench_kernels, cost_table, random_matrix
from edgeslim.runtime.library import KernelLibrary, find_library, kernel_library, library_name

needs_library = pytest.mark.skipif(
    find_library() is None, reason="no kernel library: edgeslim was installed without a compiler"
)
RUN = CliRunner()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the user's own cost table out of the tests, and the tests out of it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_environment_names_the_library_or_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGESLIM_LIBRARY", "none")
    assert find_library() is None
    monkeypatch.setenv("EDGESLIM_LIBRARY", str(tmp_path / "absent.so"))
    with pytest.raises(RuntimeUnavailable, match=r"absent.so: no such file"):
        find_library()


def test_each_system_has_its_own_file_name() -> None:
    names = [library_name(system) for system in ("linux", "darwin", "win32")]
    assert names == ["libedgeslim.so", "libedgeslim.dylib", "edgeslim.dll"]


def test_costs_are_interpolated_and_a_refreshed_table_takes_the_place_of_the_shipped_one(own_cache: Path) -> None:
    table = {"bitmap_int8": {"0.2": 100.0, "0.6": 60.0}}
    assert speed(table, "bitmap_int8", 0.4) == pytest.approx(80.0)
    assert speed(table, "bitmap_int8", 0.1) == 100.0
    assert speed(table, "dense_int8", 1.0) is None
    assert write_costs("some-isa", "a machine", table) == refreshed_path()
    assert read_costs("some-isa") == table
    assert read_costs("unknown-isa") == {}
    assert refreshed_path().is_relative_to(own_cache)


@needs_library
def test_bench_kernels_measures_every_form_and_refreshes_the_costs() -> None:
    report = bench_kernels(megabytes=1, rounds=1, threads=1)
    library = kernel_library()
    assert library is not None

    assert {"dense_int8", "bitmap_int4g64", "bitmap_int3g64", "nm2of4_fp16"} <= {case.form for case in report.speeds}
    assert all(case.gweights_per_s > 0 and case.isa == library.chosen for case in report.speeds)
    assert report.read_gb_per_s > 0
    assert read_costs(library.chosen) == cost_table(report.speeds, library.chosen)
    with pytest.raises(RecipeError, match="isa 'avx1024' does not run here"):
        bench_kernels(isas=["avx1024"])


@needs_library
@pytest.mark.parametrize(
    "form",
    [
        "dense_int8",
        "bitmap_int4g64",
        "dense_int3g64",
        "bitmap_int3g64",
        "nm2of4_int3g64",
        "nm2of4_fp32",
        "nm1of2_int8",
        "bitmap_fp16",
    ],
)
def test_benchmarks_run_on_matrices_that_the_library_accepts(form: str) -> None:
    library = kernel_library()
    assert library is not None
    attributes, tensors = random_matrix(form, 32, 128, 0.4, seed=0)
    library.check(attributes, tensors)
    y = library.linear(attributes, tensors, np.ones((2, 128), np.float32))
    assert np.isfinite(y).all()


@needs_library
def test_bench_kernels_prints_a_table_and_json() -> None:
    arguments = ["bench", "kernels", "--megabytes", "1", "--rounds", "1", "--no-refresh"]
    shown = RUN.invoke(app, arguments)
    assert shown.exit_code == 0
    assert "bitmap_int8" in shown.stdout
    report = json.loads(RUN.invoke(app, [*arguments, "--json"]).stdout)
    assert report["costs"] is None
    assert {"isa", "form", "density", "tokens", "gweights_per_s", "gb_per_s", "of_bandwidth"} <= set(
        report["speeds"][0]
    )


def test_inspect_shows_layers_and_verifies_files(bundle_copy: Path) -> None:
    inspection = inspect_bundle(bundle_copy)
    assert inspection.kernels is None
    assert {inspection.runs_on(layer) for layer in inspection.manifest.layers} == {"onnxruntime"}
    assert inspection.engine == "genai" and inspection.engine_reason
    shown = RUN.invoke(app, ["inspect", str(bundle_copy)])
    assert shown.exit_code == 0
    assert "model.layers.0.self_attn.o_proj" in shown.stdout
    assert f"engine: genai; not native: {inspection.engine_reason}" in shown.stdout
    printed = json.loads(RUN.invoke(app, ["inspect", str(bundle_copy), "--json"]).stdout)
    assert printed["layers"][0]["form"] == "fp32"
    (bundle_copy / "config.json").write_text("{}")
    with pytest.raises(BundleError, match=r"config.json: has 2 bytes"):
        inspect_bundle(bundle_copy)


@needs_library
def test_an_unknown_kernel_variant_is_named_with_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    path = find_library()
    assert path is not None
    library = BundleLibrary(needed=True, path=path)
    monkeypatch.setenv("EDGESLIM_ISA", "avx3")
    assert "EDGESLIM_ISA=avx3" in str(library.warning)
    assert KernelLibrary(path).chosen in str(library.warning)
    monkeypatch.setenv("EDGESLIM_ISA", KernelLibrary(path).chosen)
    assert library.warning is None
