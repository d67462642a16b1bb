"""The file of the machine this runs on: what it is, what its memory and kernels give, what each operator takes.

Micro-runs of all operators take turns, pass after pass, so that a disturbance hits single figures of single passes; of
each the median over the passes counts, of means over its rounds, as the rate of a profile is a median of means.
Operators of ours are run twice: on onnxruntime, and by the native runtime alone. Engines are measured by
`edgeslim.devices.micro_bundle` as `profile` measures any bundle. No shape of any model is used, and no model is fitted.
"""

import re
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any, Literal, Protocol

import psutil

from edgeslim.devices import micro_bundle
from edgeslim.devices.catalog import NATIVE, Cluster, Costs, Device, EngineCost, KernelRate, Source
from edgeslim.devices.micro_runs import Cost, MicroRuns, Timing, cost
from edgeslim.devices.native_runs import ROWS, NativeRuns, write_nothing
from edgeslim.runtime import machine, native_library
from edgeslim.runtime.engines import import_engine, is_installed
from edgeslim.runtime.kernel_bench import read_bandwidth
from edgeslim.runtime.library import kernel_library
from edgeslim.runtime.profiler import Profile, profile_bundle

PROMPT = 128
SMALL, LARGE = (512, 1024), (2048, 4096)
"""Inputs and outputs of the products that are timed."""
WORKING_SET = 192
"""Megabytes of all matrices of one timing."""
_SETS = ((1, WORKING_SET), (PROMPT, 8))
"""Tokens of a micro-run, and the megabytes of its matrices: a prompt is bound by arithmetic."""
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


class Runs(Protocol):
    """What times operators of ours: on onnxruntime, or on the native runtime."""

    @property
    def has_kernels(self) -> bool:
        """Whether there are kernels of ours."""

    def product(self, form: str, density: float, *, tokens: int, k: int, n: int, megabytes: float) -> Timing:
        """Time products."""

    def attention(self, *, tokens: int, past: int) -> Timing:
        """Time attention."""

    def scan(self, *, tokens: int, state: int) -> Timing:
        """Time scans."""

    def convolution(self, *, tokens: int, channels: int) -> Timing:
        """Time convolutions."""

    def plain(self, *, tokens: int, width: int) -> Timing:
        """Time small operators."""

    def load_seconds(self, *, nodes: int) -> float:
        """Return the seconds of a load."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One micro-run by its name, on onnxruntime (None) or another engine."""

    engine: str | None
    name: str
    run: Callable[[], Timing]


Timings = Mapping[str, Timing]
"""Of one engine's cases, by their names."""


