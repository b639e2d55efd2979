"""From a data set to batches on the device: order, worker processes, collation, asynchronous copies."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence, Sized
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from mcd.data.dataset import Item, Key, WorkItem
from mcd.data.processes import process_count
from mcd.files import DataError
from mcd.ops.colour_jitter import KINDS, colour_jitter

Batch = dict[str, Any]

# Tensors [n, H, W] with another n in every item.
RAGGED = frozenset({"instances"})


class Ragged(NamedTuple):
    """Tensors of different length after one another; one tensor costs one copy and one file descriptor."""

    values: Tensor
    counts: list[int]


class Batches(Protocol):
    """Keys of the items of each batch, in order."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Sequence[Key]]: ...


class Listed(Protocol):
    """A data set that says what its items are about."""

    items: Sequence[WorkItem]

    def __getitem__(self, key: Key) -> Item: ...


class StepSampler(Iterable[list[tuple[int, int]]], Sized):
    """Batches of ``(index, epoch)`` for the steps ``start`` to ``steps``, shuffled anew every epoch.

    Which items a step sees depends on nothing but the seed, the first epoch and the step. The incomplete last batch of
    an epoch is left out.

    Args:
        first_epoch: what epochs are counted from; another one gives another order, and other draws of the items.
        part: which items of each batch are wanted; all of them, unless processes share a batch.

    Raises:
        DataError: there are fewer than ``batch`` items.
    """

    def __init__(
        self,
        length: int,
        batch: int,
        seed: int,
        start: int,
        steps: int,
        *,
        first_epoch: int = 0,
        part: slice = slice(None),
    ):
        if length < batch:
            raise DataError(f"a batch of {batch} cannot be drawn from a data set of {length} items: lower the batch")
        self.steps_per_epoch = length // batch
        self._length, self._batch, self._seed, self._start, self._steps = length, batch, seed % 2**64, start, steps
        self._first_epoch, self._part = first_epoch, part

    def __len__(self) -> int:
        return max(self._steps - self._start, 0)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        shuffled, order = -1, np.arange(0)
        for step in range(self._start, self._steps):
            epoch, position = divmod(step, self.steps_per_epoch)
            epoch += self._first_epoch
            if epoch != shuffled:
                # Items draw from (seed, epoch, index), and NumPy takes a missing number for a zero.
                shuffled, order = epoch, np.random.default_rng((self._seed, epoch, 0, 1)).permutation(self._length)
            together = order[position * self._batch : (position + 1) * self._batch]
            yield [(int(index), epoch) for index in together[self._part]]


def build_loader(
    dataset: Dataset[Item],
    batches: Batches,
    workers: int,
    device: torch.device | str = "cpu",
    *,
    persistent: bool = False,
) -> DataLoader[Batch]:
    """A loader of the given batches of keys, with worker processes and, for CUDA, pinned memory.

    There are no more workers than batches, and than :func:`process_count` allows.

    Args:
        persistent: the workers outlive an iteration and serve the next one, until :func:`end_workers`.
    """
    count = process_count(workers, len(batches))
    return DataLoader(
        dataset,
        batch_sampler=batches,  # type: ignore[arg-type]
        num_workers=count,
        persistent_workers=persistent and count > 0,
        collate_fn=collate,
        pin_memory=torch.device(device).type == "cuda",
        worker_init_fn=_outlive_signals,
        # Otherwise every loader would take a number from torch's own stream, and a resumed run would fall out of step.
        generator=torch.Generator(),
    )


