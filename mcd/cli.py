"""The command ``mcd``, also ``python -m mcd``: a table of commands, each a module that is imported when it is called.

A new command is one line of :data:`COMMANDS`. Its module has ``main(arguments) -> int``, and may begin with

    if __name__ == "__main__":
        from mcd.cli import main

        sys.exit(main(["NAME", *sys.argv[1:]]))

before other imports, so that ``python -m`` names a missing package in one line, too.
"""

from __future__ import annotations

import difflib
import importlib
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import mcd
from mcd.errors import McdError
from mcd.extras import MissingPackage, extra


class Command(NamedTuple):
    """What ``mcd NAME`` runs: ``module.main(arguments)``."""

    module: str
    help: str
    extra: str
    """The extra of the distribution that brings what the module imports; empty if it needs none."""


COMMANDS = {
    "train": Command("mcd.train", "train every stage of a config, evaluate, report", "train"),
    "predict": Command("mcd.inference.command", "depth of images, folders and videos", "train"),
    "models": Command("mcd.inference.models", "which depth nets there are: shipped, and of a folder", "train"),
    "export": Command("mcd.export.command", "a depth net as ONNX, exported program or compiled package", "train"),
    "evaluate": Command("mcd.evaluation.command", "depth against ground truth, of runs and checkpoints", "train"),
    "report": Command("mcd.report.page", "draw the report of a run again", "report"),
    "convert": Command("mcd.convert", "use the released checkpoints of the paper's authors", "train"),
    "pretrain": Command(
        "mcd.training.pretrain.command", "make the start again: nets trained on rendered roads", "train"
    ),
    "prepare": Command("mcd.data.prepare", "bring a published data set into the layout that is read", "train"),
    "backend": Command("mcd.backend", "which backend serves which operator on this machine", ""),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the command's status, 1 where a package is missing, 2 for an unknown command, 130 where it
    was stopped by Ctrl-C or SIGTERM: what was half written is taken away then."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or [""]
    if name in ("-V", "--version"):
        print(f"mcd {mcd.__version__}")
        return 0
    if name in ("", "-h", "--help"):
        print(_help())
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(COMMANDS)}"
        print(f"mcd: no command {name!r}; {hint}", file=sys.stderr)
        return 2
    command = COMMANDS[name]
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGTERM)
    alone = threading.current_thread() is threading.main_thread()
    formatted = warnings.formatwarning
    try:
        warnings.formatwarning = _once()
        if alone:  # elsewhere Python sets no handlers
            signal.signal(signal.SIGTERM, stop)
        if command.extra:
            with extra(command.extra, f"mcd {name}"):
                module = importlib.import_module(command.module)
        else:
            module = importlib.import_module(command.module)
        status: int = module.main(rest)
        # A library that is stopped may say that its file is broken.
        if stopped and status:
            raise KeyboardInterrupt
        return status
    except MissingPackage as error:  # says itself who needs the package
        print(error, file=sys.stderr)
        return 1
    except (McdError, OSError) as error:
        print(f"mcd {name}: {'stopped' if stopped else error}", file=sys.stderr)
        return 130 if stopped else 1
    except (Exception, KeyboardInterrupt) as error:
        if not stopped and not isinstance(error, KeyboardInterrupt):
            raise
        print(f"mcd {name}: stopped", file=sys.stderr)
        return 130
    finally:
        warnings.formatwarning = formatted
        if alone:
            signal.signal(signal.SIGTERM, before)


def _once() -> Callable[..., str]:
    """Writes a warning as one line without the line of ours that gave it, and nothing where it was given before.

    Python's own memory of what it has said ends whenever somebody changes its filters.
    """
    said: set[str] = set()

    def line(message: Warning | str, *_: object, **__: object) -> str:
        text = f"warning: {message}\n"
        if text in said:
            return ""
        said.add(text)
        return text

    return line


def _help() -> str:
    lines = [f"  {name:10}{command.help}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: mcd COMMAND …    (mcd COMMAND --help says more, mcd --version which release this is)",
            "",
            (mcd.__doc__ or "").partition("\n")[0],
            "",
            *lines,
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
