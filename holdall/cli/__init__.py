"""The command line: one file per verb. Rooms, torch and numba are imported inside the verbs that need them.

Exit codes: 0 done; 1 `grep` found nothing; 2 a mistake or a fault, told in one line on stderr; 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

import typer

from holdall.cli import (
    adapters,
    cache,
    fit_scene,
    grep,
    index,
    info,
    measure,
    methods,
    pack,
    plan,
    render,
    run,
    search,
    serve,
    show,
    train_plan,
    unpack,
    verify,
    view,
)
from holdall.errors import HoldallError

app = typer.Typer(
    name="holdall",
    help="Fit AI into what you have, and measure what it costs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _verb in (
    pack, unpack, plan, train_plan, info, verify, run, serve, adapters, cache, grep, index, search, measure, methods,
    show, view, render, fit_scene,
):  # fmt: skip
    _verb.register(app)

_Told: Any = typer.BadParameter.__mro__[2]  # click's ClickException: a mistake in how a command was called
_REMOTE = ("botocore", "aiobotocore", "aiohttp", "s3fs", "gcsfs", "adlfs", "requests", "urllib3")


def main() -> None:
    """What the `holdall` command runs."""
    # Threads that spin while they wait make everything several times slower beside one other busy program.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # torch reads it when it is loaded
    # transformers 5.24 names an argument anew; the older ones that pyproject.toml allows do not know the new name.
    warnings.filterwarnings("ignore", message="`past_key_values` is deprecated", category=FutureWarning)
    code = 2
    try:
        result = app(standalone_mode=False)
        sys.stdout.flush()
        code = result if isinstance(result, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except typer.Exit as left:
        code = left.exit_code
    except BrokenPipeError:  # whoever read our output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except HoldallError as fault:
        _say(str(fault))
    except _Told as fault:
        _say(fault.format_message())
    except MemoryError:
        _say("out of memory: give a smaller budget, or close something")
    except OSError as fault:
        _say(_file_fault(fault))
    except (
        Exception
    ) as fault:  # object stores raise their own errors; anything else is a bug and shows itself
        if type(fault).__module__.split(".")[0] not in _REMOTE:
            raise
        _say(f"{type(fault).__name__}: {fault}")
    if code == 130:
        _say("interrupted")
    sys.exit(code)


def _say(line: str) -> None:
    print("holdall: " + " ".join(line.split()), file=sys.stderr)


def _file_fault(fault: OSError) -> str:
    where = fault.filename2 or fault.filename
    what = fault.strerror or str(fault) or type(fault).__name__
    return f"{what}: {where}" if where else what
