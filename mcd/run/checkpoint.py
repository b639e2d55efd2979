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
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from mcd.errors import McdError
from mcd.files import atomic_path

_Side = Annotated[int, Field(ge=1, le=2**20)]
_Share = Annotated[float, Field(ge=-1e6, le=1e6)]

WEIGHTS = "weights.safetensors"
METADATA = "mcd"
START = Path(__file__).parents[1] / "weights" / "start.safetensors"
"""Depth and pose nets trained on rendered roads: what own footage starts from."""
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
                wrongly shaped tensors are listed; or a number is not finite.
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
        spoilt = [key for key, tensor in stored.items() if not _usable(tensor, own[key])]
        if spoilt:
            more = f" and {len(spoilt) - 1} more of its {len(stored)} tensors are" if len(spoilt) > 1 else " is"
            raise CheckpointError(f"{self.path}: of the {role} net '{name}' {spoilt[0]}{more} not finite")
        net.load_state_dict(stored)


def _usable(stored: Tensor, own: Tensor) -> bool:
    """Whether a stored tensor is finite, as the net will hold it."""
    return not own.is_floating_point() or bool(torch.isfinite(stored.to(own.dtype)).all())


def save_weights(
    path: Path | str,
    nets: Mapping[str, nn.Module],
    names: Mapping[str, str],
    metadata: Mapping[str, Any],
    *,
    half: bool = False,
) -> None:
    """Write the nets' tensors, and as metadata one JSON object of ``metadata`` and the nets' names, atomically.

    ``half`` rounds floating-point tensors to float16, which is enough to start from and to predict with.
    """
    tensors = {role: net.state_dict() for role, net in nets.items()}
    if half:
        tensors = {
            role: {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in found.items()}
            for role, found in tensors.items()
        }
    save_tensors(path, tensors, names, metadata)


def save_tensors(
    path: Path | str,
    tensors: Mapping[str, Mapping[str, Tensor]],
    names: Mapping[str, str],
    metadata: Mapping[str, Any],
) -> None:
    """Write tensors by net and key, as :func:`save_weights` does those of nets."""
    flat = {
        f"{role}.{key}": tensor.detach().cpu().contiguous()
        for role, found in tensors.items()
        for key, tensor in found.items()
    }
    # One entry: safetensors writes several in any order, and equal weights should be equal files.
    described = {METADATA: json.dumps({"nets": dict(names), **metadata})}
    # Serialised in memory: safetensors writes through a memory map, which on a full disk is a bus error.
    data = save(flat, described)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def load_weights(path: Path | str, *, tensors: bool = True) -> Weights:
    """Read a weights file; without ``tensors`` only what it says of itself.

    Raises:
        CheckpointError: the file is missing, truncated or no safetensors file.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"weights file {path} does not exist")
    found: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            described = (file.metadata() or {}).get(METADATA, "{}")
            for name in file.keys() if tensors else ():
                role, _, key = name.partition(".")
                found.setdefault(role, {})[key] = file.get_tensor(name)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} is no readable safetensors file: {error}") from error
    try:
        about = _About.model_validate_json(described)
    except ValidationError as error:
        problem = error.errors()[0]
        key = "".join(f", {part}" if not place else f".{part}" for place, part in enumerate(problem["loc"]))
        raise CheckpointError(
            f"{path}: its metadata '{METADATA}' say nothing usable of its nets{key}: {problem['msg']}"
        ) from None
    return Weights(path, about.nets, about.size, about.model_dump(), found)


class _About(BaseModel):
    """What is written beside weights; other things may be."""

    model_config = ConfigDict(extra="allow", strict=True)
    nets: dict[str, str] = {}
    size: Annotated[tuple[_Side, _Side], Field(strict=False)] | None = None
    magnify: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    hide_depth: Annotated[float, Field(ge=0, lt=1)] = 0.0
    camera: Annotated[tuple[_Share, _Share, _Share, _Share], Field(strict=False)] | None = None
    """fx, fy, cx, cy in terms of width and height."""


def find_weights(place: Path | str, stage: str | None = None) -> Path:
    """The weights file meant by a run folder, a stage folder or a file.

    Args:
        place: what the user named; ``start`` is the start that comes with mcd, unless there is something of that name.
        stage: for a run folder, the stage to take; None takes the best depth net there is (final, then scene).

    Raises:
        CheckpointError: nothing is there, naming what was looked for.
    """
    place = Path(place)
    if place.is_file():
        return place
    if place == Path("start") and not place.exists() and START.is_file():
        return START
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
        try:
            with temporary.open("wb") as file:
                torch.save(dict(state), file)
        except RuntimeError as error:
            # What torch's zip writer makes of a full disk.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def load_state(path: Path | str) -> dict[str, Any] | None:
    """The resumable state, or None where there is none.

    Raises:
        CheckpointError: the file is there but cannot be read.
    """
    path = Path(path)
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise ValueError(f"it holds {type(state).__name__}")
    except Exception as error:  # torch.load raises whatever the broken bytes lead to
        said = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"{path} cannot be read ({said}); delete it to start the stage again") from error
    return state
