"""Packed matrices: packers that lose nothing, kernels against dense products, variants that agree, hostile tensors."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeslim.errors import EdgeslimError
from edgeslim.exporters.packed import NM_PATTERNS, Form, Packed, pack, packed_bytes, rounded, unpack
from edgeslim.runtime.library import KernelLibrary

F32 = npt.NDArray[np.float32]
Tensors = dict[str, npt.NDArray[Any] | None]

LAYOUTS: list[tuple[Any, tuple[int, int] | None]] = [
    ("dense", None),
    ("bitmap", None),
    *(("nm", pattern) for pattern in NM_PATTERNS),
]
FORMS = [
    Form(layout=layout, bits=bits, group=group, pattern=pattern)
    for layout, pattern in LAYOUTS
    for bits, groups in ((3, (0, 4, 64)), (4, (0, 4, 32, 64)), (8, (0, 4, 32, 64)), (16, (0,)), (32, (0,)))
    for group in groups
]
# Sums of k products in float32, in another order than numpy's: 1e-5 of the sum of their magnitudes holds for k < 1000.
FLOAT_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Case:
    """A matrix, its packed form, and what the library is given of it."""

    weight: F32
    packed: Packed

    @property
    def attributes(self) -> dict[str, Any]:
        return self.packed.form.attributes(self.packed.n, self.packed.k)

    @property
    def tensors(self) -> Tensors:
        names = ("values", "scales", "masks", "offsets")
        return {name: getattr(self.packed, name) for name in names}


def _weight(form: Form, n: int, k: int, density: float, seed: int) -> F32:
    """Return a random [n, k] that the form can hold, of about that density."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((n, k)).astype(np.float32)
    keep = rng.random((n, k)) < density
    if form.pattern:
        n_kept, m = form.pattern
        keep &= (rng.random((n, k // m, m)).argsort(axis=-1) < n_kept).reshape(n, k)
    return np.where(keep | (form.layout == "dense"), weight, 0).astype(np.float32)


def _case(form: Form, n: int = 33, k: int = 100, density: float = 0.5, seed: int = 0) -> Case:
    weight = _weight(form, n, k, density, seed)
    return Case(weight, pack(weight, form))


@st.composite
def _cases(draw: st.DrawFn) -> Case:
    form = draw(st.sampled_from(FORMS))
    k = draw(st.integers(1, 80))
    if form.pattern:
        k = -(-k // form.pattern[1]) * form.pattern[1]
    density = draw(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
    return _case(form, draw(st.integers(1, 40)), k, density, draw(st.integers(0, 2**16)))


def _name(form: Form) -> str:
    pattern = "" if form.pattern is None else f"{form.pattern[0]}of{form.pattern[1]}"
    return f"{form.layout}{pattern}-{form.bits}" + (f"g{form.group}" if form.group else "")


every_form = pytest.mark.parametrize("form", FORMS, ids=_name)


@settings(deadline=None, max_examples=300)
@given(case=_cases())
def test_unpacking_gives_the_rounded_weights_exactly(case: Case) -> None:
    np.testing.assert_array_equal(unpack(case.packed), rounded(case.weight, case.packed.form))


@settings(deadline=None, max_examples=100)
@given(case=_cases())
def test_packing_what_was_unpacked_changes_no_byte(case: Case) -> None:
    form = case.packed.form
    if form.is_integer and (form.group or form.bits < 8):
        return  # scales are derived anew: half precision rounds them, and a row may have lost its largest entry's sign
    again = pack(unpack(case.packed), form)
    if form.layout == "nm":  # where to fill a group up is the packer's choice, and it saw fewer zeros before
        np.testing.assert_array_equal(unpack(again), unpack(case.packed))
        return
    np.testing.assert_array_equal(again.values, case.packed.values)


@every_form
def test_predicted_bytes_are_near_those_packed(form: Form) -> None:
    case = _case(form, n=256, k=256)
    density = np.count_nonzero(unpack(case.packed)) / case.weight.size

    # What a step leaves unused of its last byte is a mean; 64 bytes of slack, and offsets, are not counted.
    fixed = 64 + (0 if case.packed.offsets is None else case.packed.offsets.nbytes)
    assert packed_bytes(256, 256, form, density) == pytest.approx(case.packed.nbytes - fixed, rel=0.01)


@settings(deadline=None, max_examples=200)
@given(case=_cases())
def test_the_library_accepts_what_was_packed_and_gathers_its_rows(library: KernelLibrary, case: Case) -> None:
    library.check(case.attributes, case.tensors)
    ids = np.arange(case.packed.n, dtype=np.int64)[::-1].copy()

    np.testing.assert_array_equal(library.gather(case.attributes, case.tensors, ids), unpack(case.packed)[::-1])


def _operands(case: Case, tokens: int, seed: int = 1) -> tuple[F32, dict[str, F32]]:
    rng = np.random.default_rng(seed)
    n, k = case.weight.shape
    shapes = {"x": (tokens, k), "gate": (tokens, k), "norm": (k,), "bias": (n,), "residual": (tokens, n)}
    made = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return made.pop("x"), made


def _prologue(x: F32, operands: Mapping[str, F32], epsilon: float) -> npt.NDArray[np.float64]:
    gate = operands["gate"].astype(np.float64)
    t = x.astype(np.float64) * gate / (1 + np.exp(-gate))
    return np.asarray(t / np.sqrt((t**2).mean(axis=1, keepdims=True) + epsilon) * operands["norm"])


@every_form
@pytest.mark.parametrize("tokens", [1, 5])
def test_products_are_those_of_the_dense_matrix(library: KernelLibrary, form: Form, tokens: int) -> None:
    case, epsilon = _case(form), 1e-5
    weight = unpack(case.packed).astype(np.float64)
    x, operands = _operands(case, tokens)
    t = _prologue(x, operands, epsilon)
    expected = t @ weight.T + operands["bias"] + operands["residual"]
    magnitudes = np.abs(t) @ np.abs(weight.T) + 1
    half_a_step = np.abs(t).max(axis=1, keepdims=True) / 127 / 2 * np.abs(weight).sum(axis=1)

    exact = library.linear(case.attributes, case.tensors, x, activations="float", epsilon=epsilon, **operands)
    assert (np.abs(exact - expected) <= FLOAT_TOLERANCE * magnitudes).all()
    coarse = library.linear(case.attributes, case.tensors, x, epsilon=epsilon, **operands)
    rounding = half_a_step * 1.001 if form.is_integer else 0
    assert (np.abs(coarse - expected) <= rounding + FLOAT_TOLERANCE * magnitudes).all()


def test_integer_products_are_exact(library: KernelLibrary) -> None:
    case = _case(Form(layout="bitmap", bits=8), n=20, k=512)
    assert case.packed.scales is not None
    x = np.random.default_rng(2).integers(-127, 128, (3, 512)).astype(np.float32)
    x[:, 0] = 127  # a scale of one: activations are stored as they are
    scales = case.packed.scales.reshape(-1)[:20]
    codes = np.rint(unpack(case.packed) / scales[:, None]).astype(np.int64)

    y = library.linear(case.attributes, case.tensors, x)

    np.testing.assert_array_equal(y, (x.astype(np.int64) @ codes.T).astype(np.float32) * scales)


@settings(deadline=None, max_examples=150)
@given(case=_cases(), tokens=st.sampled_from([1, 2, 3, 4, 5, 13]), single=st.booleans(), threads=st.integers(1, 2))
def test_every_variant_gives_the_bits_of_the_scalar_one(
    library: KernelLibrary, case: Case, tokens: int, single: bool, threads: int
) -> None:
    x, operands = _operands(case, tokens)
    keywords = {"activations": "float" if single else "int8", "epsilon": 1e-6, **operands}
    expected = library.linear(case.attributes, case.tensors, x, isa="scalar", **keywords)

    for isa in library.isas:
        y = library.linear(case.attributes, case.tensors, x, isa=isa, threads=threads, **keywords)
        np.testing.assert_array_equal(y.view(np.int32), expected.view(np.int32), err_msg=isa)


def test_a_token_with_nan_gives_nan_and_leaves_the_others_alone(library: KernelLibrary) -> None:
    case = _case(Form(layout="bitmap", bits=8))
    x, _ = _operands(case, 3)
    clean = library.linear(case.attributes, case.tensors, x)
    x[1, 7] = np.nan

    y = library.linear(case.attributes, case.tensors, x)

    assert np.isnan(y[1]).all()
    np.testing.assert_array_equal(y[[0, 2]], clean[[0, 2]])


def _refused(library: KernelLibrary, attributes: Mapping[str, Any], tensors: Tensors, says: str) -> None:
    """Every entry of the library refuses the matrix and names the fault."""
    with pytest.raises(EdgeslimError, match=says):
        library.check(attributes, tensors)
    if attributes["n"] in range(1000) and attributes["k"] in range(1000):  # their outputs are allocated before
        with pytest.raises(EdgeslimError, match=says):
            library.linear(attributes, tensors, np.zeros((1, attributes["k"]), np.float32))
        with pytest.raises(EdgeslimError, match=says):
            library.gather(attributes, tensors, np.zeros(1, np.int64))


BITMAP, PATTERN = Form(layout="bitmap", bits=8), Form(layout="nm", bits=4, group=32, pattern=(2, 4))
HUGE = [-1, 0, 2**31, 2**62, 2**63 - 1, -(2**63)]


@pytest.mark.parametrize("value", HUGE)
@pytest.mark.parametrize("name", ["n", "k"])
@every_form
def test_impossible_sizes_are_refused(library: KernelLibrary, form: Form, name: str, value: int) -> None:
    case = _case(form)
    _refused(library, {**case.attributes, name: value}, case.tensors, "n must be in .* and k in")


@pytest.mark.parametrize(("name", "value"), [("n", 16), ("n", 49), ("k", 96), ("k", 104), ("k", 2**16)])
@every_form
def test_sizes_that_do_not_fit_the_tensors_are_refused(
    library: KernelLibrary, form: Form, name: str, value: int
) -> None:
    case = _case(form)
    if form.layout == "dense" and value < case.attributes[name]:
        return  # a dense matrix may be followed by more bytes than it needs
    _refused(library, {**case.attributes, name: value}, case.tensors, "must (have|be)")


@pytest.mark.parametrize(("name", "value"), [(n, v) for n in ("bits", "group") for v in [2, 5, -4, *HUGE[2:]]])
def test_unknown_widths_and_groups_are_refused(library: KernelLibrary, name: str, value: int) -> None:
    case = _case(BITMAP)
    _refused(library, {**case.attributes, name: value}, case.tensors, f"{name} must be")


@pytest.mark.parametrize("pattern", [(0, 4), (4, 4), (2, 3), (1, 8), (-2, 4), (2, 0), (2**62, 2**63 - 1)])
def test_unknown_patterns_are_refused(library: KernelLibrary, pattern: tuple[int, int]) -> None:
    case = _case(PATTERN)
    attributes = {**case.attributes, "pattern_n": pattern[0], "pattern_m": pattern[1]}
    _refused(library, attributes, case.tensors, "layout nm needs")


@every_form
def test_tensors_too_short_too_long_or_absent_are_refused(library: KernelLibrary, form: Form) -> None:
    case = _case(form)
    for name, tensor in case.tensors.items():
        if tensor is None:
            _refused(library, case.attributes, {**case.tensors, name: _stray(name)}, "must (have|be)|need scales")
            continue
        flat = tensor.reshape(-1)
        for damaged in (None, flat[:-1], flat[:1], np.concatenate([flat, flat[:1]])):
            if name == "values" and damaged is not None and len(damaged) > len(flat):
                continue  # more slack than needed harms nobody
            _refused(library, case.attributes, {**case.tensors, name: damaged}, "must (have|be|rise)|need scales")


def _stray(name: str) -> npt.NDArray[Any]:
    return np.ones(1, {"offsets": np.int64, "scales": np.float32}.get(name, np.uint8))


@pytest.mark.parametrize("at", [0, 1, 2, 3])
@pytest.mark.parametrize("by", [1, -1, 2**62, -(2**62), 2**63 - 1 - 10**6])
def test_offsets_that_lie_are_refused(library: KernelLibrary, at: int, by: int) -> None:
    case = _case(BITMAP)  # three tiles
    offsets = case.packed.offsets
    assert offsets is not None
    damaged = offsets.copy()
    damaged[at] += by
    _refused(library, case.attributes, {**case.tensors, "offsets": damaged}, "offsets")


@every_form
def test_masks_with_a_bit_too_many_or_too_few_are_refused(library: KernelLibrary, form: Form) -> None:
    case = _case(form)
    if case.packed.masks is None:
        return
    for at in (0, case.packed.masks.size // 2, case.packed.masks.size - 1):
        damaged = case.packed.masks.copy()
        damaged.reshape(-1)[at] ^= 0x10
        tensors = {**case.tensors, "masks": damaged}
        if form.layout == "bitmap" and form.bits < 8:  # the last byte of a step may have room for one more
            try:
                library.check(case.attributes, tensors)
            except EdgeslimError as refusal:
                assert "offsets: tile" in str(refusal)
            continue
        _refused(library, case.attributes, tensors, "offsets: tile|masks: tile")


@pytest.mark.parametrize("bad", [-1, 33, 2**31, 2**62, -(2**63)])
def test_ids_outside_the_matrix_are_refused(library: KernelLibrary, bad: int) -> None:
    case = _case(BITMAP)
    with pytest.raises(EdgeslimError, match="out of range"):
        library.gather(case.attributes, case.tensors, np.array([0, bad], np.int64))
