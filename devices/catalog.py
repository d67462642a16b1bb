"""Devices: what a TOML file says of one, read strictly. A file more in `devices/known` is a device more.

Every number of a file has a source: a name in its table [sources]. `[source]` gives it for the numbers at the top,
`source` inside a table for that table's. A source of kind "estimate" is a guess of ours and shown as one.

name = "raspberry-pi-5"
memory_bytes = 8589934592
[source]
memory_bytes = "brief"
[sources.brief]
title = "Raspberry Pi 5 product brief"
url = "https://…"
kind = "vendor"
"""

import tomllib
import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from edgeslim.errors import DeviceError, did_you_mean

KNOWN = Path(__file__).with_name("known")
CLASSES = ("cpu", "mobile", "jetson")
TRANSPORTS = ("local", "ssh", "adb", "none")
KINDS = ("datasheet", "vendor", "measured", "press", "estimate")
NATIVE = "native"
ENGINES = ("genai", "ort", NATIVE)

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where numbers come from. `kind`: a datasheet, the vendor's own page, a measurement, press, or our estimate."""

    title: str
    kind: str
    url: str | None = None

    def __post_init__(self) -> None:
        _choice("kind", self.kind, KINDS)


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Cores of one kind. `int8_ops_per_cycle`: 8-bit operations (a multiply-add is two) a core and cycle at best, from
    `ops_source` where that is another one."""

    name: str
    count: int
    source: str
    max_mhz: float | None = None
    int8_ops_per_cycle: float | None = None
    ops_source: str | None = None
    used: bool = True

    def __post_init__(self) -> None:
        _positive(self)


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """A GPU that an execution provider of onnxruntime uses; `int8_gops` and `fp16_gops` dense, without sparsity."""

    name: str
    provider: str
    source: str
    int8_gops: float | None = None
    fp16_gops: float | None = None
    memory_bytes: int | None = None

    def __post_init__(self) -> None:
        _positive(self)


@dataclass(frozen=True, kw_only=True)
class KernelRate:
    """One kernel as measured: products in `form` of which the share `density` is stored, all weights counted.

    `decode_gweights_per_s` at one token beyond the caches, `prefill_gweights_per_s` weights times tokens at a prompt.
    `engine` is "native" where the native runtime ran it by itself; None: onnxruntime did.
    """

    form: str
    density: float
    decode_gweights_per_s: float
    prefill_gweights_per_s: float
    source: str
    engine: str | None = None

    def __post_init__(self) -> None:
        if self.engine is not None:
            _choice("engine", self.engine, (NATIVE,))
        _positive(self)


@dataclass(frozen=True, kw_only=True)
class EngineCost:
    """An engine's own part of a decoded token: `step_us`, and `logit_ns` for each entry of the vocabulary."""

    engine: str
    step_us: float
    logit_ns: float
    source: str
    prefill_us: float = 0.0
    load_s: float = 0.0
    rss_bytes: int = 0

    def __post_init__(self) -> None:
        _choice("engine", self.engine, ENGINES)


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What operators other than the weights of products take, as measured or derived.

    An operator takes its `_us` once, and its work over its rate: attention and scans of one token by the bytes of state
    that they read, those of a prompt by FLOPs and by elements of state times tokens; convolutions by channels times
    tokens; other operators (`node_us`) by numbers written. `load_node_us` is what each operator adds to a load.
    """

    product_us: float
    product_prefill_us: float
    attention_us: float
    attention_gb_per_s: float
    attention_prefill_gflops: float
    scan_us: float
    scan_gb_per_s: float
    scan_prefill_gelements_per_s: float
    convolution_us: float
    convolution_gelements_per_s: float
    node_us: float
    node_gelements_per_s: float
    load_node_us: float
    source: str


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """How much of the peaks a device is believed to give where its kernels were not measured; shares in (0, 1].

    `bandwidth` and `masked` of `dram_gb_per_s` for products of one token, without and with a mask; `arithmetic` of the
    8-bit operations for a prompt. `error` is the half-width of the band around every speed: 0.5 means 1.5 times as slow
    or fast. With an accelerator these are the accelerator's, and `node_us` what a kernel launch takes.
    """

    bandwidth: float
    masked: float
    arithmetic: float
    node_us: float
    product_us: float
    step_us: float
    load_s: float
    error: float
    source: str

    def __post_init__(self) -> None:
        _positive(self)
        for name in ("bandwidth", "masked", "arithmetic"):
            if getattr(self, name) > 1:
                raise DeviceError(f"{name} must be in (0, 1], got {getattr(self, name):g}")


@dataclass(frozen=True, kw_only=True)
class Device:
    """One device, as its file describes it.

    `isa` is what kernels are chosen by (as `edgeslim.runtime.machine.isa` names it); `threads` what an engine would
    use; `dram_gb_per_s` the memory's peak, or where `source` says measured, what a loop reads; `reserved_bytes` the
    memory that the system and other programs keep; `int8_gops_measured` the 8-bit operations of dense products of a
    prompt, zeros counted. `costs` are those on onnxruntime, `native_costs` those of the native runtime by itself.
    `error` is the band of estimates made from measured kernels.
    """

    name: str
    title: str
    class_: str
    soc: str
    isa: str
    threads: int
    memory_bytes: int
    dram_gb_per_s: float
    reserved_bytes: int
    cores: tuple[Cluster, ...]
    providers: tuple[str, ...]
    transport: str
    source: Mapping[str, str]
    sources: Mapping[str, Source]
    cache_bytes: int | None = None
    int8_gops_measured: float | None = None
    accelerator: Accelerator | None = None
    efficiency: Efficiency | None = None
    kernels: tuple[KernelRate, ...] = ()
    costs: Costs | None = None
    native_costs: Costs | None = None
    engines: tuple[EngineCost, ...] = ()
    error: float | None = None
    note: str | None = None

    def __post_init__(self) -> None:
        _choice("class", self.class_, CLASSES)
        _choice("transport", self.transport, TRANSPORTS)
        _positive(self)
        if not self.cores:
            raise DeviceError("cores: expected at least one [[cores]] table")
        if self.efficiency is None and (not self.kernels or self.costs is None):
            raise DeviceError("expected [efficiency], or [[kernels]] with [costs]")
        _check_sources(self)

    @property
    def int8_gops(self) -> float | None:
        """8-bit operations of the cores that are used, in 10⁹ a second; None where a cluster's are unknown."""
        parts = [c.count * (c.max_mhz or 0) * (c.int8_ops_per_cycle or 0) for c in self.cores if c.used]
        return sum(parts) / 1e3 if parts and all(parts) else None

    @property
    def measured(self) -> bool:
        """Whether its kernels were measured on it."""
        return bool(self.kernels)

    def is_estimate(self, key: str) -> bool:
        """Return whether the number `key` at the top of the file is a guess of ours."""
        return self.sources[self.source[key]].kind == "estimate"

    def to_json(self) -> dict[str, Any]:
        """Return the device as a JSON object, which is also what its file holds."""
        return _plain(self)


