"""One process at a time trains in a run folder.

The lock is the kernel's (flock) on the file ``RUN/lock``, so whatever ends a process ends its lock, and the file itself
means nothing. On NFS it holds between machines where the server keeps locks (NFS 4, or 3 with lockd), and only within a
machine where the folder is mounted with ``nolock`` or ``local_lock``; where there are no locks at all, that is said.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mcd.run.folder import RunError

_held: set[int] = set()


@contextmanager
def lock_run(folder: Path) -> Iterator[None]:
    """Hold a run folder, which is made if it is not there.

    Raises:
        RunError: another process holds it, which is named; or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except (OSError, ValueError) as error:
        raise RunError(f"run folder {folder} cannot be written: {error}") from None
    _held.add(handle)
    try:
        _take(handle, folder)
        yield
    finally:
        _held.discard(handle)
        os.close(handle)


def _take(handle: int, folder: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(handle, 200, 0).decode(errors="replace").strip() or "another process"
        raise RunError(
            f"run folder {folder} is in use by {holder}: wait for it, or choose another --set run=NAME"
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            raise RunError(f"run folder {folder} cannot be locked: {error}") from None
        warnings.warn(
            f"the file system of {folder} has no locks ({error.strerror}): nothing keeps a second process out of it",
            stacklevel=3,
        )
        return
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)


def _let_go_in_child() -> None:
    """A forked worker shares the open file, to which a lock belongs: a killed parent's lock would live on in it."""
    for handle in _held:
        os.close(handle)
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_child)
