"""Writes docs/cli.md, docs/catalogue.md and docs/methods/<room>.<name>.md from the classes themselves.

python docs/generate.py            write them
python docs/generate.py --check    exit 1 if a page is not what its class says
"""

from __future__ import annotations

import inspect
import subprocess
import sys
import textwrap
from importlib import import_module
from pathlib import Path
from typing import Any

from holdall import registry
from holdall.cli.methods import told
from holdall.cli.show import citation, knobs

HERE = Path(__file__).parent
CALL = "import sys; sys.argv[0] = 'holdall'; from holdall.cli import main; main()"
PLAIN = {
    "PATH": "",
    "COLUMNS": "100",
    "TERMINAL_WIDTH": "100",
    "NO_COLOR": "1",
    "PYTHONPATH": str(HERE.parent),
}
NOTE = "<!-- Written by docs/generate.py; change the docstring instead. -->\n\n"
SECTIONS = ("Shapes", "Cost", "Knobs", "Differs from the paper", "Example", "Paper", "Test")
VERBS = (
    "pack",
    "unpack",
    "info",
    "verify",
    "run",
    "serve",
    "adapters",
    "cache",
    "grep",
    "index",
    "search",
    "measure",
    "methods",
    "show",
    "view",
    "render",
    "fit-scene",
)


def catalogue() -> str:
    """Every method, room by room."""
    text = f"{NOTE}# Catalogue\n\n"
    for room in registry.rooms():
        doc = (import_module(f"holdall.{room}").__doc__ or "").strip()
        text += f"## {room}\n\n{doc}\n\n| method | kind | what it does | paper |\n|---|---|---|---|\n"
        for name, cls in registry.methods(room).items():
            row = told(cls)
            cells = [f"[{name}](methods/{name}.md)", row["kind"], row["does"], row["paper"]]
            text += "| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |\n"
        text += "\n"
    return text.rstrip() + "\n"


def page(cls: type[Any]) -> str:
    """One method."""
    doc = inspect.getdoc(cls) or ""
    first, _, rest = doc.partition("\n")
    text = f"{NOTE}# {cls.full_name()}\n\n**{first}**\n\n```\nholdall show {cls.full_name()}\n```\n\n"
    text += _sections(rest)
    rows = knobs(cls)
    if rows:
        text += (
            "\n## Options\n\n| option | default | unit | paper's | what it does |\n|---|---|---|---|---|\n"
        )
        for k in rows:
            cells = [f"`{k['option']}`", k["default"], k["unit"], k["paper"], k["doc"]]
            text += "| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |\n"
    return f"{text.rstrip()}\n\n## Citation\n\n{citation(cls)}\n"


def _sections(doc: str) -> str:
    """Docstring sections ("Shapes:" and what follows) as headings; examples as code; knobs as a list."""
    found: list[tuple[str, list[str]]] = [("", [])]
    for line in doc.strip("\n").splitlines():
        name, colon, rest = line.partition(":")
        if colon and name in SECTIONS:
            found.append((name, [rest.strip()] if rest.strip() else []))
        else:
            found[-1][1].append(line)
    text = ""
    for name, lines in found:
        body = textwrap.dedent("\n".join(lines)).strip()
        if name == "Example":
            body = f"```python\n{body}\n```"
        elif name in ("Paper", "Test"):
            text += f"{name}: {body}\n\n"
            continue
        text += (f"## {name}\n\n" if name else "") + body + "\n\n"
    return text


def command_line() -> str:
    """The help of every verb, as it is printed in a pipe 100 columns wide."""
    text = f"{NOTE}# Command line\n\nEvery verb takes paths and fsspec URLs, and `--json`.\n\n"
    for verb in ("", *VERBS):
        words = [verb] if verb else []
        shown = subprocess.run(
            [sys.executable, "-c", CALL, *words, "--help"],
            capture_output=True, text=True, check=True,
            env=PLAIN,
        ).stdout  # fmt: skip
        shown = "\n".join(line.rstrip() for line in shown.strip().splitlines())
        text += f"## holdall {verb}".rstrip() + f"\n\n```\n{shown}\n```\n\n"
    return text.rstrip() + "\n"


def pages() -> dict[Path, str]:
    made = {HERE / "catalogue.md": catalogue(), HERE / "cli.md": command_line()}
    for name, cls in registry.methods().items():
        made[HERE / "methods" / f"{name}.md"] = page(cls)
    return made


def main() -> None:
    made = pages()
    old = set((HERE / "methods").glob("*.md")) - set(made)
    if "--check" in sys.argv:
        stale = [str(p) for p, text in made.items() if not p.exists() or p.read_text() != text] + [
            str(p) for p in old
        ]
        if stale:
            sys.exit("these pages are not what the classes say (run `make docs`): " + ", ".join(stale))
        return
    (HERE / "methods").mkdir(exist_ok=True)
    for path in old:
        path.unlink()
    for path, text in made.items():
        path.write_text(text)


if __name__ == "__main__":
    main()