def probe_machine(
    *,
    name: str | None = None,
    threads: int | None = None,
    passes: int = 5,
    others_limit: float = OTHERS_LIMIT,
    after_case: Callable[[int, int], None] = lambda done, total: None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Device:
    """Return the description of this machine, measured with `threads` threads (None: the physical cores).

    `after_case` is called after each micro-run with how many are done of how many: what it measures takes turns with
    the probe.

    Raises: RuntimeUnavailable where onnxruntime is not installed.
    """
    count = threads or machine.default_threads()
    runs = MicroRuns(threads=count)
    alone = NativeRuns(threads=count) if NativeRuns.is_possible() else None
    cases, engines = _all_cases(runs, alone), list(_engines())
    micro_runs = len(cases) * passes
    total = micro_runs + len(engines) * len(_VOCABULARIES) + 1
    taken: dict[tuple[str | None, str], list[Timing]] = {(case.engine, case.name): [] for case in cases}
    done = 0
    for _ in range(passes):
        for case in cases:
            taken[case.engine, case.name].append(_undisturbed(case, others_limit))
            done += 1
            on_progress(done, total)
            after_case(done, micro_runs)
    timings, native = ({name: middle(found) for (e, name), found in taken.items() if e == of} for of in (None, NATIVE))
    costs = _costs(timings, runs)
    measured = []
    for engine in engines:
        measured.append(_engine_cost(engine, count, costs))
        done += len(_VOCABULARIES)
        on_progress(done, total)
    bandwidth = _bandwidth(count)
    on_progress(total, total)
    kernels, native_costs = _kernels(timings, costs, None), None
    if alone is not None:
        native_costs = _costs(native, alone)
        kernels += _kernels(native, native_costs, NATIVE)
    return _device(
        name or _slug(machine.describe()),
        title=f"edgeslim devices probe, {passes} passes, {count} threads",
        threads=count,
        kernels=kernels,
        costs=costs,
        native_costs=native_costs,
        engines=tuple(measured),
        bandwidth=bandwidth,
        error=error_of(taken.values()),
    )


def _all_cases(runs: MicroRuns, alone: NativeRuns | None) -> list[Case]:
    """Return the micro-runs of one pass; those of one operator on the two engines stand side by side."""
    named = {case.name: [case] for case in (*_stock_cases(runs), *_cases(runs, None))}
    for case in _cases(alone, NATIVE) if alone is not None else ():
        named.setdefault(case.name, []).append(case)
    return [case for cases in named.values() for case in cases]


def _stock_cases(runs: MicroRuns) -> Iterator[Case]:
    """Yield the micro-runs of onnxruntime's own products."""
    for tokens, size in _SETS:
        for form in _STOCK:
            run = partial(runs.stock_product, form, tokens=tokens, k=LARGE[0], n=LARGE[1], megabytes=size)
            yield Case(engine=None, name=f"{form} 1 {tokens}", run=run)


def _cases(runs: Runs, engine: str | None) -> Iterator[Case]:
    """Yield the micro-runs of operators that every engine has."""

    def case(name: str, run: Callable[..., Timing], *arguments: Any, **options: Any) -> Case:
        named = f"{name} {options['tokens']}"
        return Case(engine=engine, name=named, run=partial(run, *arguments, **options))

    for tokens, size in _SETS:
        yield case("attention small", runs.attention, tokens=tokens, past=32 if tokens == 1 else 0)
        yield case("attention large", runs.attention, tokens=tokens, past=512)
        yield case("node small", runs.plain, tokens=tokens, width=64)
        yield case("node large", runs.plain, tokens=tokens, width=4096)
        if not runs.has_kernels:
            continue
        large = {"tokens": tokens, "k": LARGE[0], "n": LARGE[1], "megabytes": size}
        for values in _FORMS:
            yield case(f"dense_{values} 1", runs.product, f"dense_{values}", 1.0, **large)
            for density in _DENSITIES:
                yield case(f"bitmap_{values} {density}", runs.product, f"bitmap_{values}", density, **large)
            yield case(f"nm2of4_{values} 0.5", runs.product, f"nm2of4_{values}", 0.5, **large)
        small = {"tokens": tokens, "k": SMALL[0], "n": SMALL[1], "megabytes": size}
        yield case("product small", runs.product, "bitmap_int4g64", 0.5, **small)
        yield case("scan small", runs.scan, tokens=tokens, state=16)
        yield case("scan large", runs.scan, tokens=tokens, state=96)
        yield case("convolution small", runs.convolution, tokens=tokens, channels=512)
        yield case("convolution large", runs.convolution, tokens=tokens, channels=4096)


def _undisturbed(case: Case, limit: float) -> Timing:
    """Return the timing of `case`, taken again up to twice where other programs used the machine meanwhile."""
    for _ in range(_TRIES):
        watch = machine.LoadWatch()
        timing = case.run()
        if watch.read().others <= limit:
            break
    return timing


def middle(found: Sequence[Timing]) -> Timing:
    """Return the timing whose seconds are the median; of an even number the faster of the middle two."""
    return sorted(found, key=lambda timing: timing.seconds)[(len(found) - 1) // 2]


def error_of(taken: Iterable[Sequence[Timing]]) -> float:
    """Return the half-width of the band around estimates: what their arithmetic leaves out, and half of what micro-runs
    vary by: their passes, (slowest - fastest) / median, or their rounds; the median over the micro-runs."""
    spreads = []
    for found in taken:
        between = (max(t.seconds for t in found) - min(t.seconds for t in found)) / middle(found).seconds
        spreads.append(max(between, middle(found).spread))
    return round(max(_LEAST_ERROR, _MODEL_ERROR + statistics.median(spreads) / 2), 2)


def _costs(timings: Timings, runs: Runs) -> Costs:
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


def _product_fixed(timings: Timings, tokens: int) -> float:
    """Return the seconds that a product takes beside its weights."""
    return cost(timings[f"product small {tokens}"], timings[f"bitmap_int4g64 0.5 {tokens}"]).fixed


def _kernels(timings: Timings, costs: Costs, engine: str | None) -> tuple[KernelRate, ...]:
    """Return the rates of products on `engine`, their fixed part taken off."""
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
                engine=engine,
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
    """Return what `engine` takes for itself: profiles of the micro bundle with a small and a large vocabulary; for the
    native runtime alone also of a bundle with nothing in it."""

    def profiled(write: Callable[[Path], None]) -> Profile:
        with tempfile.TemporaryDirectory(prefix="edgeslim-probe-") as folder:
            write(Path(folder))
            with redirect_stderr(StringIO()):  # that the machine is busy is said once, by the caller
                return profile_bundle(
                    Path(folder), engine=engine, prompt_tokens=16, new_tokens=300, threads=threads, repeats=3
                )

    small, large = (
        profiled(partial(micro_bundle.write_micro_bundle, vocab_size=vocab_size)) for vocab_size in _VOCABULARIES
    )
    logit = max(0.0, (large.decode_ms_p50 - small.decode_ms_p50) / (_VOCABULARIES[1] - _VOCABULARIES[0]))
    own, vocab_size = (costs.attention_us + costs.node_us * micro_bundle.NODES) / 1e3, _VOCABULARIES[0]
    if engine == NATIVE and NativeRuns.is_possible():  # without onnxruntime, which the micro bundle needs
        small, own, vocab_size = profiled(write_nothing), 0.0, ROWS
    step = max(0.0, small.decode_ms_p50 - logit * vocab_size - own)
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
    name: str,
    *,
    title: str,
    threads: int,
    kernels: tuple[KernelRate, ...],
    costs: Costs,
    native_costs: Costs | None,
    engines: tuple[EngineCost, ...],
    bandwidth: float | None,
    error: float,
) -> Device:
    memory = psutil.virtual_memory()
    library = kernel_library()
    stock = next(rate for rate in kernels if rate.form == "stock_fp32")
    dense = next((rate for rate in kernels if rate.form == "dense_int8"), None)
    cache = last_cache_bytes()
    numbers = {"threads", "memory_bytes", "dram_gb_per_s", "reserved_bytes", "error"}
    numbers |= ({"cache_bytes"} if cache else set()) | ({"int8_gops_measured"} if dense else set())
    return Device(
        name=name,
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
        native_costs=native_costs,
        engines=engines,
        error=error,
        source=dict.fromkeys(sorted(numbers), _SOURCE),
        sources={
            _SOURCE: Source(title=title, kind="measured"),
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
