"""The processes of a run: which of them this is, what they add up, and what they agree on.

`torchrun` starts one for each device; without it there is one, and nothing here costs anything. Tensors on a GPU are
added up by NCCL, all else, and what the host has to know, by gloo. A process that ends or stops answering is noticed by
the next thing that the others want of it: at once, or after :func:`patience`.

Everything that is called by all processes has to be called by all, in the same order.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from mcd.errors import McdError

T = TypeVar("T")

PATIENCE, LONG_PATIENCE = "MCD_PATIENCE", timedelta(hours=12)
_FIRST_SPEAKS = timedelta(seconds=3)


class LostProcessError(McdError, RuntimeError):
    """Another process of the run has ended, or does not answer."""


class DifferentProcessesError(McdError, RuntimeError):
    """The processes of a run do not belong together; the message says how they differ."""


@dataclass(frozen=True)
class _World:
    rank: int
    size: int
    store: dist.Store
    patient: dist.ProcessGroup
    """For what process 0 does alone."""
    machine: int = 0
    machines: int = 1


_world: _World | None = None
_alone = 0


def size() -> int:
    """How many processes share the work at hand."""
    return 1 if _world is None or _alone else _world.size


def rank() -> int:
    """Which share of the work at hand is this process's."""
    return 0 if _world is None or _alone else _world.rank


def machine() -> int:
    """Which of the machines of the run this is, from 0, that of the first process."""
    return 0 if _world is None else _world.machine


def machines() -> int:
    """How many machines share the run: with torchrun, agents."""
    return 1 if _world is None else _world.machines


def is_first() -> bool:
    """Whether this is the process that writes, logs and speaks."""
    return _world is None or _world.rank == 0


def launched() -> int:
    """How many processes this one was started with."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def communication() -> str:
    """What this machine's processes would add up tensors by: "gloo", or on GPUs "nccl"; "none" without any."""
    if not dist.is_available():
        return "none"
    return "nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"


def local_rank() -> int:
    """Which of the processes of this machine this is."""
    return int(os.environ.get("LOCAL_RANK", "0")) if launched() > 1 else 0


def patience() -> timedelta:
    """How long a process waits for the others: 10 minutes, or the seconds of ``MCD_PATIENCE``."""
    text = os.environ.get(PATIENCE, "600")
    try:
        seconds = float(text)
        if not 0 < seconds <= LONG_PATIENCE.total_seconds():
            raise ValueError
    except ValueError:
        raise LostProcessError(f"{PATIENCE}={text} is no number of seconds above 0 and up to 12 hours") from None
    return timedelta(seconds=seconds)


@contextmanager
def joined() -> Iterator[None]:
    """The processes that were started together, as one run; they leave together, unless there is an error.

    Raises:
        LostProcessError: they do not find each other.
    """
    global _world
    if launched() == 1:
        yield
        return
    wait = patience()
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=wait))
        backend = "cpu:gloo,cuda:nccl" if communication() == "nccl" else "gloo"
        dist.init_process_group(backend, store=dist.PrefixStore("mcd", store), rank=rank, world_size=size, timeout=wait)
        _world = _World(rank, size, store, dist.new_group(backend="gloo", timeout=LONG_PATIENCE))
        # Two agents on one machine count as two.
        places = gather((socket.gethostname(), os.environ.get("GROUP_RANK")))
        known = list(dict.fromkeys(places))
        _world = replace(_world, machine=known.index(places[rank]), machines=len(known))
    except (RuntimeError, ValueError) as error:
        said = str(error).splitlines()[0]
        raise LostProcessError(f"the {launched()} processes of this run do not find each other: {said}") from None
    yield
    wait_for_all()
    dist.destroy_process_group()
    _world = None


@contextmanager
def alone() -> Iterator[None]:
    """Here a process works by itself: nothing is shared, and nobody waited for."""
    global _alone
    _alone += 1
    try:
        yield
    finally:
        _alone -= 1


