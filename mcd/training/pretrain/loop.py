"""The loop of pre-training: constant learning rate and a fall at its end, mean weights, a run that can be resumed."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mcd.run.checkpoint import load_state, save_state, save_weights
from mcd.training.pretrain.data import Batch, PretrainError, Settings, ahead

Parts = dict[str, Tensor]
WARM_UP, LOG_EVERY = 100, 20
# An interrupted run may be made longer or shorter.
LENGTH = ("steps", "small", "decay", "shards")
STATE = "last.pt"


@dataclass(frozen=True)
class Task:
    """A net, its parameter groups (``share`` of the learning rate), and the loss of a step's batch."""

    role: str
    name: str
    net: nn.Module
    groups: list[dict[str, Any]]
    batch: Callable[[int], Batch]
    loss: Callable[[Batch], tuple[Tensor, Parts]]


def run(task: Task, out: Path, settings: Settings, save_every: int = 100) -> Path:
    """Train, or go on training, and write the mean weights in half precision; returns their path.

    Raises:
        PretrainError: the folder holds a run with other settings, or a state of something else.
        CheckpointError: its state cannot be read.
    """
    net, state_path, start, before = task.net, out / STATE, 0, 0.0
    optimiser = torch.optim.AdamW(task.groups, weight_decay=1e-4)
    average = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    state = load_state(state_path)
    if state is not None:
        try:
            for name, value in asdict(settings).items():
                if name not in LENGTH and state["settings"][name] != value:
                    raise PretrainError(f"{state_path} is of a run with {name} {state['settings'][name]}, not {value}")
            net.load_state_dict(state["net"])
            optimiser.load_state_dict(state["optimiser"])
            average, start, before = state["average"], state["step"], state["seconds"]
        except PretrainError:
            raise
        except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            said = " ".join(str(error).split())
            raise PretrainError(
                f"{state_path} is no state of this training ({said}); delete it to begin anew"
            ) from None
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    sums: dict[str, float] = {}
    for step, batch in enumerate(ahead(task.batch, start, settings.steps), start):
        share = min(1.0, (step + 1) / WARM_UP, (settings.steps - step) / max(settings.decay * settings.steps, 1))
        for group in optimiser.param_groups:
            group["lr"] = settings.lr * group["share"] * share
        loss, parts = task.loss(batch)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_([p for group in task.groups for p in group["params"]], 1.0)
        optimiser.step()
        _follow(average, net, step)
        for name, value in parts.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach()) / LOG_EVERY
        seconds = before + time.monotonic() - began
        if (step + 1) % LOG_EVERY == 0:
            _log(out / "log.csv", {"step": step + 1, "seconds": round(seconds, 1)} | sums)
            sums = {}
        if (step + 1) % save_every == 0 or step + 1 == settings.steps:
            state = {
                "net": net.state_dict(),
                "optimiser": optimiser.state_dict(),
                "average": average,
                "step": step + 1,
                "seconds": seconds,
                "settings": asdict(settings),
            }
            save_state(state_path, state)
            _write(out / "weights.safetensors", task, average, settings, step + 1, seconds)
    return out / "weights.safetensors"


def _follow(average: dict[str, Tensor], net: nn.Module, step: int) -> None:
    """A mean over the last few hundred steps, which is better than any of them."""
    decay = min(0.998, (step + 1) / (step + 20))
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point():
            average[name].lerp_(tensor, 1 - decay)
        else:
            average[name].copy_(tensor)


def _log(path: Path, row: dict[str, float]) -> None:
    new = not path.exists()
    row = {name: round(value, 5) for name, value in row.items()}
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)
    print(row, flush=True)


def _write(path: Path, task: Task, tensors: dict[str, Tensor], settings: Settings, step: int, seconds: float) -> None:
    kept = task.net.state_dict()
    kept = {name: tensor.clone() for name, tensor in kept.items()}
    task.net.load_state_dict(tensors)
    metadata = {"size": [160, 288], "step": step, "seconds": round(seconds), "settings": asdict(settings)}
    save_weights(path, {task.role: task.net}, {task.role: task.name}, metadata, half=True)
    task.net.load_state_dict(kept)
