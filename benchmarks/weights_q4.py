"""The shipped SmolLM2 in llama.cpp's Q4_0, without llama.cpp's own tool; part of benchmarks/weights_speed.py."""

from __future__ import annotations

import numpy as np


def q4_0(source: str, target: str) -> None:
    """The shipped model as llama.cpp's own tool makes it Q4_0: linears Q4_0, embeddings Q8_0."""
    import gguf

    kinds, read = gguf.GGMLQuantizationType, gguf.GGUFReader(source)
    write = gguf.GGUFWriter(target, "llama")
    for f in read.fields.values():
        if not f.name.startswith("GGUF.") and f.name != "general.architecture":
            inner = f.types[1] if f.types[0] == gguf.GGUFValueType.ARRAY else None
            write.add_key_value(f.name, f.contents(), f.types[0], inner)
    for t in read.tensors:
        if t.tensor_type == kinds.Q4_1:
            plain = gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32)
            write.add_tensor(t.name, gguf.quants.quantize(plain, kinds.Q4_0), raw_dtype=kinds.Q4_0)
        else:
            write.add_tensor(t.name, t.data, raw_dtype=t.tensor_type)
    for step in (
        write.write_header_to_file,
        write.write_kv_data_to_file,
        write.write_tensors_to_file,
        write.close,
    ):
        step()
