"""Write llama.cpp's files of a dense checkpoint: GGUF with every matrix, head and embedding too, in one form.

Runs in the environment that has llama.cpp: ``python gguf_files.py CHECKPOINT FILE q8_0|q4_0|q4_K|q3_K|q2_K``. Names and
reshapes follow llama.cpp's convert_hf_to_gguf.py; the token list is invented. The K forms are llama.cpp's own work on
a file in float32: its mixtures of types, without an importance matrix.
"""

import argparse
import ctypes
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
FORMS = {
    "f32": gguf.GGMLQuantizationType.F32,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
    "q4_0": gguf.GGMLQuantizationType.Q4_0,
}
_FILE_TYPES = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
}
MIXTURES = {
    "q4_K": gguf.LlamaFileType.MOSTLY_Q4_K_M,
    "q3_K": gguf.LlamaFileType.MOSTLY_Q3_K_M,
    "q2_K": gguf.LlamaFileType.MOSTLY_Q2_K,
}
"""What llama.cpp's own quantizer makes, by the short names that it has for them."""
_ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mamba": gguf.MODEL_ARCH.MAMBA,
    "mamba2": gguf.MODEL_ARCH.MAMBA2,
}


def main() -> None:
    """Write the file that the arguments ask for; it appears under its name when it is whole."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("form", choices=[*FORMS, *MIXTURES])
    args = parser.parse_args()
    partial = args.file.with_suffix(".partial")
    write_form(args.checkpoint, partial, args.form)
    partial.rename(args.file)


def write_form(checkpoint: Path, file: Path, form: str) -> None:
    """Write `file` in any of the forms; the K forms by way of a file in float32 beside it."""
    if form in FORMS:
        return write_file(checkpoint, file, form)
    single = file.with_suffix(".f32")
    write_file(checkpoint, single, "f32")
    quantize(single, file, form)
    single.unlink()


def quantize(source: Path, file: Path, form: str) -> None:
    """Let llama.cpp write `file` in one of its mixtures from `source`, a file in float32."""
    import llama_cpp  # only here: the other forms need numpy and gguf alone

    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = int(MIXTURES[form])
    options.nthread = 2
    if llama_cpp.llama_model_quantize(str(source).encode(), str(file).encode(), ctypes.byref(options)):
        raise RuntimeError(f"{source}: llama.cpp does not make {form} of it")


def write_file(checkpoint: Path, file: Path, form: str) -> None:
    """Write `file` from the checkpoint folder: matrices in `form`, everything else in float32."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    family = config["model_type"]
    writer = gguf.GGUFWriter(file, family)
    _describe(writer, config)
    writer.add_file_type(_FILE_TYPES[form])
    _add_vocabulary(writer, config["vocab_size"])
    names = gguf.get_tensor_name_map(_ARCHITECTURES[family], config["num_hidden_layers"])
    for name, array in read_tensors(checkpoint / "model.safetensors"):
        kind = gguf.GGMLQuantizationType.F32
        target, array = converted(names, name, array, config)
        if is_product(name, array):
            kind = _kind(form, array.shape[1])
            array = array if form == "f32" else gguf.quants.quantize(array, kind)
        writer.add_tensor(target, array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _kind(form: str, columns: int) -> gguf.GGMLQuantizationType:
    """Return the type of a matrix in `form`: what does not come in blocks of 32 is float16, as the converter has it."""
    return FORMS[form] if form == "f32" or columns % 32 == 0 else gguf.GGMLQuantizationType.F16


def read_tensors(file: Path) -> Iterator[tuple[str, F32]]:
    """Yield name and values of every tensor in a safetensors file of bfloat16 or float32."""
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    raw = np.memmap(file, np.uint8, "r", offset=8 + length)
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        yield name, _singles(raw[begin:end], entry["dtype"]).reshape(entry["shape"])


def _singles(raw: npt.NDArray[np.uint8], dtype: str) -> F32:
    if dtype == "F32":
        return np.array(raw).view(np.float32)
    if dtype == "BF16":
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    raise ValueError(f"weights are {dtype}; expected BF16 or F32")


def _describe(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_vocab_size(config["vocab_size"])
    describe = {"llama": _describe_llama, "mamba": _describe_mamba, "mamba2": _describe_mamba2}
    describe[config["model_type"]](writer, config)


def _describe_llama(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])


def _describe_mamba(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_context_length(1 << 20)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_ssm_conv_kernel(config["conv_kernel"])
    writer.add_ssm_inner_size(config["expand"] * config["hidden_size"])
    writer.add_ssm_state_size(config["state_size"])
    writer.add_ssm_time_step_rank(config["time_step_rank"])
    writer.add_layer_norm_rms_eps(config["layer_norm_epsilon"])


def _describe_mamba2(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    heads = config["expand"] * config["hidden_size"] // config["head_dim"]
    _describe_mamba(writer, {**config, "time_step_rank": heads})
    writer.add_ssm_group_count(config["n_groups"])


def _add_vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    """Add as many tokens as the model has: three special ones, bytes, invented words."""
    words = [f"<0x{i:02X}>" for i in range(256)] + [f"w{i}" for i in range(size - 259)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", *words])
    writer.add_token_scores([0.0] * size)
    kinds = [gguf.TokenType.UNKNOWN, *[gguf.TokenType.CONTROL] * 2, *[gguf.TokenType.BYTE] * 256]
    writer.add_token_types([int(kind) for kind in kinds] + [int(gguf.TokenType.NORMAL)] * (size - 259))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def converted(names: Any, name: str, array: F32, config: dict[str, Any]) -> tuple[str, F32]:
    """Return llama.cpp's name and form of the tensor `name` of transformers."""
    if name.endswith(".A_log"):
        array = -np.exp(array)
    if name.endswith((".A_log", ".D")):
        array = array.reshape(-1, 1) if config["model_type"] == "mamba2" else array
    elif name.endswith("conv1d.weight"):
        array = array.squeeze(1)
    elif name.endswith("mixer.norm.weight"):
        array = array.reshape(config["n_groups"], -1)
    elif name.endswith("q_proj.weight"):
        array = _interleaved(array, config["num_attention_heads"])
    elif name.endswith("k_proj.weight"):
        array = _interleaved(array, config["num_key_value_heads"])
    target = names.get_name(name.replace(".dt_bias", ".dt_proj.bias"), try_suffixes=(".weight", ".bias"))
    if target is None:
        raise ValueError(f"llama.cpp has no name for {name}")
    return target, np.ascontiguousarray(array)


def _interleaved(weight: F32, heads: int) -> F32:
    """Return rows in llama.cpp's order: the two halves of each head's rotary pairs next to each other."""
    return weight.reshape(heads, 2, -1, weight.shape[-1]).swapaxes(1, 2).reshape(weight.shape)


def is_product(name: str, array: F32) -> bool:
    return array.ndim == 2 and name.endswith(".weight") and "conv1d" not in name and "norm" not in name


if __name__ == "__main__":
    main()
