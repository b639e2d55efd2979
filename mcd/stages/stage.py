"""What every stage shares: where it runs, its nets, and the few methods the training loop calls."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mcd import world
from mcd.config import Augment, Data, Schedule
from mcd.data import Batch, FrameDataset, fixed_batches, open_reader, prefetch
from mcd.losses import SmoothnessLoss, ViewSynthesisLoss
from mcd.masks.source import mask_source
from mcd.run.checkpoint import WEIGHTS, CheckpointError, load_weights, save_weights
from mcd.run.context import Context
from mcd.run.progress import progress

Outputs = dict[str, Any]
"""What the networks of a stage return: tensors, or lists of tensors."""


class Stage(ABC):
    """One stage of a run: it consumes what earlier stages left in the run folder, and leaves its own."""

    name: str

    def __init__(self, context: Context):
        self.context = context
        self.config = context.config
        self.folder = context.run.stage(self.name)
        self.masks = mask_source(context.run)

    @classmethod
    def parts(cls, context: Context) -> Iterator[Stage]:
        """What runs one after the other, each made when those before are finished; the last one has the stage's facts.

        Parts whose name is not the stage's leave a ``done.json`` of their own.
        """
        yield cls(context)

    def frames(self, split: str, augment: Augment | None, **options: Any) -> FrameDataset:
        reader = open_reader(self.data, split)
        return FrameDataset(reader, self.data, augment=augment, seed=self.config.seed, **options)

    @property
    def data(self) -> Data:
        """With the camera that the scene stage has learned, if it is not this stage that learns it."""
        return self.config.data if self.name == "scene" else self.context.data

    def each_batch(
        self,
        dataset: FrameDataset,
        split: str,
        batch: int,
        suffix: str,
        should_stop: Callable[[], bool],
        folder: Path | None = None,
    ) -> Iterator[Batch]:
        """Batches of the frames whose file ``FOLDER/SPLIT/FRAME + suffix`` is still missing, with a progress bar.

        The folder is the stage's own, if no other is given.
        """
        place = (folder or self.folder) / split

        def is_done(frame: str) -> bool:
            return (place / f"{frame}{suffix}").is_file()

        return self.batches_left(dataset, split, batch, is_done, should_stop)

    def batches_left(
        self,
        dataset: FrameDataset,
        split: str,
        batch: int,
        is_done: Callable[[str], bool],
        should_stop: Callable[[], bool],
    ) -> Iterator[Batch]:
        """Batches of the frames that are not done, with a progress bar; of many processes each gets its share.

        A batch is left out, or given away, only as a whole: its composition, and so the last bit of every result, does
        not depend on where an earlier run was killed, nor on the number of processes. When the last one is used up,
        all processes have used up theirs.
        """
        config, frames = self.config, [item.frame for item in dataset.items]
        batches = [frames[first : first + batch] for first in range(0, len(frames), batch)]
        left = world.from_first(
            lambda: [number for number, together in enumerate(batches) if not all(map(is_done, together))]
        )
        mine = {frame for number in left[world.rank() :: world.size()] for frame in batches[number]}
        others = set(frames) - mine
        loader = fixed_batches(dataset, batch, config.data.workers, self.context.device, skip=others)
        done = len(frames) - sum(len(batches[number]) for number in left)
        with progress(len(frames), f"{self.name} {split}", "image", done) as bar:
            loaded = prefetch(loader, self.context.device, config.channels_last)
            for first in range(0, len(left), world.size()):
                if first + world.rank() < len(left):
                    yield next(loaded)
                bar.update(sum(len(batches[number]) for number in left[first : first + world.size()]))
                if world.any_of(should_stop()):
                    raise KeyboardInterrupt


class Preparation(Stage):
    """A stage without training: it writes files for every frame of every split."""

    @abstractmethod
    def prepare(self, should_stop: Callable[[], bool]) -> dict[str, Any]:
        """Write the files; returns facts for ``done.json``. Files that are there already are kept."""


class TrainingStage(Stage):
    """A stage that trains ``nets``. The loop in ``mcd.train`` calls these methods and nothing else."""

    schedule: Schedule
    roles: tuple[str, ...]
    """Nets that this stage trains and saves."""
    of_objects: bool = False
    """Whether it learns from single objects: where too few are found, the run ends without it."""
    graphable: bool = False
    """Whether its steps are the same but for batch and learning rate, and the host waits in none: for CUDA graphs."""
    first_epoch: int = 0
    """What its epochs are counted from: parts that differ in it see equal items in another order, otherwise drawn."""

    def __init__(self, context: Context):
        super().__init__(context)
        torch.manual_seed(self.config.seed)
        pretrained = self.config.nets.pretrained and self.from_scratch()
        self.nets: dict[str, nn.Module] = {role: context.build(role, pretrained=pretrained) for role in self.roles}
        self.steps_per_epoch = 1
        loss = self.config.loss
        self.view_synthesis = ViewSynthesisLoss(
            mask_invalid=loss.mask_invalid, ssim_weight=loss.ssim, l1_weight=loss.l1, c1=loss.c1, c2=loss.c2
        )
        self.smoothness = SmoothnessLoss()

    @abstractmethod
    def dataset(self, split: str, augment: Augment | None) -> FrameDataset: ...

    @abstractmethod
    def forward(self, batch: Batch, step: int) -> Outputs:
        """Run the networks."""

    @abstractmethod
    def loss(self, batch: Batch, outputs: Outputs, step: int) -> dict[str, Tensor]:
        """Scalar loss terms; ``total`` is what is minimised."""

    def from_scratch(self) -> bool:
        """Whether the nets start from nothing else (so that ImageNet weights are of use)."""
        return False

    def initialise(self) -> None:
        """Load what training starts from; called once, before the first step of a fresh stage."""

    def look_again(self, step: int) -> bool:
        """Asked before every step: whether what the data sets say changes with it, so that they are made anew."""
        return False

    def phase(self, step: int) -> int:
        """Phases have an optimiser each; only weights of the last phase can be selected."""
        return 0

    @property
    def last_phase(self) -> int:
        return self.phase(2**62)

    def active(self, step: int) -> Sequence[str]:
        """Roles optimised at this step."""
        return self.roles

    def rate(self, role: str) -> float:
        """Learning rate of a net, as a multiple of the schedule's."""
        return 1.0

    def ramp(self, step: int, begin: float | None, end: float | None) -> float | None:
        """0 at the moment ``begin`` of the schedule, 1 from ``end`` on; None before it, and where there is none."""
        if begin is None or end is None:
            return None
        first, last = (self.schedule.in_steps(when, self.steps_per_epoch) for when in (begin, end))
        if step < first:
            return None
        return min((step - first) / (last - first), 1.0) if last > first else 1.0

    def optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """The optimiser of a phase; fused, so that it can leave out a step that is not finite."""
        return torch.optim.Adam(groups, lr=self.schedule.lr, fused=True)

    def set_mode(self, step: int) -> None:
        """Train mode for the optimised nets; eval mode for the others, and no gradient, so that they cost no graph."""
        active = self.active(step)
        for role, net in self.nets.items():
            net.train(role in active).requires_grad_(role in active)

    def export(self, should_stop: Callable[[], bool]) -> dict[str, Any]:
        """After training: write what later stages read, with the selected weights; returns facts for ``done.json``.

        Files that are there already are kept. Raises KeyboardInterrupt where it is to stop.
        """
        return {}

    def photometric(
        self,
        reference: Tensor,
        sources: Tensor,
        depths: Sequence[Tensor],
        K: Tensor,
        T_src_ref: Tensor,
        motion: Tensor | None = None,
    ) -> Tensor:
        """`mcd.ops.view_synthesis_loss` over the pixels that count in all processes.

        Each scale divides by a number of pixels of its own, so that many processes need each scale's loss apart.
        """
        if world.size() == 1:
            return self.view_synthesis(reference, sources, depths, K, T_src_ref, motion).loss
        found = [self.view_synthesis(reference, sources, [depth], K, T_src_ref, motion) for depth in depths]
        counts = torch.stack([one.auto_mask.sum(dtype=torch.float64) + 1e-10 * one.auto_mask.numel() for one in found])
        return world.part_of_mean(torch.stack([one.loss for one in found]), counts).mean()

    def watched(self, outputs: Outputs) -> Mapping[str, Tensor]:
        """Scalars of what the networks returned that are logged beside the loss terms, by name."""
        return {}

    def pictures(self, batch: Batch, outputs: Outputs) -> Mapping[str, Tensor]:
        """Pictures of the first sample, [3,H,W] in [0,1], by name."""
        return {}

    def load(self, path: Path, roles: Sequence[str] | None = None) -> None:
        """Load ``roles`` (default: those of the stage that the file holds) from a weights file.

        Raises:
            CheckpointError: the file holds other architectures than are configured, or none of the stage's nets.
        """
        weights = load_weights(path)
        found = [role for role in self.roles if role in weights.tensors]
        if not found:
            raise CheckpointError(f"{path} holds none of the nets of stage {self.name}: {', '.join(self.roles)}")
        for role in found if roles is None else roles:
            weights.load_into(role, self.nets[role], getattr(self.config.nets, role))

    def save_weights(self, step: int, score: float | None) -> None:
        """Write what later stages read, in the first process."""
        if world.is_first():
            names = {role: getattr(self.config.nets, role) for role in self.nets}
            save_weights(self.folder / WEIGHTS, self.nets, names, self.facts() | {"step": step, "score": score})

    def facts(self) -> dict[str, Any]:
        """What is written beside the weights."""
        return {"stage": self.name, "size": self.config.data.size, "config": self.config.digest()}
