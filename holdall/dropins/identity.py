"""Which model is this? A name for these very weights, from headers and samples, without reading all of them."""

from __future__ import annotations

import xxhash

from holdall.dropins import hub
from holdall.files import Reader, open_reader

_START = 4 << 20  # bytes at the beginning of a file that are read: headers, and the tokenizer of a GGUF
_SAMPLES, _SAMPLE = 64, 64 << 10  # parts of the rest that are read, and bytes of each


def identity(where: str) -> str:
    """The same for the same file; another for other weights, configuration or tokenizer (128 bits, hexadecimal).

    where: what `Model.read` takes. Of a `.hold` file the header is read, which holds the checksum of each section; of
    other weights the beginning and 64 parts, so that a large model is named in milliseconds.
    """
    total, path = xxhash.xxh3_128(), where.rstrip("/")
    if path.lower().endswith(".hold"):
        with open_reader(path) as reader:
            length = int.from_bytes(reader.read(0, 8), "little")
            total.update(reader.read(0, min(8 + length, reader.size)))
        return total.hexdigest()
    files = hub.weight_files(where)
    if not files[0].lower().endswith(".gguf"):  # which has its configuration inside
        for name, content in sorted(hub.outline(where)[0].items()):
            total.update(name.encode() + content)
    for file in files:
        with open_reader(file) as reader:
            total.update(reader.size.to_bytes(8, "little"))
            for piece in _sampled(reader):
                total.update(piece)
    return total.hexdigest()


def _sampled(reader: Reader) -> list[bytes]:
    if reader.size <= _START + _SAMPLES * _SAMPLE:
        return [reader.read(0, reader.size)]
    last = reader.size - _SAMPLE
    starts = [_START + i * (last - _START) // (_SAMPLES - 1) for i in range(_SAMPLES)]
    return [reader.read(0, _START), *(reader.read(at, at + _SAMPLE) for at in starts)]
