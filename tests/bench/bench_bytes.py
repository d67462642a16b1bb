"""Bits a weight of every packed form by the share of weights that are not zero; a JSON line a case, then a table.

    python tests/bench/bench_bytes.py [--shape 2560x960]

Matrices are random; what is counted is every byte that an export writes for them: values, masks, offsets, scales. The
stock partner is MatMulNBits in blocks of 128 with float32 scales, which stores zeros like anything else.
"""

import argparse
import json

import numpy as np

from edgeslim.exporters.functions import form_name
from edgeslim.exporters.packed import Form, pack

DENSITIES = (1.0, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
_GROUPS = {4: 64, 3: 64}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="2560x960", metavar="OUTxIN")
    rows, columns = (int(part) for part in parser.parse_args().shape.split("x"))
    table: dict[str, list[str]] = {}
    for bits in (32, 16, 8, 4, 3):
        for form in [form_of(layout, bits) for layout in ("dense", "bitmap", "nm")]:
            for density in DENSITIES:
                cell = ""
                if is_possible(form, density):
                    found = 8 * pack(weights(rows, columns, density, form), form).nbytes / (rows * columns)
                    print(json.dumps({"form": form_name(form), "density": density, "bits_a_weight": round(found, 3)}))
                    cell = f"{found:.2f}"
                table.setdefault(form_name(form), []).append(cell)
    for bits in (8, 4):
        table[f"MatMulNBits int{bits}, blocks of 128"] = [f"{bits + 32 / 128:.2f}"] * len(DENSITIES)
    print("| form | " + " | ".join(f"{density:.0%} kept" for density in DENSITIES) + " |")
    print("|---" * (len(DENSITIES) + 1) + "|")
    for name, cells in table.items():
        print(f"| {name} | " + " | ".join(cells) + " |")


def form_of(layout: str, bits: int) -> Form:
    pattern = (2, 4) if layout == "nm" else None
    return Form(layout=layout, bits=bits, group=_GROUPS.get(bits, 0), pattern=pattern)  # type: ignore[arg-type]


def is_possible(form: Form, density: float) -> bool:
    """Return whether a table has that case: 2:4 keeps half, and dense layouts take the same at any density."""
    return density == 0.5 if form.pattern else (density == 1.0) == (form.layout == "dense")


def weights(rows: int, columns: int, density: float, form: Form) -> np.ndarray:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((rows, columns)).astype(np.float32)
    if form.pattern:
        groups = weight.reshape(-1, 4)
        groups[np.argsort(np.argsort(-np.abs(groups), axis=1), axis=1) >= 2] = 0
    else:
        weight[rng.random(weight.shape) >= density] = 0
    return weight


if __name__ == "__main__":
    main()
