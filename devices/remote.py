"""A profile of a bundle on another device: what travels, what runs there, what it says.

What travels is the bundle without its kernel libraries, edgeslim-bench, which has all kernels of its architecture
inside, and ONNX Runtime's library (`kit`). Nothing else is needed there but a POSIX shell, and no Python.
"""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeslim.devices.catalog import known_devices
from edgeslim.devices.delivery import Parcel, Store
from edgeslim.devices.kit import ARCHITECTURES, PROGRAM, Kit, find_kit
from edgeslim.devices.sensor_plan import find_sensors
from edgeslim.devices.sensors import Readings, read_sensors
from edgeslim.devices.snapshot import Snapshot
from edgeslim.devices.transports import FORMS, Transport, is_transport, open_transport
from edgeslim.devices.transports.process import Output
from edgeslim.devices.transports.shell import script
from edgeslim.errors import BundleError, DeviceError, RecipeError, did_you_mean
from edgeslim.progress import Progress, silent
from edgeslim.runtime.config import read_config, read_object
from edgeslim.runtime.manifest import MANIFEST
from edgeslim.runtime.memory import bundle_bytes
from edgeslim.runtime.profiler import Profile, check_room

ENGINES = ("auto", "native")
"""What a device other than this process may be asked to run: the native runtime, in edgeslim-bench."""

LIBRARY, RESULT = "libonnxruntime.so", "profile.json"

_DESCRIBE = """
echo "system=$(uname -s)"
echo "machine=$(uname -m)"
echo "abi=$(getprop ro.product.cpu.abi 2>/dev/null)"
echo "phone=$(getprop ro.product.manufacturer 2>/dev/null) $(getprop ro.product.model 2>/dev/null)"
echo "board=$(cat /proc/device-tree/model 2>/dev/null | tr -d '\\000')"
echo "bits=$(getconf LONG_BIT 2>/dev/null)"
echo "cache=${XDG_CACHE_HOME:-$HOME/.cache}"
"""
_RUN = 'umask 077; cd "$1" && shift && exec "$@" > ' + RESULT
_ALIASES = {"arm64": "aarch64", "amd64": "x86_64", "arm64-v8a": "aarch64"}
_FAILURES = (
    (
        r"(lib[\w.+-]+\.so[\w.]*): cannot open shared object|library \"(\S+?)\" not found",
        "its system lacks {0}, which ONNX Runtime needs; install it there",
    ),
    (
        r"version [`'](GLIBC\w*_[\d.]+)' not found",
        "its C library is older than {0}; `make cross ZIG_PYTHON=…` builds for any since glibc 2.28, see --bench-dir",
    ),
    (
        rf"exec format error|wrong ELF class|e_machine|{PROGRAM}: \d+: (?:Syntax error|.*not found)",
        "it runs no programs for {arch}, which it says it is; name a folder with others by --bench-dir",
    ),
)
"""What a run says → what it means, the first that fits."""
_STATUSES = {
    126: "may not be run there ({said}); is its folder mounted noexec?",
    127: "does not start there ({said}); was it built for another C library?",
    132: "met an instruction that the processor does not have",
    134: "aborted ({said})",
    137: "was killed; the device may have run out of memory",
    139: "ended by a segmentation fault",
}


@dataclass(frozen=True, kw_only=True)
class Platform:
    """What a device is. `cache` is its user's cache folder; `model` "" where the system does not name the machine."""

    arch: str
    android: bool
    model: str
    cache: str


