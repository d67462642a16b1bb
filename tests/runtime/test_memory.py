"""Memory figures come from the kernel's own lines, bundle sizes from the files and the manifest."""

import sys

import numpy as np
import pytest

from edgeslim.errors import BundleError
from edgeslim.runtime.manifest import Manifest
from edgeslim.runtime.memory import (
    bundle_bytes,
    current_pss,
    current_rss,
    parse_vm_hwm,
    peak_rss,
    reset_peak,
    weight_bytes,
)


def test_the_peak_is_the_vmhwm_line_in_bytes(tmp_path):
    (tmp_path / "status").write_text("Name:\tpython\nVmPeak:\t  900 kB\nVmHWM:\t   123 kB\nVmRSS:\t 100 kB\n")
    assert peak_rss(tmp_path) == 123 * 1024


def test_without_the_line_the_resource_usage_is_taken(tmp_path):
    (tmp_path / "status").write_text("Name:\tpython\n")
    assert parse_vm_hwm("Name:\tpython\n") is None
    assert peak_rss(tmp_path) > 1 << 20


def test_the_proportional_size_is_the_pss_line_in_bytes(tmp_path):
    assert current_pss(tmp_path) is None
    (tmp_path / "smaps_rollup").write_text(
        "559600000000-7ffd00000000 ---p 00000000 00:00 0    [rollup]\nRss:   2000 kB\nPss:    77 kB\nPss_Anon:  5 kB\n"
    )
    assert current_pss(tmp_path) == 77 * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_large_array_raises_the_peak_and_a_reset_lowers_it():
    block = np.ones(64 << 20, np.uint8)
    with_block = peak_rss()
    assert with_block >= current_rss() - (8 << 20)
    del block
    if reset_peak():
        assert peak_rss() < with_block - (32 << 20)


def test_a_reset_that_is_not_permitted_says_so(tmp_path):
    assert not reset_peak(tmp_path / "nowhere")


def test_bundle_bytes_count_every_file(tmp_path):
    (tmp_path / "lib").mkdir()
    (tmp_path / "a").write_bytes(b"123")
    (tmp_path / "lib" / "b").write_bytes(b"45")
    assert bundle_bytes(tmp_path) == 5


def test_weight_bytes_come_from_the_manifest(llama):
    assert weight_bytes(llama.bundle) == Manifest.read(llama.bundle).weight_bytes


def test_without_a_manifest_they_are_the_size_of_the_weight_file(bundle_copy):
    (bundle_copy / "edgeslim.json").unlink()
    assert weight_bytes(bundle_copy) == (bundle_copy / "model.onnx.data").stat().st_size


def test_a_folder_without_weights_is_no_bundle(tmp_path):
    with pytest.raises(BundleError, match="not a bundle"):
        weight_bytes(tmp_path)
