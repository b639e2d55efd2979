"""The base of every error that a user can cause and mend."""

from __future__ import annotations


class McdError(Exception):
    """Bad input, a missing file, an impossible setting: the message is one line that names the thing.

    Commands print it without a traceback and exit with 1.
    """


class StageError(McdError, RuntimeError):
    """A stage that cannot do its work; the message says what it lacks."""


class NothingToLearnError(StageError):
    """No object, or too few, for a stage that learns of objects; a run ends without it."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the machine or the device has too little memory, in the words of Python or torch."""
    text = str(error)
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and ("out of memory" in text or "can't allocate memory" in text or "not enough memory" in text)
    )
