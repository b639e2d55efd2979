"""Packages that come with an extra of the distribution: one that is missing is named with the extra that brings it.

``import mcd``, the operators, geometry and losses need torch and NumPy alone. All else stands behind a door (a command,
a video that is opened), and each door imports its packages under :func:`extra`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from mcd.errors import McdError


class MissingPackage(McdError, ImportError):  # noqa: N818
    """A package that an extra brings is not installed; the message is the command that installs it."""


@contextmanager
def extra(name: str, user: str) -> Iterator[None]:
    """Around imports of packages that the extra ``name`` brings; ``user`` is what needs them.

    Raises:
        MissingPackage: one of the packages is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "mcd"):  # a fault of ours is no missing package
            raise
        raise MissingPackage(f"{user} needs {package}: pip install 'mcd-depth[{name}]'") from None


@contextmanager
def python_m(name: str, user: str) -> Iterator[None]:
    """Around the imports of a package of which ``python -m`` runs a module: that imports the package before the module,
    which therefore cannot catch what is missing. Ends the program in one line then; else it is as if it were not there.
    """
    if sys.argv[:1] != ["-m"]:  # what stands there until the module has been found
        yield
        return
    try:
        with extra(name, user):
            yield
    except MissingPackage as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from None
