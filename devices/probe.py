"""The file of the machine this runs on: what it is, what its memory and kernels give, what each operator takes.

Micro-runs of all operators take turns, pass after pass, so that a disturbance hits single figures of single passes; of
each the median over the passes counts. Engines are measured by `edgeslim.devices.micro_bundle` as `profile` measures
any bundle. No shape of any model is used, and no model is fitted.
"""

import re
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Literal

import psutil

from edgeslim.devices import micro_bundle
from edgeslim.devices.catalog import Cluster, Costs, Device, EngineCost, KernelRate, Source
from edgeslim.devices.micro_runs import Cost, MicroRuns, Timing, cost
from edgeslim.runtime import machine, native_library
from edgeslim.runtime.engines import import_engine, is_installed
from edgeslim.runtime.kernel_bench import read_bandwidth
from edgeslim.runtime.library import kernel_library
from edgeslim.runtime.profiler import profile_bundle

PROMPT = 128
SMALL, LARGE = (512, 1024), (2048, 4096)
"""Inputs and outputs of the products that are timed."""
WORKING_SET = 192
"""Megabytes of all matrices of one timing."""
_PROMPT_SET = 8
_FORMS = ("int8", "int4g64", "int3g64", "fp16", "fp32")
_DENSITIES = (0.3, 0.5, 0.7)
_STOCK = ("stock_fp32", "stock_int8", "stock_int4")
_VOCABULARIES = (4096, 65536)
OTHERS_LIMIT = 0.2
"""Cores that other programs may use during a micro-run before it is taken again. It lasts some tenths of a second."""
_TRIES = 3
_LEAST_ERROR, _MODEL_ERROR = 0.2, 0.15
_SYS_CPU = Path("/sys/devices/system/cpu")
_CPUINFO = Path("/proc/cpuinfo")
_SOURCE = "probe"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One micro-run by its name."""

    name: str
    run: Callable[[], Timing]


def probe_machine(
    *,
    name: str | None = None,
    threads: int | None = None,
    passes: int = 5,
    others_limit: float = OTHERS_LIMIT,
    after_pass: Callable[[int], None] = lambda number: None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Device:
    """Return the description of this machine, measured with `threads` threads (None: the physical cores).

    `after_pass` is called with the number of each pass that is done: what it measures takes turns with the probe.

    Raises: RuntimeUnavailable where onnxruntime is not installed.
    """
    count = threads or machine.default_threads()
    runs = MicroRuns(threads=count)
    cases, engines = list(_cases(runs)), list(_engines())
    total = len(cases) * passes + len(engines) * len(_VOCABULARIES) + 1
    taken: dict[str, list[Timing]] = {case.name: [] for case in cases}
    done = 0
    for number in range(passes):
        for case in cases:
            taken[case.name].append(_undisturbed(case, others_limit))
            done += 1
            on_progress(done, total)
        after_pass(number)
    timings = {key: _middle(found) for key, found in taken.items()}
    costs = _costs(timings, runs)
    measured = []
    for engine in engines:
        measured.append(_engine_cost(engine, count, costs))
        done += len(_VOCABULARIES)
        on_progress(done, total)
    bandwidth = _bandwidth(count)
    on_progress(total, total)
    return _device(name, count, passes, timings, costs, tuple(measured), bandwidth, _unsteadiness(taken))


def _cases(runs: MicroRuns) -> Iterator[Case]:
    """Yield the micro-runs of one pass."""

    def case(name: str, run: Callable[[], Timing]) -> Case:
        return Case(name=name, run=run)

    def product(form: str, density: float, tokens: int, shape: tuple[int, int], size: float) -> Callable[[], Timing]:
        return lambda: runs.product(form, density, tokens=tokens, k=shape[0], n=shape[1], megabytes=size)

    def stock(form: str, tokens: int, size: float) -> Callable[[], Timing]:
        return lambda: runs.stock_product(form, tokens=tokens, k=LARGE[0], n=LARGE[1], megabytes=size)

    for tokens in (1, PROMPT):
        size = WORKING_SET if tokens == 1 else _PROMPT_SET
        for form in _STOCK:
            yield case(f"{form} 1 {tokens}", stock(form, tokens, size))
        yield case(f"attention small {tokens}", lambda t=tokens: runs.attention(tokens=t, past=32 if t == 1 else 0))  # type: ignore[misc]
        yield case(f"attention large {tokens}", lambda t=tokens: runs.attention(tokens=t, past=512))  # type: ignore[misc]
        yield case(f"node small {tokens}", lambda t=tokens: runs.plain(tokens=t, width=64))  # type: ignore[misc]
        yield case(f"node large {tokens}", lambda t=tokens: runs.plain(tokens=t, width=4096))  # type: ignore[misc]
        if not runs.has_kernels:
            continue
        for values in _FORMS:
            yield case(f"dense_{values} 1 {tokens}", product(f"dense_{values}", 1.0, tokens, LARGE, size))
            for density in _DENSITIES:
                yield case(
                    f"bitmap_{values} {density} {tokens}", product(f"bitmap_{values}", density, tokens, LARGE, size)
                )
            yield case(f"nm2of4_{values} 0.5 {tokens}", product(f"nm2of4_{values}", 0.5, tokens, LARGE, size))
        yield case(f"product small {tokens}", product("bitmap_int4g64", 0.5, tokens, SMALL, size))
        yield case(f"scan small {tokens}", lambda t=tokens: runs.scan(tokens=t, state=16))  # type: ignore[misc]
        yield case(f"scan large {tokens}", lambda t=tokens: runs.scan(tokens=t, state=96))  # type: ignore[misc]
        yield case(f"convolution small {tokens}", lambda t=tokens: runs.convolution(tokens=t, channels=512))  # type: ignore[misc]
        yield case(f"convolution large {tokens}", lambda t=tokens: runs.convolution(tokens=t, channels=4096))  # type: ignore[misc]


def _undisturbed(case: Case, limit: float) -> Timing:
    """Return the timing of `case`, taken again up to twice where other programs used the machine meanwhile."""
    for _ in range(_TRIES):
        watch = machine.LoadWatch()
        timing = case.run()
        if watch.read().others <= limit:
            break
    return timing


def _middle(found: list[Timing]) -> Timing:
    """Return the timing whose seconds are the median; of an even number the faster of the middle two."""
    return sorted(found, key=lambda timing: timing.seconds)[(len(found) - 1) // 2]


def _unsteadiness(taken: dict[str, list[Timing]]) -> float:
    """Return by how much the passes differ: the median over the cases of (slowest - fastest) / median."""
    spreads = [
        (max(t.seconds for t in found) - min(t.seconds for t in found)) / _middle(found).seconds
        for found in taken.values()
    ]
    return statistics.median(spreads)


def _costs(timings: dict[str, Timing], runs: MicroRuns) -> Costs:
    def line(kind: str, tokens: int) -> Cost:
        return cost(timings[f"{kind} small {tokens}"], timings[f"{kind} large {tokens}"])

    attention, prefill = line("attention", 1), line("attention", PROMPT)
    node, node_prefill = line("node", 1), line("node", PROMPT)
    ours = runs.has_kernels
    scan, scan_prefill = (line("scan", 1), line("scan", PROMPT)) if ours else (attention, prefill)
    convolution = line("convolution", 1) if ours else node
    convolution_prefill = line("convolution", PROMPT) if ours else node_prefill
    load = (runs.load_seconds(nodes=200) - runs.load_seconds(nodes=8)) / 192
    return Costs(
        product_us=_us(_product_fixed(timings, 1) if ours else node.fixed),
        product_prefill_us=_us(_product_fixed(timings, PROMPT) if ours else node.fixed),
        attention_us=_us(attention.fixed),
        attention_gb_per_s=_giga(attention.rate),
        attention_prefill_gflops=_giga(prefill.rate),
        scan_us=_us(scan.fixed),
        scan_gb_per_s=_giga(scan.rate),
        scan_prefill_gelements_per_s=_giga(scan_prefill.rate),
        convolution_us=_us(convolution.fixed),
        convolution_gelements_per_s=_giga(convolution_prefill.rate),
        node_us=_us(node.fixed),
        node_gelements_per_s=_giga(node_prefill.rate),
        load_node_us=_us(max(load, 0.0)),
        source=_SOURCE,
    )


def _product_fixed(timings: dict[str, Timing], tokens: int) -> float:
    """Return the seconds that a product takes beside its weights."""
    return cost(timings[f"product small {tokens}"], timings[f"bitmap_int4g64 0.5 {tokens}"]).fixed


def _kernels(timings: dict[str, Timing], costs: Costs) -> tuple[KernelRate, ...]:
    """Return the rates of products, their fixed part taken off."""
    rates = []
    for name, timing in timings.items():
        form, density, tokens = name.split()
        if tokens != "1" or not re.fullmatch(r"[\d.]+", density):
            continue
        prompt = timings[f"{form} {density} {PROMPT}"]
        rates.append(
            KernelRate(
                form=form,
                density=float(density),
                decode_gweights_per_s=_rate(timing, costs.product_us),
                prefill_gweights_per_s=_rate(prompt, costs.product_prefill_us),
                source=_SOURCE,
            )
        )
    return tuple(sorted(rates, key=lambda rate: (rate.form, rate.density)))


def _rate(timing: Timing, fixed_us: float) -> float:
    return round(timing.work / max(timing.each - fixed_us * 1e-6, 0.2 * timing.each) / 1e9, 3)


def _us(seconds: float) -> float:
    return round(seconds * 1e6, 3)


def _giga(rate: float) -> float:
    return round(rate / 1e9, 4)


def _engines() -> Iterator[Literal["genai", "ort", "native"]]:
    for engine in ("genai", "ort"):
        if is_installed(engine):
            yield engine
    if native_library.is_available():
        yield "native"


def _engine_cost(engine: Literal["genai", "ort", "native"], threads: int, costs: Costs) -> EngineCost:
    """Return what `engine` takes for itself: profiles of the micro bundle with a small and a large vocabulary."""
    profiles = []
    for vocab_size in _VOCABULARIES:
        with tempfile.TemporaryDirectory(prefix="edgeslim-probe-") as folder:
            bundle = Path(folder)
            micro_bundle.write_micro_bundle(bundle, vocab_size)
            with redirect_stderr(StringIO()):  # that the machine is busy is said once, by the caller
                found = profile_bundle(
                    bundle, engine=engine, prompt_tokens=16, new_tokens=300, threads=threads, repeats=3
                )
            profiles.append(found)
    small, large = profiles
    logit = max(0.0, (large.decode_ms_p50 - small.decode_ms_p50) / (_VOCABULARIES[1] - _VOCABULARIES[0]))
    own = (costs.attention_us + costs.node_us * micro_bundle.NODES) / 1e3
    step = max(0.0, small.decode_ms_p50 - logit * _VOCABULARIES[0] - own)
    return EngineCost(
        engine=engine,
        step_us=round(step * 1e3, 2),
        logit_ns=round(logit * 1e6, 4),
        prefill_us=round(max(0.0, small.ttft_ms_p50 - small.decode_ms_p50) * 1e3, 1),
        load_s=round(small.load_s, 4),
        rss_bytes=small.base_rss_bytes,
        source=_SOURCE,
    )


def _bandwidth(threads: int) -> float | None:
    library = kernel_library()
    return None if library is None else read_bandwidth(library, threads)


def _device(
    name: str | None,
    threads: int,
    passes: int,
    timings: dict[str, Timing],
    costs: Costs,
    engines: tuple[EngineCost, ...],
    bandwidth: float | None,
    unsteadiness: float,
) -> Device:
    kernels = _kernels(timings, costs)
    memory = psutil.virtual_memory()
    library = kernel_library()
    stock = next(rate for rate in kernels if rate.form == "stock_fp32")
    dense = next((rate for rate in kernels if rate.form == "dense_int8"), None)
    cache = last_cache_bytes()
    numbers = {"threads", "memory_bytes", "dram_gb_per_s", "reserved_bytes", "error"}
    numbers |= ({"cache_bytes"} if cache else set()) | ({"int8_gops_measured"} if dense else set())
    return Device(
        name=name or _slug(machine.describe()),
        title=machine.describe(),
        class_="cpu",
        soc=machine.processor(),
        isa=library.chosen if library is not None else machine.isa(),
        threads=threads,
        memory_bytes=memory.total,
        dram_gb_per_s=round(bandwidth if bandwidth is not None else 4 * stock.decode_gweights_per_s, 1),
        reserved_bytes=memory.total - memory.available,
        cache_bytes=cache,
        int8_gops_measured=round(2 * dense.prefill_gweights_per_s, 1) if dense else None,
        cores=clusters(),
        providers=tuple(import_engine("ort").get_available_providers()),
        transport="local",
        kernels=kernels,
        costs=costs,
        engines=engines,
        error=round(max(_LEAST_ERROR, _MODEL_ERROR + unsteadiness / 2), 2),
        source=dict.fromkeys(sorted(numbers), _SOURCE),
        sources={
            _SOURCE: Source(title=f"edgeslim devices probe, {passes} passes, {threads} threads", kind="measured"),
        },
    )


def last_cache_bytes(sys_cpu: Path = _SYS_CPU) -> int | None:
    """Return the bytes of the last cache before memory that the first core sees; None where Linux does not say."""
    sizes = []
    for file in sys_cpu.glob("cpu0/cache/index*/size"):
        found = re.fullmatch(r"(\d+)([KM]?)", file.read_text(encoding="ascii").strip())
        if found:
            sizes.append(int(found[1]) << {"": 0, "K": 10, "M": 20}[found[2]])
    return max(sizes, default=None)


def clusters(sys_cpu: Path = _SYS_CPU, cpuinfo: Path = _CPUINFO) -> tuple[Cluster, ...]:
    """Return the cores this process may use, those of the same kind and highest clock rate together.

    A core's kind is what /proc/cpuinfo calls it: ``CPU part`` on Arm, else the processor's name.
    """
    parts = _parts(cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.is_file() else "")
    counts: dict[tuple[str, float | None], int] = {}
    for cpu in machine.usable_cpus():
        key = (parts.get(cpu, machine.processor()), _max_mhz(sys_cpu / f"cpu{cpu}"))
        counts[key] = counts.get(key, 0) + 1
    return tuple(
        Cluster(name=kind, count=count, max_mhz=mhz, source=_SOURCE)
        for (kind, mhz), count in sorted(counts.items(), key=lambda item: -(item[0][1] or 0))
    )


def _parts(cpuinfo: str) -> dict[int, str]:
    """Return the kind of each logical CPU in a /proc/cpuinfo text, where it says one."""
    kinds = {}
    for block in re.split(r"\n\s*\n", cpuinfo):
        number = re.search(r"^processor\s*:\s*(\d+)", block, re.MULTILINE)
        part = re.search(r"^CPU part\s*:\s*(0x[0-9a-f]+)", block, re.MULTILINE)
        named = re.search(r"^model name\s*:\s*(\S.*)$", block, re.MULTILINE)
        if number and (part or named):
            kinds[int(number[1])] = ARM_PARTS.get(part[1], f"Arm part {part[1]}") if part else str(named[1]).strip()  # type: ignore[index]
    return kinds


ARM_PARTS = {
    "0xd03": "Cortex-A53",
    "0xd05": "Cortex-A55",
    "0xd07": "Cortex-A57",
    "0xd08": "Cortex-A72",
    "0xd09": "Cortex-A73",
    "0xd0a": "Cortex-A75",
    "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse-N1",
    "0xd0d": "Cortex-A77",
    "0xd40": "Neoverse-V1",
    "0xd41": "Cortex-A78",
    "0xd42": "Cortex-A78AE",
    "0xd44": "Cortex-X1",
    "0xd46": "Cortex-A510",
    "0xd47": "Cortex-A710",
    "0xd48": "Cortex-X2",
    "0xd49": "Neoverse-N2",
    "0xd4d": "Cortex-A715",
    "0xd4e": "Cortex-X3",
    "0xd4f": "Neoverse-V2",
    "0xd80": "Cortex-A520",
    "0xd81": "Cortex-A720",
    "0xd82": "Cortex-X4",
    "0xd83": "Neoverse-V3AE",
    "0xd84": "Neoverse-V3",
    "0xd85": "Cortex-X925",
    "0xd87": "Cortex-A725",
}
"""Names of Arm's cores by ``CPU part``. Source: Linux, arch/arm64/include/asm/cputype.h."""


def _max_mhz(cpu: Path) -> float | None:
    try:
        return int((cpu / "cpufreq" / "cpuinfo_max_freq").read_text(encoding="ascii")) / 1e3
    except (OSError, ValueError):
        return None


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((?:r|tm)\)", "", text.lower())).strip("-")
