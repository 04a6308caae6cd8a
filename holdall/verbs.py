"""pack and unpack: the two verbs that work on any artefact, because each room's base reads and writes its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from holdall.errors import BadInput, CorruptArtefact
from holdall.files import is_local, local_path, open_stream
from holdall.kinds import Codec, Spend
from holdall.method import Method
from holdall.places import is_file, is_folder
from holdall.registry import get, methods, rooms

if TYPE_CHECKING:
    from holdall.packed import Packed

_HEAD = 64 << 10


def codec_for(url: str) -> Codec:
    """The codec of the room that knows this file: its usual one, or the first that it imports."""
    head = b""
    if is_file(url) or not _known_without_a_file(url):
        with open_stream(url) as f:
            head = f.read(_HEAD)
        if not head:
            raise BadInput("file", f"{url}, which is empty", "something to pack")
    for room in rooms():
        known = [c for c in methods(room).values() if issubclass(c, Codec) and c.sniff(url, head)]
        if known:
            found: Codec = next((c for c in known if c.usual), known[0])()
            return found
    wanted = (
        "a log, a scene (.ply, .splat, .spz, .sog) or a model (GGUF, safetensors, Hugging Face folder); "
        "or name a method with --with"
    )
    raise BadInput("file", url, wanted)


def _known_without_a_file(url: str) -> bool:
    """Folders, and short names of models."""
    from holdall.dropins import hub

    return url in hub.short_names() or is_folder(url)


def pack(
    source: Any,
    with_: Method | str | None = None,
    budget: Spend = None,
    to: str | None = None,
    calibrate: str | None = None,
) -> Packed:
    """Pack a file (path or fsspec URL) or the room's own object.

    with_: a method, its name, or None to sniff the room and take its default.
    budget: "25%", "1.5GB", "3bit", bytes as an int, or None for the paper's own operating point.
    to: where to write the `.hold` file; it then comes back lazily opened.
    calibrate: a text file (path or URL) for methods that learn from text; otherwise they use their own.
    Raises BudgetError, BadInput; the source is never modified and nothing half-written is left.
    """
    if isinstance(source, str) and to is not None and same_file(source, to):
        raise BadInput("output", to, "another file than the input")
    if (
        to is not None and is_local(to) and not local_path(to).parent.is_dir()
    ):  # before the work, not after it
        raise BadInput("output", to, f"a folder that exists ({local_path(to).parent} does not)")
    if with_ is None:
        if not isinstance(source, str):
            raise BadInput("method", "none", "a method: only files are sniffed")
        method: Any = codec_for(source)
    else:
        method = get(with_)() if isinstance(with_, str) else with_
    if not isinstance(method, Codec):
        raise BadInput("method", method.full_name(), "one that packs (a codec)")
    x = type(method).read_input(source) if isinstance(source, str) else source
    if calibrate is not None:
        x = type(method).with_text(x, text_of(calibrate))
    return method.encode(x, budget, to=to)


def text_of(url: str) -> str:
    """A text file, as one piece."""
    with open_stream(url) as f:
        raw = f.read()
    try:
        return raw.decode()
    except UnicodeDecodeError as fault:
        raise BadInput("calibration text", url, "a UTF-8 text file") from fault


def unpack(source: str | Packed, to: str | None = None, form: str | None = None) -> Any:
    """Decode a `.hold` file or Packed; with `to`, write what was packed to that path or URL and return None.

    form: of a model's .gguf file, the type of matrices whose grid GGUF does not have ("Q8_0").
    """
    from holdall.packed import Packed

    if isinstance(source, str) and to is not None and same_file(source, to):
        raise BadInput("output", to, "another file than the input")
    packed = Packed.open(source) if isinstance(source, str) else source
    method = method_of(packed, str(source))
    return method.decode(packed) if to is None else method.restore(packed, to, form)


def method_of(packed: Packed, path: str = "artefact") -> Codec:
    """The recipe that is written in the artefact, where that decodes."""
    method = recipe_of(packed, path)
    if not isinstance(method, Codec):
        raise CorruptArtefact(path, f"{method.full_name()} does not decode anything")
    return method


def recipe_of(packed: Packed, path: str = "artefact") -> Method:
    """The recipe that is written in the artefact."""
    told = packed.meta.get("method")
    if not isinstance(told, dict) or not isinstance(told.get("method"), str):
        raise CorruptArtefact(path, "its header names no method")
    try:
        return Method.from_dict(told)
    except TypeError as fault:  # a knob that this version does not know
        raise CorruptArtefact(
            path, f"its method has knobs that this Holdall does not know ({fault})"
        ) from fault


def same_file(a: str, b: str) -> bool:
    """Whether two paths or URLs name one file."""
    if is_local(a) and is_local(b):
        pa, pb = local_path(a), local_path(b)
        return pa.resolve() == pb.resolve() or (pa.exists() and pb.exists() and pa.samefile(pb))
    return a == b