def total(values: Tensor) -> Tensor:
    """The sum of a tensor over all processes; the tensor itself, where there is one. Without gradient."""
    if size() == 1:
        return values
    values = values.detach().clone(memory_format=torch.contiguous_format)
    with _asking():
        dist.all_reduce(values)
    return values


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return total(values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return total(grads[0])


def differentiable_total(values: Tensor) -> Tensor:
    """:func:`total` with the gradient of what all processes make of it."""
    return values if size() == 1 else _Total.apply(values)


def part_of_mean(mean: Tensor, count: Tensor) -> Tensor:
    """A mean over ``count`` things here, so that the average over the processes is the mean over the things of all.

    Gradients are averaged over the processes: a loss that is a mean over samples needs nothing, as each has equally
    many; one that divides by a number of pixels or objects divides by the number of all processes.

    Args:
        mean, count: of one shape.
    """
    if size() == 1:
        return mean
    count = count.detach().double()
    share = size() * count / total(count).clamp(min=torch.finfo(torch.float64).tiny)
    return mean * share.to(mean.dtype)


def slice_of(count: int) -> slice:
    """This process's share of ``count`` things, which are as many for each."""
    each = count // size()
    return slice(rank() * each, (rank() + 1) * each)


def any_of(flag: bool) -> bool:
    """Whether a flag is set in any process."""
    if size() == 1:
        return flag
    return bool(total(torch.tensor(int(flag))))


def from_first(make: Callable[[], T]) -> T:
    """What the first process makes, for all: it works alone while the others wait, and its errors are everybody's."""
    if size() == 1:
        return make()
    assert _world is not None
    box: list[Any] = [None, None]
    if is_first():
        try:
            with alone():
                box[0] = make()
        except (McdError, OSError, KeyboardInterrupt) as error:
            box[1] = error
    with _asking():
        dist.broadcast_object_list(box, src=0, group=_world.patient)
    if box[1] is not None:
        raise box[1]
    return box[0]


def gather(value: T) -> list[T]:
    """The value of every process, in order."""
    if size() == 1:
        return [value]
    assert _world is not None
    values: list[Any] = [None] * size()
    with _asking():
        dist.all_gather_object(values, value, group=_world.patient)
    return values


def wait_for_all() -> None:
    """Until every process is here."""
    gather(None)


def check_equal(what: str, value: str) -> None:
    """A thing that has to be the same in all processes.

    Raises:
        DifferentProcessesError: it is not.
    """
    found = gather((value, socket.gethostname()))
    others = [number for number, (other, _) in enumerate(found) if other != found[0][0]]
    if others:
        number, (other, host) = others[0], found[others[0]]
        raise DifferentProcessesError(
            f"process {number} on {host} has another {what} than process 0 on {found[0][1]}: {other}, not {found[0][0]}"
        )


def complain(text: str) -> None:
    """A line on stderr, of one process alone: the first if it has one, else whoever has."""
    if not (_world and _has_been_said(_world)) and (_world or os.environ.get("RANK", "0") == "0"):
        print(text, file=sys.stderr, flush=True)


def _has_been_said(world: _World) -> bool:
    try:
        if world.rank > 0:
            with suppress(dist.DistStoreError):  # nobody has, in time
                world.store.wait(["mcd/complaint"], _FIRST_SPEAKS)
        return world.store.add("mcd/complaint", 1) > 1
    except RuntimeError:  # the store has gone with whoever held it
        return False


@contextmanager
def _asking() -> Iterator[None]:
    """Around what needs the other processes."""
    try:
        yield
    except RuntimeError as error:
        _lost(error)


def _lost(error: Exception) -> NoReturn:
    raise LostProcessError(
        f"another process of this run has ended, or has not answered for {patience().total_seconds():g} s; the same "
        f"command goes on from the last checkpoint"
    ) from error
