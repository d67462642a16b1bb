"""Write a checkpoint with the weights that llama.cpp reads from its own file of one: to score both in one way.

Runs in the environment that has llama.cpp: ``python gguf_checkpoint.py CHECKPOINT FOLDER q8_0|q4_0|q4_K|q3_K|q2_K``.
Prints a JSON line with the bits a weight of the decoder blocks' linears and of the file's matrices together.
"""

import argparse
import json
import shutil
import struct
import tempfile
from pathlib import Path

import gguf
import numpy as np
from gguf_files import F32, FORMS, MIXTURES, converted, is_product, read_tensors, write_form


def main() -> None:
    """Write the checkpoint that the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("form", choices=[*FORMS, *MIXTURES])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.gguf"
        write_form(args.checkpoint, file, args.form)
        shutil.copytree(args.checkpoint, args.folder)
        print(json.dumps({"form": args.form, **rewrite(args.folder, gguf.GGUFReader(file))}))


def rewrite(checkpoint: Path, reader: gguf.GGUFReader) -> dict[str, float]:
    """Put the matrices of `reader` into the checkpoint folder; return bits a weight."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    family = {"llama": gguf.MODEL_ARCH.LLAMA, "mamba2": gguf.MODEL_ARCH.MAMBA2}[config["model_type"]]
    names = gguf.get_tensor_name_map(family, config["num_hidden_layers"])
    stored = {tensor.name: tensor for tensor in reader.tensors}
    tensors: dict[str, F32] = {}
    counted = {"linears": [0, 0], "all": [0, 0]}
    for name, array in read_tensors(checkpoint / "model.safetensors"):
        tensors[name] = array
        if not is_product(name, array):
            continue
        tensor = stored[converted(names, name, array, config)[0]]
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(array.shape)
        tensors[name] = _restored(name, values, config)
        for kind in ("all", "linears")[: 1 + (".layers." in name)]:
            counted[kind][0] += 8 * tensor.n_bytes
            counted[kind][1] += array.size
    _write(checkpoint / "model.safetensors", tensors)
    return {f"bits_{kind}": round(bits / count, 3) for kind, (bits, count) in counted.items()}


def _restored(name: str, weight: F32, config: dict[str, int]) -> F32:
    """Undo the order of rows that llama.cpp has in queries and keys."""
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    found = next((config[key] for part, key in heads.items() if name.endswith(f"{part}.weight")), None)
    if found is None:
        return weight
    return weight.reshape(found, -1, 2, weight.shape[-1]).swapaxes(1, 2).reshape(weight.shape)


def _write(file: Path, tensors: dict[str, F32]) -> None:
    header: dict[str, object] = {}
    at = 0
    for name, array in tensors.items():
        header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for array in tensors.values():
            stream.write(np.ascontiguousarray(array, np.float32).tobytes())


if __name__ == "__main__":
    main()
