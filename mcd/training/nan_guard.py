"""What becomes of a training step whose loss or gradient is not finite."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from tqdm import tqdm

from mcd.errors import McdError


class TrainingDivergedError(McdError, RuntimeError):
    """A loss or gradient is not finite; the message names the batch."""


class NanGuard:
    """Keeps a step whose loss or gradient is not finite from reaching the weights, and names its batch.

    The decision is taken on the device (the fused optimiser skips the update); the host looks only in
    :meth:`report`. Buffers such as batch-norm statistics are put back as they were.
    """

    def __init__(self, action: str, device: torch.device):
        self.skipped = 0
        self._action = action
        self._fine = torch.zeros((), device=device)
        self._seen: list[tuple[int, list[str], Tensor]] = []
        self._buffers: list[Tensor] = []

    def remember(self, nets: dict[str, nn.Module]) -> None:
        self._buffers = [buffer.clone() for buffer in _float_buffers(nets)]

    def check(
        self, step: int, frames: list[str], loss: Tensor, norms: list[Tensor], nets: dict[str, nn.Module]
    ) -> Tensor:
        """1 where the step must be skipped, else 0, as the fused optimiser wants it."""
        values = torch.stack([loss.detach(), *norms])
        bad = (~torch.isfinite(values)).any().to(self._fine.dtype)
        for buffer, before in zip(_float_buffers(nets), self._buffers, strict=True):
            buffer.copy_(torch.where(bad > 0, before, buffer))
        self._seen.append((step, frames, bad))
        return bad

    def report(self) -> None:
        """Look at the steps since the last call.

        Raises:
            TrainingDivergedError: a step was not finite and the action is "stop".
        """
        flags = torch.stack([bad for _, _, bad in self._seen]).tolist() if self._seen else []
        for (step, frames, _), bad in zip(self._seen, flags, strict=True):
            if bad:
                what = f"loss or gradient of step {step + 1} is not finite; batch: {', '.join(frames)}"
                if self._action == "stop":
                    raise TrainingDivergedError(
                        f"{what}. The weights are as they were before it; on_nan=skip leaves it out"
                    )
                tqdm.write(f"skipped: {what}")
                self.skipped += 1
        self._seen = []


def _float_buffers(nets: dict[str, nn.Module]) -> Iterator[Tensor]:
    return (buffer for net in nets.values() for buffer in net.buffers() if buffer.is_floating_point())