def profile_on(
    spec: str,
    bundle: Path,
    *,
    bench_dir: str | Path | None = None,
    prompt_tokens: int = 128,
    new_tokens: int = 64,
    threads: int | None = None,
    engine: str = "auto",
    repeats: int = 5,
    warmup: int = 1,
    progress: Progress = silent,
) -> Profile:
    """Return the profile of `bundle` on the device `spec`, measured there by edgeslim-bench.

    `bench_dir` is a folder with that program and ONNX Runtime's library for the device; see `find_kit` for the default.
    Raises: DeviceError, one line, where the device, the copy or the run fails; BundleError, RecipeError.
    """
    if not is_transport(spec):
        raise DeviceError(_no_transport(spec))
    config = read_config(bundle)
    if engine not in ENGINES:
        raise RecipeError(f"engine must be auto or native on another device, which {PROGRAM} measures, got {engine!r}")
    check_room(config, prompt_tokens + new_tokens)
    threads = threads or config.session_options.get("intra_op_num_threads")
    options = [f"--prompt-tokens={prompt_tokens}", f"--new-tokens={new_tokens}", f"--repeats={repeats}"]
    options += [f"--warmup={warmup}", *([f"--threads={threads}"] if threads else [])]
    options = [part for option in options for part in option.split("=")]
    with open_transport(spec) as transport:
        platform = describe(transport)
        kit = find_kit(platform.arch, android=platform.android, folder=None if bench_dir is None else Path(bench_dir))
        snapshot = Snapshot.take(transport)
        plan = find_sensors(snapshot.names, snapshot.text)
        options += [part for path in plan.paths for part in ("--sample", path)]
        value = _measure(transport, platform, bundle, kit, options, progress)
    counted = [phase for phase in value.pop("phases", []) if phase["run"] >= 0]
    readings = read_sensors(plan, counted, value.pop("samples", []))
    measured = Profile.from_json({**value, **readings.profile_keys(repeats * (new_tokens - 1))})
    return replace(
        measured,
        device=_device_name(platform, measured.device),
        bundle_bytes=bundle_bytes(bundle),
        warnings=(*measured.warnings, *_warnings(bundle, readings)),
    )


def _no_transport(spec: str) -> str:
    """Return one line for a device that cannot be measured as it is named."""
    known = known_devices()
    if spec in known or spec.endswith(".toml"):
        return (
            f"device {spec!r} is a device file, no way to a device: add --estimate to reckon with it, or name {FORMS}"
        )
    near = did_you_mean(spec, known)
    if near.startswith("; did you mean") and "@" not in spec:
        return f"device {spec!r}: expected {FORMS}, or with --estimate a known device{near}"
    if re.fullmatch(r"[\w.@-]+(:\d+)?", spec):
        return f"device {spec!r}: expected {FORMS}; did you mean 'ssh://{spec}'?"
    return f"device {spec!r}: expected {FORMS}, or with --estimate a known device (`edgeslim devices list`)"


def describe(transport: Transport) -> Platform:
    """Return what the device says of itself.

    Raises: DeviceError where it runs no Linux or Android, or is of an architecture that there are no kernels for.
    """
    done = transport.run(script(_DESCRIBE))
    facts = dict(re.findall(r"^(\w+)=(.*?)\s*$", done.text, re.MULTILINE))
    if facts.get("system") != "Linux":
        found = facts.get("system") or done.last_line
        raise DeviceError(f"{transport.name}: expected a Linux or Android device with a POSIX shell, found {found}")
    machine = facts.get("abi") or facts.get("machine", "")
    arch = _ALIASES.get(machine, machine)
    if arch not in ARCHITECTURES or facts.get("bits") == "32":
        bits = "a 32-bit system on " if facts.get("bits") == "32" else ""
        raise DeviceError(
            f"{transport.name}: {bits}{machine}, for which there are no kernels; expected {' or '.join(ARCHITECTURES)}"
        )
    model = facts.get("phone", "").strip() or facts.get("board", "")
    return Platform(arch=arch, android=bool(facts.get("abi")), model=model, cache=facts.get("cache", ""))


