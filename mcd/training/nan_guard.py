"""What becomes of a training step whose loss or gradient is not finite."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from tqdm import tqdm

from mcd import world
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
        self._seen: list[tuple[int, list[str], Tensor]] = []
        self._buffers: list[Tensor] = []
        self._before = torch.empty(0, device=device)

    @torch.no_grad()
    def remember(self, nets: dict[str, nn.Module]) -> None:
        self._buffers = [buffer for net in nets.values() for buffer in net.buffers() if buffer.is_floating_point()]
        self._before = self._flat()

    @torch.no_grad()
    def check(self, loss: Tensor, norms: list[Tensor]) -> Tensor:
        """1 where the step must be skipped, else 0, as the fused optimiser wants it."""
        values = torch.stack([loss, *norms])
        # Of what is finite that is 0, else NaN, which counts as true.
        bad = (values - values).any()
        if self._buffers:
            kept = torch.where(bad, self._before, self._flat()).split([buffer.numel() for buffer in self._buffers])
            shaped = [
                part if buffer.ndim == 1 else part.view(buffer.shape)
                for part, buffer in zip(kept, self._buffers, strict=True)
            ]
            torch._foreach_copy_(self._buffers, shaped)
        return bad.to(torch.float32)

    def note(self, step: int, frames: list[str], bad: Tensor) -> None:
        """What :meth:`check` found of the batch of a step, for :meth:`report`."""
        self._seen.append((step, frames, bad))

    def _flat(self) -> Tensor:
        """All buffers after one another: one operator in place of one for each."""
        return torch.cat([buffer.flatten() for buffer in self._buffers]) if self._buffers else self._before

    def report(self) -> None:
        """Look at the steps since the last call. The verdict is that of all processes, whose batches it names.

        Raises:
            TrainingDivergedError: a step was not finite and the action is "stop".
        """
        flags = torch.stack([bad for _, _, bad in self._seen]).tolist() if self._seen else []
        for (step, frames, _), bad in zip(self._seen, flags, strict=True):
            if bad:
                named = ", ".join(frame for part in world.gather(frames) for frame in part)
                what = f"loss or gradient of step {step + 1} is not finite; batch: {named}"
                if self._action == "stop":
                    raise TrainingDivergedError(
                        f"{what}. The weights are as they were before it; on_nan=skip leaves it out"
                    )
                if world.is_first():
                    tqdm.write(f"skipped: {what}")
                self.skipped += 1
        self._seen = []
