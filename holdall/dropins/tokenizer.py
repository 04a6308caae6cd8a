"""A model's tokenizer from its own files, through the `tokenizers` package alone: loads in milliseconds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from holdall.errors import BadInput, CorruptArtefact
from holdall.optional import need

Message = Mapping[str, str]  # {"role": "user", "content": "..."}


class Tokenizer:
    """Text to ids and back, and chat messages to ids through the model's own template.

    `eos` holds every id that ends an answer; `template` is None for models that were never taught to chat.
    """

    def __init__(self, files: Mapping[str, bytes]):
        if "tokenizer.json" not in files:
            raise BadInput("model", "no tokenizer.json", "a model with one (Hugging Face folder or GGUF)")
        try:
            self._inner = need("tokenizers", "weights").Tokenizer.from_str(files["tokenizer.json"].decode())
        except Exception as fault:  # the package raises nothing narrower
            raise CorruptArtefact("tokenizer.json", str(fault)[:200]) from fault
        self._inner.no_padding()
        self._inner.no_truncation()
        self._config = json_file(files, "tokenizer_config.json")
        self.eos = self._ends(files)
        self.template = self._template(files)

    def __len__(self) -> int:
        return int(self._inner.get_vocab_size())

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Ids of `text`. special: read <|such|> marks as tokens, and add the model's start and end tokens."""
        self._inner.encode_special_tokens = not special
        return list(self._inner.encode(text, add_special_tokens=special).ids)

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        """Text of `ids`. special: show special tokens too."""
        return str(self._inner.decode(list(ids), skip_special_tokens=not special))

    def chat(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> list[int]:
        """Ids of a conversation; without a template, the contents one after the other."""
        if self.template is None:
            return self.encode("\n".join(m["content"] for m in messages), special=True)
        text = _render(self.template, messages, add_generation_prompt, self._named())
        self._inner.encode_special_tokens = False
        return list(self._inner.encode(text, add_special_tokens=False).ids)

    def _named(self) -> dict[str, str]:
        """bos_token, eos_token and their like, as the template wants them."""
        found = {}
        for key, value in self._config.items():
            if key.endswith("_token"):
                text = value.get("content") if isinstance(value, dict) else value
                if isinstance(text, str):
                    found[key] = text
        return found

    def _ends(self, files: Mapping[str, bytes]) -> set[int]:
        ends: set[int] = set()
        for name in ("generation_config.json", "config.json"):
            told = json_file(files, name).get("eos_token_id")
            ends |= {n for n in (told if isinstance(told, list) else [told]) if isinstance(n, int)}
        named = self._named()
        for key in ("eos_token", "eot_token"):
            number = self._inner.token_to_id(named[key]) if key in named else None
            ends |= set() if number is None else {number}
        return ends

    def _template(self, files: Mapping[str, bytes]) -> str | None:
        if "chat_template.jinja" in files:
            return files["chat_template.jinja"].decode()
        told = self._config.get("chat_template")
        if isinstance(told, list):  # several, by name
            told = next(
                (t.get("template") for t in told if isinstance(t, dict) and t.get("name") == "default"), None
            )
        return told if isinstance(told, str) else None


def json_file(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """The JSON object in `files[name]`, or an empty one."""
    if name not in files:
        return {}
    try:
        told = json.loads(files[name])
    except (ValueError, RecursionError) as fault:
        raise CorruptArtefact(name, f"not JSON ({fault})") from fault
    if not isinstance(told, dict):
        raise CorruptArtefact(name, "not a JSON object")
    return told


def _render(template: str, messages: Sequence[Message], prompt: bool, named: Mapping[str, str]) -> str:
    """Templates come with models, so they run in a sandbox that can change nothing."""
    jinja2, sandbox = need("jinja2", "weights"), need("jinja2.sandbox", "weights")

    def refuse(why: str) -> None:
        raise BadInput("messages", str(why), "messages that the model's chat template takes")

    rooms = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    rooms.globals["raise_exception"] = refuse
    rooms.globals["strftime_now"] = _today
    rooms.filters["tojson"] = lambda x, indent=None: json.dumps(x, ensure_ascii=False, indent=indent)
    try:
        told = rooms.from_string(template).render(
            messages=[dict(m) for m in messages], add_generation_prompt=prompt, **named
        )
    except jinja2.exceptions.TemplateError as fault:
        raise BadInput("chat template", str(fault), "one that renders (the model's own is broken)") from fault
    return str(told)


def _today(form: str) -> str:
    from datetime import datetime

    return datetime.now().strftime(form)