def parcels_of(bundle: Path, kit: Kit, progress: Progress = silent) -> tuple[list[Parcel], Parcel]:
    """Return what a run needs, and the program among it.

    Raises: BundleError where the bundle has no files.
    """
    libraries = set(read_object(bundle / MANIFEST).get("libraries", {}).values())
    files = {path.relative_to(bundle).as_posix(): path for path in sorted(bundle.rglob("*")) if path.is_file()}
    if not files:
        raise BundleError(f"{bundle}: not a bundle: it has no files")
    sources = {f"bundle/{name}": path for name, path in files.items() if name not in libraries}
    sources[PROGRAM] = kit.program
    if kit.onnxruntime is not None:
        sources[LIBRARY] = kit.onnxruntime
    total, hashed = sum(path.stat().st_size for path in sources.values()), 0

    def count(size: int) -> None:
        nonlocal hashed
        hashed += size
        progress(hashed // 1000, total // 1000, "hashing, kB")

    parcels = [Parcel.of(path, name, count) for name, path in sources.items()]
    return parcels, next(parcel for parcel in parcels if parcel.name == PROGRAM)


def _measure(
    transport: Transport, platform: Platform, bundle: Path, kit: Kit, options: Sequence[str], progress: Progress
) -> dict[str, Any]:
    """Return what edgeslim-bench printed on the device."""
    parcels, program = parcels_of(bundle, kit, progress)
    store = Store(transport, transport.folder or f"{platform.cache}/edgeslim")
    store.deliver(parcels, hasher=program, progress=progress)
    with store.run_folder(parcels) as folder:
        argv = [f"./{PROGRAM}", "bundle", *([] if kit.onnxruntime is None else ["--ort", f"./{LIBRARY}"]), *options]
        done = transport.run(script(_RUN, folder, *argv), timeout=None, on_text=_RunReader(progress, transport.name))
        if done.status != 0:
            damaged = store.remove_damaged(parcels, f"{folder}/{PROGRAM}")
            raise DeviceError(f"{transport.name}: {_failure(done, damaged, platform, kit)}")
        printed = transport.read(f"{folder}/{RESULT}").decode(errors="replace")
    try:
        return dict(json.loads(printed))
    except ValueError:
        raise DeviceError(f"{transport.name}: {PROGRAM} printed no profile: {printed[:80]!r}") from None


class _RunReader:
    """Reads how many runs are done from what edgeslim-bench says on the way."""

    def __init__(self, progress: Progress, name: str) -> None:
        self._progress, self._name, self._text = progress, name, ""

    def __call__(self, text: str) -> None:
        self._text = (self._text + text)[-200:]
        found = re.findall(r"run (\d+) of (\d+)(?=\s|$)", self._text)
        if found:
            self._progress(int(found[-1][0]), int(found[-1][1]), f"profiling on {self._name}")


def _failure(done: Output, damaged: Sequence[str], platform: Platform, kit: Kit) -> str:
    """Return what a run that failed means, without the device's name."""
    said, status = done.last_line, done.status if done.status >= 0 else 128 - done.status
    if damaged:
        return f"{', '.join(damaged)} had been damaged there and is removed; run it again"
    if kit.missing and "ONNX Runtime" in done.text:
        return f"the bundle needs ONNX Runtime: {kit.missing}"
    for pattern, meaning in _FAILURES:
        if found := re.search(pattern, done.text, re.IGNORECASE):
            return meaning.format(*(group for group in found.groups() if group), said=said, arch=platform.arch)
    if status in _STATUSES:
        return f"{PROGRAM} {_STATUSES[status]}".format(said=said)
    return said.removeprefix("error: ")


def _device_name(platform: Platform, measured: str) -> str:
    """Return e.g. ``Google Pixel 9, 8 cores``: the name that the system has for the machine, before the processor's."""
    return f"{platform.model}, {measured.rpartition(', ')[2]}" if platform.model else measured


def _warnings(bundle: Path, readings: Readings) -> list[str]:
    """Return what a reader of the profile should know; each is said on stderr too."""
    warnings = []
    if readings.throttling not in (None, "none"):
        warnings.append(f"throttled: {readings.throttling}")
    providers = [name for name in read_config(bundle).providers if not name.startswith("CPU")]
    if providers:
        warnings.append(f"{PROGRAM} runs on the CPU alone; the bundle prefers {', '.join(providers)}")
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return warnings