def fixed_batches(
    dataset: Listed,
    batch: int,
    workers: int,
    device: torch.device | str = "cpu",
    *,
    limit: int | None = None,
    skip: Collection[str] = (),
    part: slice = slice(None),
    persistent: bool = False,
) -> DataLoader[Batch]:
    """All items once and in order, the last batch being smaller.

    Args:
        limit: at most so many batches, of items spread evenly over the data set.
        skip: frames to leave out.
        part: which of the batches are wanted.
        persistent: see :func:`build_loader`.
    """
    indices = [index for index, item in enumerate(dataset.items) if item.frame not in skip]
    if limit is not None and limit * batch < len(indices):
        indices = [indices[position] for position in np.arange(limit * batch) * len(indices) // (limit * batch)]
    batches = [[(index, 0) for index in indices[first : first + batch]] for first in range(0, len(indices), batch)]
    return build_loader(dataset, batches[part], workers, device, persistent=persistent)  # type: ignore[arg-type]


def end_workers(loader: DataLoader[Batch]) -> None:
    """End the workers of a persistent loader."""
    getattr(loader._iterator, "_shutdown_workers", lambda: None)()
    loader._iterator = None


def collate(items: Sequence[Item]) -> Batch:
    """Tensors are stacked, those of :data:`RAGGED` joined, ``skipped`` lists chained; all else becomes a list."""
    batch: Batch = {}
    for name, first in items[0].items():
        values = [item[name] for item in items]
        if name in RAGGED:
            batch[name] = Ragged(torch.cat(values), [len(value) for value in values])
        elif name == "skipped":
            batch[name] = [problem for problems in values for problem in problems]
        else:
            # default_collate stacks right into the memory that is shared with the main process.
            batch[name] = default_collate(values) if isinstance(first, Tensor) else values
    return batch


def to_device(batch: Batch, device: torch.device | str, channels_last: bool = False) -> Batch:
    """A collated batch as the stages want it, on the device.

    Bytes [..., 3, H, W] undergo the ``jitter`` that their items have drawn and become float32 in [0, 1], joined tensors
    a list. Copies from pinned memory do not wait.
    """
    moved: Batch = {}
    draws = _jittering(batch, device)
    for name, value in batch.items():
        if name == "jitter":
            continue
        if isinstance(value, Ragged):
            moved[name] = list(value.values.to(device, non_blocking=True).split(value.counts))
        elif isinstance(value, Tensor):
            value = value.to(device, non_blocking=True)
            if value.dtype == torch.uint8:
                if draws is not None:
                    value = colour_jitter(value.reshape(len(value), -1, *value.shape[-3:]), draws).view(value.shape)
                value = _unit_range(value, channels_last)
            moved[name] = value
        else:
            moved[name] = value
    return moved


def prefetch(
    loader: Iterable[Batch], device: torch.device | str = "cpu", channels_last: bool = False
) -> Iterator[Batch]:
    """Batches on the device (see :func:`to_device`); on CUDA the next one is copied while this one is used.

    Items that were skipped are warned of, each file once.

    Raises:
        DataError: as raised by the data set, without the traceback of its worker process.
    """
    device = torch.device(device)
    batches = _announced(loader)
    if device.type != "cuda":
        for batch in batches:
            yield to_device(batch, device, channels_last)
        return
    stream = torch.cuda.Stream(device)

    def load() -> Batch | None:
        batch = next(batches, None)
        if batch is None:
            return None
        with torch.cuda.stream(stream):
            return to_device(batch, device, channels_last)

    ahead = load()
    while ahead is not None:
        current = torch.cuda.current_stream(device)
        current.wait_stream(stream)
        for value in ahead.values():
            for tensor in value if isinstance(value, list) else [value]:
                if isinstance(tensor, Tensor):
                    tensor.record_stream(current)
        batch, ahead = ahead, load()
        yield batch


def _jittering(batch: Batch, device: torch.device | str) -> Tensor | None:
    """What a batch has drawn, on the device; None where all items stay as they are. The draws are on the host."""
    draws: Tensor | None = batch.get("jitter")
    if draws is None or not bool((draws[:, len(KINDS)] >= 0).any()):
        return None
    return draws.to(device, non_blocking=True)


def _unit_range(images: Tensor, channels_last: bool) -> Tensor:
    flat = images.flatten(0, -4)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return flat.to(torch.float32, memory_format=layout).div_(255).unflatten(0, images.shape[:-3])


def _announced(loader: Iterable[Batch]) -> Iterator[Batch]:
    iterator, known = iter(loader), set()
    kept = getattr(loader, "persistent_workers", False)
    try:
        while (batch := next(iterator, None)) is not None:
            for problem in batch.get("skipped", ()):
                if problem not in known:
                    known.add(problem)
                    warnings.warn(f"left out: {problem}", stacklevel=2)
            yield batch
    except DataError as error:
        # From a worker process the message arrives at the end of its traceback.
        raise DataError(str(error).rsplit(f"{DataError.__name__}: ", 1)[-1].strip()) from None
    finally:
        # An exception keeps the loader's iterator alive in a reference cycle, and its processes with it, until some
        # later garbage collection ends them in the wrong place.
        if not kept:
            getattr(iterator, "_shutdown_workers", lambda: None)()


def _outlive_signals(worker: int) -> None:
    """Ctrl-C and a batch system's SIGTERM reach every process; the main one saves first and then ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_obey_parent, daemon=True).start()


def _obey_parent() -> None:
    """End this process at a SIGTERM of its parent, which would wait for it in vain otherwise; no other counts."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