def known_devices(folder: Path = KNOWN) -> list[str]:
    """Return the names of the devices that there are files for."""
    return sorted(file.stem for file in folder.glob("*.toml"))


def load_device(name: str, folder: Path = KNOWN) -> Device:
    """Return the device `name`, or that of the TOML file at the path `name`.

    Raises: DeviceError for a name that there is no file for (with the nearest), and for what a file may not hold.
    """
    if name.endswith(".toml"):
        return read_device(Path(name))
    file = folder / f"{name}.toml"
    if "/" in name or not file.is_file():
        raise DeviceError(f"unknown device {name!r}{did_you_mean(name, known_devices(folder))}")
    device = read_device(file)
    if device.name != name:
        raise DeviceError(f"{file}: name is {device.name!r}, expected the file's own name")
    return device


def read_device(file: Path) -> Device:
    """Return the device in the TOML `file`.

    Raises: DeviceError naming the file, the table and the key, with the nearest valid one.
    """
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DeviceError(f"{file}: no such device file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as fault:
        raise DeviceError(f"{file}: not TOML: {fault}") from None
    return _table(Device, table, str(file))


def _plain(value: Any) -> dict[str, Any]:
    """Return `value` as plain objects under the names of the file; what is None or empty is left out."""
    table: dict[str, Any] = {}
    for key, content in asdict(value).items():
        if content is None or content == () or content == {}:
            continue
        table["class" if key == "class_" else key] = _bare(content)
    return table


def _bare(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _bare(content) for key, content in value.items() if content is not None}
    return [_bare(item) for item in value] if isinstance(value, list | tuple) else value


def _table(cls: type[T], table: Mapping[str, Any], where: str) -> T:
    """Return `table` as the dataclass `cls`; `where` names its place in messages."""
    names = {_key(entry.name): entry for entry in fields(cls)}  # type: ignore[arg-type]
    for key in table:
        if key not in names:
            raise DeviceError(f"{where}: unknown key {key!r}{did_you_mean(key, names)}")
    hints = get_type_hints(cls)
    for key, entry in names.items():
        if key not in table and entry.default is MISSING and entry.default_factory is MISSING:
            raise DeviceError(f"{where}: key {key!r} is missing")
    values = {names[key].name: _value(hints[names[key].name], value, f"{where}: {key}") for key, value in table.items()}
    try:
        return cls(**values)
    except DeviceError as fault:
        raise DeviceError(f"{where}: {fault}") from None


def _key(name: str) -> str:
    return name.rstrip("_")


def _value(hint: Any, value: Any, where: str) -> Any:
    """Check `value` against a field's type `hint` and return it as that type."""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for option in options:
        if is_dataclass(option) and isinstance(value, dict):
            return _table(option, value, where)  # type: ignore[arg-type]
        if get_origin(option) is tuple and isinstance(value, list):
            item = get_args(option)[0]
            return tuple(_value(item, v, f"{where}[{number}]") for number, v in enumerate(value))
        if isinstance(value, dict) and get_origin(option) is not None and issubclass(get_origin(option), Mapping):
            item = get_args(option)[1]
            return {key: _value(item, v, f"{where}.{key}") for key, v in value.items()}
        if option is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if isinstance(option, type) and isinstance(value, option) and (option is bool) == isinstance(value, bool):
            return value
    expected = " or ".join(_type_name(option) for option in options if option is not type(None))
    raise DeviceError(f"{where}: expected {expected}, got {value!r}")


def _type_name(option: Any) -> str:
    if is_dataclass(option) or get_origin(option) is not None:
        return "a table" if get_origin(option) is not tuple else "a list"
    return str(option.__name__)


def _choice(name: str, value: str, choices: Iterable[str]) -> None:
    known = tuple(choices)
    if value not in known:
        raise DeviceError(f"{name} must be one of {', '.join(known)}, got {value!r}{did_you_mean(value, known)}")


def _positive(value: Any) -> None:
    for entry in fields(value):
        number = getattr(value, entry.name)
        least = 0 if entry.name in ("reserved_bytes",) else 1e-12
        if isinstance(number, int | float) and not isinstance(number, bool) and number < least:
            raise DeviceError(f"{_key(entry.name)} must be positive, got {number:g}")


def _check_sources(device: Device) -> None:
    """Raise DeviceError unless every number has a source that the file lists, and nothing else claims one."""
    numbers = {e.name for e in fields(device) if isinstance(getattr(device, e.name), int | float)}
    for key in sorted(numbers - set(device.source)):
        raise DeviceError(f"the number {key!r} has no source; add it to [source]")
    for key in device.source:
        if key not in numbers:
            raise DeviceError(f"source: no number {key!r}{did_you_mean(key, numbers)}")
    lists = (device.cores, device.kernels, device.engines)
    single = (device.accelerator, device.efficiency, device.costs, device.native_costs)
    tables = [*(table for tables in lists for table in tables), *single]
    used = [*device.source.values(), *(table.source for table in tables if table is not None)]
    used += [cluster.ops_source for cluster in device.cores if cluster.ops_source is not None]
    for name in used:
        if name not in device.sources:
            raise DeviceError(f"source {name!r} is not in [sources]{did_you_mean(name, device.sources)}")
    for name in device.sources:
        if name not in used:
            raise DeviceError(f"sources: {name!r} is the source of no number")
