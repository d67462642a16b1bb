"""How fast a bundle would be on a device that is not at hand: bytes over bandwidth, FLOPs over arithmetic, and what
each operator takes beside them, from the device's file alone.

A device whose kernels were measured (`edgeslim devices probe`) is estimated by them, the others by believed shares of
their peaks, which the band around every speed says. An estimate is a kind of its own: `measured` is false, its
keys are not a profile's, and nothing compares the two as one.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeslim.devices.catalog import NATIVE, Accelerator, Costs, Device, Efficiency, EngineCost, KernelRate
from edgeslim.devices.workload import Product, Workload, read_workload
from edgeslim.errors import RecipeError
from edgeslim.runtime.manifest import MANIFEST, Manifest
from edgeslim.runtime.memory import bundle_bytes, weight_bytes

KIND = "estimate"
_BASE_RSS = 90_000_000  # an interpreter with an engine loaded, where none was measured
_MEMORY_ERROR = 0.15
_SUFFIX = dict.fromkeys(("decode_tok_s", "prefill_tok_s", "ttft_ms"), "_p50")
_NAMES = {"memory_bytes": "peak_rss_bytes"}


@dataclass(frozen=True, kw_only=True)
class Band:
    """A figure and how far off it may be: `low` and `high` are believed to hold the truth."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a bundle is believed to do on a device; nothing was run.

    `decode` and `prefill` in tokens a second, `ttft_ms` and `load_s` (the file in the page cache) in their units.
    `parts_ms` says where a decoded token's time goes. `memory_bytes` is the peak, `fits` whether the device has it
    beside what its system keeps. `basis` names what speeds were taken from, `runs_on` the processor.
    """

    device: str
    bundle: str
    runs_on: str
    basis: str
    engine: str
    isa: str
    threads: int
    prompt_tokens: int
    new_tokens: int
    decode_tok_s: Band
    prefill_tok_s: Band
    ttft_ms: Band
    load_s: Band
    memory_bytes: int
    memory_available_bytes: int
    fits: bool
    weight_bytes: int
    bundle_bytes: int
    bytes_per_token: int
    prompt_flops: float
    parts_ms: Mapping[str, float]
    error: float
    kind: str = KIND
    measured: bool = False
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the estimate as a JSON object: `kind` and `measured` say what it is; a band NAME is the keys NAME,
        NAME_low and NAME_high, those that a profile measures under the profile's names."""
        values: dict[str, Any] = {}
        for key, value in asdict(self).items():
            if isinstance(value, dict) and set(value) == {"value", "low", "high"}:
                values |= {f"{key}{_SUFFIX.get(key, '')}": value["value"]}
                values |= {f"{key}_{end}": value[end] for end in ("low", "high")}
            else:
                values[_NAMES.get(key, key)] = value
        unknown = dict.fromkeys(("energy_j_per_token", "temperature_c"))
        return {"kind": KIND, "measured": False, **values, **unknown, "notes": list(self.notes)}


def estimate_bundle(
    bundle: Path,
    device: Device,
    *,
    prompt_tokens: int = 128,
    new_tokens: int = 64,
    engine: str = "auto",
) -> Estimate:
    """Return what `bundle` is believed to do on `device` with a prompt and the tokens decoded after it.

    Raises: BundleError where the bundle cannot be read; RecipeError for numbers that cannot be meant.
    """
    for name, value, least in (("prompt_tokens", prompt_tokens, 1), ("new_tokens", new_tokens, 2)):
        if value < least:
            raise RecipeError(f"{name} must be at least {least}, got {value}")
    work = read_workload(bundle)
    accelerator, notes = _accelerator(bundle, device)
    model = _model(device, accelerator, work, engine)
    seen = prompt_tokens + new_tokens / 2  # the cache's length at the middle of what is decoded
    parts = model.token_parts(work, round(seen))
    token, prompt = sum(parts.values()), model.prompt_seconds(work, prompt_tokens)
    held = weight_bytes(bundle)
    memory = model.rss_bytes + held + work.memory_bytes(prompt_tokens + new_tokens, prompt_tokens)
    available = (
        accelerator.memory_bytes
        if accelerator is not None and accelerator.memory_bytes
        else device.memory_bytes - device.reserved_bytes
    )
    return Estimate(
        device=device.name,
        bundle=str(bundle),
        runs_on=device.soc if accelerator is None else accelerator.name,
        basis=model.basis,
        engine=model.engine,
        isa=device.isa if accelerator is None else accelerator.provider,
        threads=device.threads,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        decode_tok_s=_band(1 / token, model.error),
        prefill_tok_s=_band(prompt_tokens / prompt, model.error),
        ttft_ms=_band(prompt * 1e3, model.error),
        load_s=_band(model.load_seconds(work), max(1.0, model.error)),
        memory_bytes=round(memory),
        memory_available_bytes=available,
        fits=memory * (1 + _MEMORY_ERROR) <= available,
        weight_bytes=held,
        bundle_bytes=bundle_bytes(bundle),
        bytes_per_token=work.product_bytes,
        prompt_flops=work.flops(prompt_tokens),
        parts_ms={name: round(seconds * 1e3, 6) for name, seconds in parts.items()},
        error=model.error,
        notes=(*notes, *model.notes(work)),
    )


