"""How fast each kernel variant is on this machine, beside the bandwidth that its memory gives.

Matrices are random bytes in a valid layout: no kernel's time depends on the values. Every thread works on a matrix of
its own; together they are too large for the caches. A figure is the best of several rounds: other load on the machine
can only make it smaller.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeslim.errors import RecipeError, RuntimeUnavailable, did_you_mean
from edgeslim.runtime import machine
from edgeslim.runtime.costs import Table, write_costs
from edgeslim.runtime.library import KernelLibrary, kernel_library

DENSITIES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
PROMPT = 128
"""Tokens of the case that stands for prompts."""

_FORMS: dict[str, dict[str, Any]] = {
    "int8": {"bits": 8},
    "int4g64": {"bits": 4, "group": 64},
    "int3g64": {"bits": 3, "group": 64},
    "fp16": {"bits": 16},
    "fp32": {"bits": 32},
}
_NM = {"nm1of4": (1, 4), "nm2of4": (2, 4), "nm3of4": (3, 4), "nm1of2": (1, 2)}
_INPUTS = 2048
_TILE, _SLACK = 16, 64
_READ_BYTES = 256 << 20
_REPEATS = 6  # products for each call, which checks the matrix first


@dataclass(frozen=True, kw_only=True)
class KernelSpeed:
    """One case: `tokens` of activations times one matrix of `form` whose share `density` of weights is stored.

    `gweights_per_s` counts all weights, stored or not, for each token; `gb_per_s` the matrix' bytes;
    `of_bandwidth` is that over the measured read bandwidth, which for one token is the bound.
    """

    isa: str
    form: str
    density: float
    tokens: int
    threads: int
    gweights_per_s: float
    gb_per_s: float
    of_bandwidth: float


@dataclass(frozen=True, kw_only=True)
class KernelReport:
    """The speeds of one run, the read bandwidth in GB/s beside which they stand, the machine, and where the costs that
    `auto` decides by were written."""

    machine: str
    read_gb_per_s: float
    speeds: tuple[KernelSpeed, ...]
    costs: str | None
    warnings: tuple[str, ...] = ()


def bench_kernels(
    *,
    isas: Sequence[str] | None = None,
    threads: int | None = None,
    megabytes: int = 256,
    rounds: int = 5,
    refresh: bool = True,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> KernelReport:
    """Measure every form at several densities, for one token and for a prompt, on `isas` (None: the one in use).

    `megabytes` is what a dense int8 matrix would take. With `refresh` the costs of the variant in use are written where
    `auto` finds them.

    Raises: RuntimeUnavailable without a kernel library; RecipeError for a variant that this processor does not run.
    """
    library = kernel_library()
    if library is None:
        raise RuntimeUnavailable("this installation has no kernel library; install it where a C++ compiler is")
    chosen = list(isas or [library.chosen])
    for isa in chosen:
        if isa not in library.isas:
            raise RecipeError(f"isa {isa!r} does not run here{did_you_mean(isa, library.isas)}")
    count = threads or machine.default_threads()
    busy = machine.busy_warning(machine.probe_load(), "before the run")
    bandwidth = read_bandwidth(library, count)
    cases = [(isa, *case) for isa in chosen for case in _cases()]
    speeds = []
    for done, (isa, form, density, tokens) in enumerate(cases):
        speeds.append(_measure(library, isa, form, density, tokens, count, megabytes, rounds, bandwidth))
        on_progress(done + 1, len(cases))
    costs = None
    if refresh and library.chosen in chosen:
        costs = str(write_costs(library.chosen, machine.describe(), cost_table(speeds, library.chosen)))
    return KernelReport(
        machine=machine.describe(),
        read_gb_per_s=round(bandwidth, 1),
        speeds=tuple(speeds),
        costs=costs,
        warnings=(busy,) if busy else (),
    )


def read_bandwidth(library: KernelLibrary, threads: int) -> float:
    """Return how many GB/s `threads` threads read from memory, the best of five rounds."""
    tasks = [partial(library.read, part) for part in np.array_split(np.ones(_READ_BYTES, np.uint8), threads)]
    return max(_READ_BYTES / _together(tasks) for _ in range(5)) / 1e9


def cost_table(speeds: Sequence[KernelSpeed], isa: str) -> Table:
    """Return form → density → Gweights/s of one token on `isa`."""
    table: dict[str, dict[str, float]] = {}
    for speed in speeds:
        if speed.isa == isa and speed.tokens == 1:
            table.setdefault(speed.form, {})[f"{speed.density:g}"] = round(speed.gweights_per_s, 1)
    return table


def _cases() -> Iterator[tuple[str, float, int]]:
    for tokens in (1, PROMPT):
        for values in _FORMS:
            yield f"dense_{values}", 1.0, tokens
            for density in DENSITIES:
                yield f"bitmap_{values}", density, tokens
            for pattern, (n, m) in _NM.items():
                yield f"{pattern}_{values}", n / m, tokens


def _measure(
    library: KernelLibrary,
    isa: str,
    form: str,
    density: float,
    tokens: int,
    threads: int,
    megabytes: int,
    rounds: int,
    bandwidth: float,
) -> KernelSpeed:
    n = max(_TILE, megabytes * 1_000_000 // threads // _INPUTS // _TILE * _TILE)
    n = n if tokens == 1 else max(_TILE, n // 16 // _TILE * _TILE)  # a prompt's product is bound by arithmetic
    matrices = [random_matrix(form, n, _INPUTS, density, seed) for seed in range(threads)]
    x = np.random.default_rng(0).standard_normal((tokens, _INPUTS)).astype(np.float32)

    repeats = _REPEATS if tokens == 1 else 1
    tasks = [partial(library.linear, *matrix, x, isa=isa, repeats=repeats) for matrix in matrices]
    best = min(_together(tasks) for _ in range(rounds)) / repeats
    weights, size = n * _INPUTS * threads, sum(a.nbytes for _, tensors in matrices for a in tensors.values())
    return KernelSpeed(
        isa=isa,
        form=form,
        density=density,
        tokens=tokens,
        threads=threads,
        gweights_per_s=round(weights * tokens / best / 1e9, 2),
        gb_per_s=round(size / best / 1e9, 2),
        of_bandwidth=round(size / best / 1e9 / bandwidth, 3),
    )


def random_matrix(
    form: str, n: int, k: int, density: float, seed: int
) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """Return attributes and tensors of a random valid matrix [n, k]; n a multiple of 16, k of 64."""
    layout, _, kind = form.partition("_")
    rng, positions = np.random.default_rng(seed), n * k // 64
    attributes: dict[str, Any] = {"layout": layout, "n": n, "k": k, **_FORMS[kind]}
    tensors: dict[str, npt.NDArray[Any]] = {}
    if layout == "bitmap":
        kept = rng.random((positions, 64), np.float32) < density
    elif layout != "dense":
        attributes |= {"layout": "nm", **dict(zip(("pattern_n", "pattern_m"), _NM[layout], strict=True))}
        kept = _nm_masks(positions, _NM[layout], by_input=attributes["bits"] > 8)
    else:
        kept = np.ones((positions, 64), bool)
    sizes = -(-kept.sum(axis=1) * attributes["bits"] // 8)
    if layout != "dense":
        tensors["masks"] = np.packbits(kept, axis=-1, bitorder="little")
    if attributes["layout"] == "bitmap":
        tensors["offsets"] = np.concatenate([[0], np.cumsum(sizes.reshape(n // _TILE, -1).sum(axis=1))]).astype(
            np.int64
        )
    values = rng.integers(0, 256, int(sizes.sum()) + _SLACK, np.uint8)
    if attributes["bits"] > 8:
        values &= 0x3B  # small finite floats: no kernel is slowed by what it would not meet
    tensors["values"] = values
    if attributes["bits"] <= 8:
        group = attributes.get("group", 0)
        tensors["scales"] = np.ones(
            (n // _TILE, k // group if group else 1, _TILE), np.float16 if group else np.float32
        )
    return attributes, tensors


def _nm_masks(positions: int, pattern: tuple[int, int], *, by_input: bool) -> npt.NDArray[np.bool_]:
    n, m = pattern
    row = np.arange(4) % m < n
    step = np.repeat(row, 16) if by_input else np.tile(row, 16)
    return np.tile(step, (positions, 1))


def _together(tasks: Sequence[Callable[[], object]]) -> float:
    """Return the seconds that `tasks` take, each in a thread of its own, from the moment that all are ready."""
    barrier = threading.Barrier(len(tasks) + 1)

    def run(task: Callable[[], object]) -> None:
        barrier.wait()
        task()

    threads = [threading.Thread(target=run, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    barrier.wait()
    begin = time.perf_counter()
    for thread in threads:
        thread.join()
    return time.perf_counter() - begin
