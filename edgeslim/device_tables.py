"""Devices and estimates as tables for people."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeslim.devices.catalog import Device

_Row = tuple[str, Callable[[Mapping[str, Any]], str]]


def print_devices(devices: Sequence["Device"]) -> None:
    """Print known devices, one a line."""
    from rich.table import Table

    table = Table(title="known devices", title_justify="left")
    for heading in ("name", "class", "isa", "threads", "memory", "bandwidth", "device"):
        table.add_column(heading, justify="right" if heading in ("threads", "memory", "bandwidth") else "left")
    for d in devices:
        figures = (str(d.threads), f"{d.memory_bytes / 2**30:.0f} GiB", f"{d.dram_gb_per_s:g} GB/s")
        table.add_row(d.name, d.class_, d.isa, *figures, d.title)
    _console().print(table)


def print_device(device: "Device") -> None:
    """Print one device, a number a line with where it comes from."""
    from rich.table import Table

    table = Table(title=f"{device.name}: {device.title}", title_justify="left")
    for heading in ("", "", "source"):
        table.add_column(heading)
    for label, value, source in _figures(device):
        table.add_row(label, value, "" if source is None else _said(device, source))
    console = _console()
    console.print(table)
    if device.kernels:
        console.print(_kernel_table(device))
    if device.note:
        console.print(device.note, highlight=False)


def _figures(device: "Device") -> list[tuple[str, str, str | None]]:
    own = device.source
    rows: list[tuple[str, str, str | None]] = [
        ("processor", device.soc, None),
        ("instruction set", device.isa, None),
        ("memory", f"{device.memory_bytes / 2**30:.1f} GiB", own["memory_bytes"]),
        ("kept by the system", f"{device.reserved_bytes / 2**30:.1f} GiB", own["reserved_bytes"]),
        ("bandwidth", f"{device.dram_gb_per_s:g} GB/s", own["dram_gb_per_s"]),
        ("threads", str(device.threads), own["threads"]),
        ("providers", ", ".join(device.providers), None),
        ("transport", device.transport, None),
    ]
    for cluster in device.cores:
        clock = f" at {cluster.max_mhz:g} MHz" if cluster.max_mhz else ""
        rows.append(("cores", f"{cluster.count} x {cluster.name}{clock}", cluster.source))
        if cluster.int8_ops_per_cycle:
            operations = f"{cluster.int8_ops_per_cycle:g} 8-bit operations a cycle"
            rows.append(("", operations, cluster.ops_source or cluster.source))
    if (gpu := device.accelerator) is not None:
        rates = [
            f"{rate / 1e3:g} {unit}"
            for rate, unit in ((gpu.int8_gops, "INT8 TOPS"), (gpu.fp16_gops, "FP16 TFLOPS"))
            if rate
        ]
        rows.append(("accelerator", f"{gpu.name}; {', '.join(rates)} dense", gpu.source))
    if (share := device.efficiency) is not None:
        shares = (
            f"{share.bandwidth:.0%} of bandwidth, {share.masked:.0%} with masks, {share.arithmetic:.0%} of arithmetic"
        )
        rows.append(("believed to reach", shares, share.source))
        rows.append(("band of an estimate", f"±{share.error:.0%}", share.source))
    if device.error is not None:
        rows.append(("band of an estimate", f"±{device.error:.0%}", own["error"]))
    return rows


def _said(device: "Device", name: str) -> str:
    source = device.sources[name]
    kind = "estimate: " if source.kind == "estimate" and not source.title.startswith("estimate") else ""
    return f"{kind}{source.title}"


def _kernel_table(device: "Device") -> Any:
    from rich.table import Table

    table = Table(title="kernels, 10⁹ weights a second", title_justify="left")
    for heading in ("form", "run by", "stored", "one token", "prompt"):
        table.add_column(heading, justify="left" if heading in ("form", "run by") else "right")
    for rate in device.kernels:
        speeds = (f"{rate.decode_gweights_per_s:.1f}", f"{rate.prefill_gweights_per_s:.0f}")
        table.add_row(rate.form, rate.engine or "onnxruntime", f"{rate.density:.0%}", *speeds)
    return table


def print_estimate(estimate: Mapping[str, Any]) -> None:
    """Print one estimate, a figure and its band a line, marked as what it is."""
    from rich.table import Table

    title = f"ESTIMATED, not measured: {estimate['bundle']} on {estimate['device']}"
    table = Table(title=title, show_header=False, title_justify="left")
    for label, show in _ESTIMATE_ROWS:
        table.add_row(label, show(estimate))
    console = _console()
    console.print(table)
    for note in estimate["notes"]:
        console.print(f"note: {note}", highlight=False)


def _ranged(key: str, form: str, suffix: str = "") -> Callable[[Mapping[str, Any]], str]:
    return lambda v: f"{form} ({form} to {form})".format(v[key + suffix], v[f"{key}_low"], v[f"{key}_high"])


def _parts(values: Mapping[str, Any]) -> str:
    shares = [(name, ms) for name, ms in values["parts_ms"].items() if ms > 0]
    return ", ".join(f"{name} {ms:.2f} ms" for name, ms in shares)


def _fit(values: Mapping[str, Any]) -> str:
    verdict = "fits" if values["fits"] else "does NOT fit"
    return f"{values['peak_rss_bytes'] / 1e6:.0f} MB of {values['memory_available_bytes'] / 1e6:,.0f} MB: {verdict}"


_ESTIMATE_ROWS: tuple[_Row, ...] = (
    ("decode", _ranged("decode_tok_s", "{:,.0f}", "_p50")),
    ("prefill", _ranged("prefill_tok_s", "{:,.0f}", "_p50")),
    ("first token, ms", _ranged("ttft_ms", "{:,.0f}", "_p50")),
    ("load, s", _ranged("load_s", "{:.2f}")),
    ("memory", _fit),
    ("a decoded token", _parts),
    ("weights read for it", lambda v: f"{v['bytes_per_token'] / 1e6:.1f} MB"),
    ("prompt", lambda v: f"{v['prompt_tokens']} tokens, {v['prompt_flops'] / 1e9:.1f} GFLOP"),
    ("runs on", lambda v: f"{v['runs_on']}, {v['isa']}, {v['threads']} threads, {v['engine']}"),
    ("reckoned from", lambda v: str(v["basis"])),
)


def _console() -> Any:
    """Return a console that cuts no table when its output goes to a file."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=200)