class _Speeds:
    """How long a device takes for each part of a workload."""

    basis: str
    engine: str
    error: float
    rss_bytes: int

    def product_seconds(self, product: Product, tokens: int) -> float:
        """Return the seconds of one product of `tokens` tokens."""
        raise NotImplementedError

    def token_parts(self, work: Workload, seen: int) -> dict[str, float]:
        """Return the seconds of one decoded token by what they go into; its cache holds `seen` tokens."""
        raise NotImplementedError

    def prompt_seconds(self, work: Workload, tokens: int) -> float:
        """Return the seconds from a prompt to the logits after it."""
        raise NotImplementedError

    def load_seconds(self, work: Workload) -> float:
        """Return the seconds of a load from the page cache."""
        raise NotImplementedError

    def notes(self, work: Workload) -> Iterable[str]:
        """Yield what the user should know of the figures."""
        return ()


class _Measured(_Speeds):
    """Speeds of a device that was probed."""

    def __init__(self, device: Device, engine: EngineCost | None, costs: Costs, work: Workload) -> None:
        alone = engine is not None and engine.engine == NATIVE and _is_packed(work)  # onnxruntime is not in it then
        self._device, self._engine = device, engine
        self._costs = device.native_costs if alone and device.native_costs is not None else costs
        self._rates = _by_form(device.kernels, NATIVE if alone else None)
        self.engine = engine.engine if engine is not None else "ort"
        self.basis = f"kernels measured on the device: {device.sources[costs.source].title}"
        self.error = device.error or 0.25
        self.rss_bytes = engine.rss_bytes if engine is not None and engine.rss_bytes else _BASE_RSS

    def product_seconds(self, product: Product, tokens: int) -> float:
        rate = self._rate(product)
        if tokens == 1:
            return self._costs.product_us * 1e-6 + product.weights / (rate.decode_gweights_per_s * 1e9)
        count = 1 if product.last_only else tokens
        if count == 1:
            return self.product_seconds(product, 1)
        work = product.weights * count / (rate.prefill_gweights_per_s * 1e9)
        return self._costs.product_prefill_us * 1e-6 + max(work, product.weights / (rate.decode_gweights_per_s * 1e9))

    def _rate(self, product: Product) -> KernelRate:
        """Return the rate of `product`'s form at its density, else that of the form most like it, by its bytes."""
        if (found := self._rates.get(product.form)) is not None:
            return _at_density(found, product.density)
        likes = [form for form in self._rates if form.startswith("bitmap_" if product.is_masked else "dense_")]
        like = next((form for form in likes if form.endswith(product.form.rpartition("_")[2])), None)
        if like is not None:
            return _at_density(self._rates[like], product.density)
        bytes_a_weight = product.bytes / product.weights
        nearest = next(iter(self._rates.values()))[-1]
        return KernelRate(
            form=product.form,
            density=product.density,
            decode_gweights_per_s=0.7 * self._device.dram_gb_per_s / bytes_a_weight,
            prefill_gweights_per_s=nearest.prefill_gweights_per_s / 4,
            source=nearest.source,
        )

    def token_parts(self, work: Workload, seen: int) -> dict[str, float]:
        c = self._costs
        attention = sum(
            c.attention_us * 1e-6 + a.read_bytes(seen) / (c.attention_gb_per_s * 1e9) for a in work.attentions
        )
        scans = sum(c.scan_us * 1e-6 + 4 * elements / (c.scan_gb_per_s * 1e9) for elements in work.scans)
        convolutions = sum(
            c.convolution_us * 1e-6 + channels / (c.convolution_gelements_per_s * 1e9) for channels in work.convolutions
        )
        nodes = work.nodes * (c.node_us * 1e-6 + work.width / (c.node_gelements_per_s * 1e9))
        engine = self._engine_seconds(work)
        return {
            "products": sum(self.product_seconds(p, 1) for p in work.products),
            "attention": attention,
            "scans": scans + convolutions,
            "other operators": nodes,
            "engine": engine,
        }

    def _engine_seconds(self, work: Workload) -> float:
        if self._engine is None:
            return 0.0
        return self._engine.step_us * 1e-6 + self._engine.logit_ns * 1e-9 * work.vocab_size

    def prompt_seconds(self, work: Workload, tokens: int) -> float:
        c = self._costs
        products = sum(self.product_seconds(p, tokens) for p in work.products)
        attention = sum(
            c.attention_us * 1e-6 + a.prompt_flops(tokens) / (c.attention_prefill_gflops * 1e9) for a in work.attentions
        )
        scans = sum(
            c.scan_us * 1e-6 + elements * tokens / (c.scan_prefill_gelements_per_s * 1e9) for elements in work.scans
        )
        convolutions = sum(
            c.convolution_us * 1e-6 + channels * tokens / (c.convolution_gelements_per_s * 1e9)
            for channels in work.convolutions
        )
        nodes = work.nodes * (c.node_us * 1e-6 + work.width * tokens / (c.node_gelements_per_s * 1e9))
        engine = self._engine_seconds(work)
        if self._engine is not None:
            engine += self._engine.prefill_us * 1e-6
        return products + attention + scans + convolutions + nodes + engine

    def load_seconds(self, work: Workload) -> float:
        base = self._engine.load_s if self._engine is not None else 0.02
        return base + work.operators * self._costs.load_node_us * 1e-6

    def notes(self, work: Workload) -> Iterable[str]:
        unknown = sorted({p.form for p in work.products} - set(self._rates))
        if unknown:
            yield f"not measured on the device: {', '.join(unknown)}; taken from like forms or from its bandwidth"
        cache = self._device.cache_bytes
        if cache and work.product_bytes < cache:
            yield "the weights fit the caches: the device may be faster than memory, by which this is reckoned"


