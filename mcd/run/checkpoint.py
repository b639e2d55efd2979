"""Atomic files, weights as safetensors, and the resumable state of a stage.

``weights.safetensors`` holds the tensors of every net of a stage under the net's name (``depth.encoder…``); its
metadata say which nets they are, at which size they were trained and by which config. ``last/state.pt`` is all
that a stage needs to go on as if it had never stopped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from mcd.errors import McdError
from mcd.files import atomic_path

WEIGHTS = "weights.safetensors"
METADATA = "mcd"
# Where the net that predicts depth of a whole image is looked for in a run, best first.
DEPTH_STAGES = ("final", "scene", "control")


class CheckpointError(McdError, RuntimeError):
    """A checkpoint that is missing, broken or of another net; the message names the file."""


@dataclass(frozen=True)
class Weights:
    """Tensors of one or several nets, by net and state-dict key."""

    path: Path
    nets: dict[str, str]
    """Architecture of each net: ``{"depth": "light", …}``."""
    size: tuple[int, int] | None
    metadata: dict[str, Any]
    """What else was written beside them."""
    tensors: dict[str, dict[str, Tensor]]

    def load_into(self, role: str, net: nn.Module, name: str) -> None:
        """Load the tensors of ``role`` ("depth", "pose" …) into ``net``, an architecture called ``name``.

        Raises:
            CheckpointError: there is no such net, or it is another architecture; missing, unexpected and
                wrongly shaped tensors are listed.
        """
        if role not in self.tensors:
            raise CheckpointError(f"{self.path} holds no {role} net (it holds {', '.join(self.tensors) or 'nothing'})")
        if self.nets.get(role, name) != name:
            raise CheckpointError(f"{self.path}: the {role} net is '{self.nets[role]}', but '{name}' is configured")
        own, stored = net.state_dict(), self.tensors[role]
        problems = [f"missing {key}" for key in own if key not in stored]
        problems += [f"unexpected {key}" for key in stored if key not in own]
        problems += [
            f"{key} is {list(stored[key].shape)}, should be {list(own[key].shape)}"
            for key in own
            if key in stored and stored[key].shape != own[key].shape
        ]
        if problems:
            shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
            raise CheckpointError(f"{self.path} does not fit the {role} net '{name}': {shown}")
        net.load_state_dict(stored)


def save_weights(
    path: Path | str, nets: Mapping[str, nn.Module], names: Mapping[str, str], metadata: Mapping[str, Any]
) -> None:
    """Write the nets' tensors, and as metadata one JSON object of ``metadata`` and the nets' names, atomically."""
    tensors = {
        f"{role}.{key}": tensor.detach().cpu().contiguous()
        for role, net in nets.items()
        for key, tensor in net.state_dict().items()
    }
    # One entry: safetensors writes several in any order, and equal weights should be equal files.
    described = {METADATA: json.dumps({"nets": dict(names), **metadata})}
    # Serialised in memory: safetensors writes through a memory map, which on a full disk is a bus error.
    data = save(tensors, described)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def load_weights(path: Path | str) -> Weights:
    """Read a weights file.

    Raises:
        CheckpointError: the file is missing, truncated or no safetensors file.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"weights file {path} does not exist")
    tensors: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get(METADATA, "{}"))
            for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
                role, _, key = name.partition(".")
                tensors.setdefault(role, {})[key] = file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is no readable safetensors file: {error}") from error
    size = metadata.get("size")
    return Weights(path, metadata.get("nets", {}), (size[0], size[1]) if size else None, metadata, tensors)


def find_weights(place: Path | str, stage: str | None = None) -> Path:
    """The weights file meant by a run folder, a stage folder or a file.

    Args:
        place: what the user named.
        stage: for a run folder, the stage to take; None takes the best depth net there is (final, then scene).

    Raises:
        CheckpointError: nothing is there, naming what was looked for.
    """
    place = Path(place)
    if place.is_file():
        return place
    if not place.exists():
        raise CheckpointError(f"checkpoint {place} does not exist")
    candidates = [place / WEIGHTS, *(place / name / WEIGHTS for name in ([stage] if stage else DEPTH_STAGES))]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise CheckpointError(f"{place} holds no weights; looked for {', '.join(str(c) for c in candidates)}")


def save_state(path: Path | str, state: Mapping[str, Any]) -> None:
    """Write the resumable state of a stage atomically (one file, so it can never be half of two moments)."""
    with atomic_path(path) as temporary:
        torch.save(dict(state), temporary)


def load_state(path: Path | str) -> dict[str, Any] | None:
    """The resumable state, or None where there is none.

    Raises:
        CheckpointError: the file is there but cannot be read.
    """
    path = Path(path)
    if not path.exists():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever the broken bytes lead to
        raise CheckpointError(f"{path} cannot be read ({error}); delete it to start the stage again") from error
