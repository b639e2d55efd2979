"""Proposals stage: objects by what stands on the road and how it moves, without a network that finds them.

For footage from a road whose depth is known from the first: the stages ``slots`` and ``detector`` ask the residual
motion alone, which is strongest where the depth is wrong (:mod:`mcd.masks.proposals` says what is asked here). Not in
the paper. Consumes images and ``predictions``. Leaves ``proposals/SPLIT/CITY/FRAME.npz``, objects with their scores,
and which of them move, for :class:`mcd.masks.source.DiscoveredMasks`; the stage ``instances`` follows them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mcd import world
from mcd.data import Batch
from mcd.errors import NothingToLearnError
from mcd.files import frame_path
from mcd.masks.detections import FrameDetections, read_counts, summarise
from mcd.masks.packed import load_arrays
from mcd.masks.proposals import look, no_objects, propose
from mcd.nets.layers import widen
from mcd.run.checkpoint import find_weights
from mcd.run.context import Context
from mcd.scene.poses import predict_poses, without_own_vehicle
from mcd.scene.predictions import ScenePredictions
from mcd.stages.stage import Preparation

_MOVES, _ROAD, _TOLD = "moves", "road", "told"


class ProposalsPreparation(Preparation):
    name = "proposals"

    def __init__(self, context: Context):
        super().__init__(context)
        self._predictions = ScenePredictions(context)
        self._nets: dict[str, nn.Module] = {}

    def prepare(self, should_stop: Callable[[], bool]) -> dict[str, Any]:
        facts: dict[str, Any] = {}
        init = self.config.proposals.init
        if init is not None:
            path = find_weights(init)
            self._nets = {role: self.context.frozen(role, path) for role in ("depth", "pose")}
        for split in ("train", "val"):
            dataset = self.frames(split, None)
            for batch in self.each_batch(dataset, split, self.config.proposals.batch, ".npz", should_stop):
                self._find(split, batch)
            facts[split] = world.from_first(partial(self._summary, split, [item.frame for item in dataset.items]))
        if not facts["train"].get("moving"):
            raise NothingToLearnError(_nothing_found(facts["train"]))
        return facts

    def _find(self, split: str, batch: Batch) -> None:
        """Write the objects of a batch of frames."""
        scene = self._asked(batch) if self._nets else self._stored(split, batch["frame"])
        for index, frame in enumerate(batch["frame"]):
            depth, poses = scene[index]
            seen = look(
                batch["reference"][index].float().cpu(),
                batch["sources"][index].float().cpu(),
                depth,
                batch["K"][index].cpu().numpy(),
                poses,
                self.config.proposals,
                own=batch["own"][index, 0].cpu().numpy() if "own" in batch else None,
            )
            found = no_objects(depth.shape) if seen is None else propose(seen, depth, self.config.proposals)
            more = {_MOVES: found.moves, _ROAD: seen is not None, _TOLD: seen is not None and seen.told.any()}
            FrameDetections(torch.from_numpy(found.masks), torch.from_numpy(found.scores)).save(
                frame_path(self.folder, split, frame), **{name: np.array(value) for name, value in more.items()}
            )

    def _stored(self, split: str, frames: Sequence[str]) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Depth [H,W] and T_src_ref [S,4,4] of every frame, by the nets of the scene stage."""
        found = [self._predictions.stored(split, frame) for frame in frames]
        return [(prediction.depth[0], prediction.poses) for prediction in found]

    @torch.no_grad()
    def _asked(self, batch: Batch) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """The same by the nets of ``proposals.init``."""
        with self.context.networks():
            depth = widen(self._nets["depth"](batch["reference"])[0])
        poses = predict_poses(self.context, self._nets["pose"], *without_own_vehicle(batch))
        return list(zip(depth[:, 0].cpu().numpy(), poses.cpu().numpy(), strict=True))

    def _summary(self, split: str, frames: list[str]) -> dict[str, int]:
        facts = summarise(self.folder, split, frames)
        counts = Counter[str]()
        for frame in read_counts(self.folder / f"{split}.csv"):
            moves, road, told = load_arrays(frame_path(self.folder, split, frame), _MOVES, _ROAD, _TOLD)
            counts.update({"moving": int(moves.sum()), "with_road": int(road), "with_motion": int(told)})
        return facts | dict(counts)


def _nothing_found(train: dict[str, int]) -> str:
    frames, road, told = train["frames"], train.get("with_road", 0), train.get("with_motion", 0)
    return (
        "stage proposals: nothing that stands on the road moves by itself; of "
        f"{frames} training frames {frames - road} show no road, and in {road - told} the camera hardly moves"
    )