class _Believed(_Speeds):
    """Speeds of a device by shares of its peaks."""

    def __init__(self, device: Device, accelerator: Accelerator | None, efficiency: Efficiency, engine: str) -> None:
        self._device, self._gpu, self._share = device, accelerator, efficiency
        self.engine = "ort" if accelerator is not None else engine
        self.basis = f"shares of the device's peaks: {device.sources[efficiency.source].title}"
        self.error = efficiency.error
        self.rss_bytes = _BASE_RSS if accelerator is None else 4 * _BASE_RSS

    def product_seconds(self, product: Product, tokens: int) -> float:
        share = self._share.masked if product.is_masked else self._share.bandwidth
        reading = product.bytes / (share * self._device.dram_gb_per_s * 1e9)
        count = 1 if product.last_only else tokens
        arithmetic = 2.0 * product.weights * count / (self._share.arithmetic * self._gops(product) * 1e9)
        return self._share.product_us * 1e-6 + max(reading, arithmetic)

    def _gops(self, product: Product) -> float:
        """Return the peak of the operations that `product` is made of, in 10⁹ a second."""
        wide = product.form.endswith(("fp32", "fp16"))
        if self._gpu is not None:
            half = self._gpu.fp16_gops or 1000.0
            if product.form.endswith("fp32"):
                return half / 8
            return half if wide else self._gpu.int8_gops or half
        whole = self._device.int8_gops or 50.0 * self._device.threads
        return whole / 4 if wide else whole

    def token_parts(self, work: Workload, seen: int) -> dict[str, float]:
        bandwidth = self._share.bandwidth * self._device.dram_gb_per_s * 1e9
        node = self._share.node_us * 1e-6
        return {
            "products": sum(self.product_seconds(p, 1) for p in work.products),
            "attention": sum(node + a.read_bytes(seen) / bandwidth for a in work.attentions),
            "scans": sum(node + 12 * elements / bandwidth for elements in work.scans) + node * len(work.convolutions),
            "other operators": work.nodes * node,
            "engine": self._share.step_us * 1e-6,
        }

    def prompt_seconds(self, work: Workload, tokens: int) -> float:
        arithmetic = self._share.arithmetic * 1e9 * self._gops(_FLOATS)
        flops = sum(a.prompt_flops(tokens) for a in work.attentions) + sum(6.0 * s * tokens for s in work.scans)
        nodes = (work.operators - len(work.products)) * self._share.node_us * 1e-6
        width = 12.0 * work.nodes * work.width * tokens / (self._share.bandwidth * self._device.dram_gb_per_s * 1e9)
        products = sum(self.product_seconds(p, tokens) for p in work.products)
        return products + flops / arithmetic + nodes + width + self._share.step_us * 1e-6

    def load_seconds(self, work: Workload) -> float:
        return self._share.load_s

    def notes(self, work: Workload) -> Iterable[str]:
        yield "no kernel was measured on the device; `edgeslim devices probe` there gives a narrower band"


_FLOATS = Product(name="", form="stock_fp32", density=1.0, n=1, k=1, bytes=4)


def _model(device: Device, accelerator: Accelerator | None, work: Workload, engine: str) -> _Speeds:
    if accelerator is None and device.kernels and device.costs is not None:
        return _Measured(device, _engine_cost(device.engines, engine, work), device.costs, work)
    if device.efficiency is None:
        raise RecipeError(f"{device.name}: its file has no [efficiency], which a bundle for its accelerator needs")
    return _Believed(device, accelerator, device.efficiency, engine)


def _engine_cost(engines: tuple[EngineCost, ...], engine: str, work: Workload) -> EngineCost | None:
    """Return the costs of `engine`; auto is what `profile` would take: the native runtime where all products are packed
    for it, else onnxruntime-genai."""
    named = {cost.engine: cost for cost in engines}
    if engine != "auto":
        return named.get(engine)
    order = (NATIVE, "genai", "ort") if _is_packed(work) else ("genai", "ort", NATIVE)
    return next((named[name] for name in order if name in named), None)


def _is_packed(work: Workload) -> bool:
    """Return whether all products are packed for the native runtime, which then runs by itself."""
    return not any(product.form.startswith("stock_") for product in work.products)


def _accelerator(bundle: Path, device: Device) -> tuple[Accelerator | None, list[str]]:
    """Return the accelerator that runs `bundle` on `device`, and what to say where that is not what was meant."""
    asked = set(Manifest.read(bundle).providers) if (bundle / MANIFEST).is_file() else set()
    if device.accelerator is not None and asked & {device.accelerator.provider, *device.providers} - {_CPU}:
        return device.accelerator, []
    if device.accelerator is not None:
        return None, [f"the bundle runs on the CPU here; --lowering tensorrt would use the {device.accelerator.name}"]
    if asked - {_CPU}:
        return None, [f"made for {', '.join(sorted(asked))}, of which {device.name} has none: on its CPU"]
    return None, []


_CPU = "CPUExecutionProvider"


def _by_form(kernels: Iterable[KernelRate], engine: str | None) -> dict[str, list[KernelRate]]:
    """Return the rates on `engine` by form; those of forms that only another one ran are taken from there."""
    own: dict[str, list[KernelRate]] = {}
    others: dict[str, list[KernelRate]] = {}
    for rate in sorted(kernels, key=lambda rate: rate.density):
        (own if rate.engine == engine else others).setdefault(rate.form, []).append(rate)
    return others | own


def _at_density(rates: list[KernelRate], density: float) -> KernelRate:
    """Return the rate at `density`, between those measured; times, not speeds, are what runs straight between them."""
    at = [rate.density for rate in rates]
    decode = float(np.interp(density, at, [1 / rate.decode_gweights_per_s for rate in rates]))
    prefill = float(np.interp(density, at, [1 / rate.prefill_gweights_per_s for rate in rates]))
    return KernelRate(
        form=rates[0].form,
        density=density,
        decode_gweights_per_s=1 / decode,
        prefill_gweights_per_s=1 / prefill,
        source=rates[0].source,
    )


def _band(value: float, error: float) -> Band:
    return Band(value=value, low=value / (1 + error), high=value * (1 + error))
