"""What the frozen scene nets say of whole frames: computed anew, or kept in the store that ``store`` asks for."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from mcd import world
from mcd.data import Batch, Map
from mcd.data.store import PartOfStore, Prediction, PredictionStore
from mcd.files import DataError
from mcd.nets.layers import widen
from mcd.run.checkpoint import CheckpointError
from mcd.run.context import Context
from mcd.scene.poses import predict_poses, without_own_vehicle
from mcd.scene.residual import homogeneous_motion, pixel_flow, residual_motion


@dataclass(frozen=True)
class ScenePrediction:
    """Of B frames with S sources."""

    depth: Tensor
    """[B,1,H,W]"""
    T_src_ref: Tensor
    """[B,S,4,4]"""
    motion: Tensor
    """[B,S,2,H,W], residual motion, homogeneous (pixel · depth)."""
    flow: Tensor
    """[B,S,2,H,W], the same as a displacement in pixels."""


class ScenePredictions:
    """Predictions for frames as they are on disk: batches must be neither flipped nor jittered.

    With a store, a frame goes through the nets once in a run, whichever stage asks first, and everybody works with
    what the store gives back.
    """

    def __init__(self, context: Context):
        self._context = context
        self.store = open_store(context)

    @cached_property
    def nets(self) -> dict[str, nn.Module]:
        """The scene stage's nets, frozen; loaded when something has to be computed."""
        return {role: self._context.trained("scene", role) for role in ("depth", "pose", "motion")}

    @torch.no_grad()
    def __call__(self, split: str, batch: Batch) -> ScenePrediction:
        """Predictions for ``reference`` and ``sources`` of a batch, whose frames are of ``split``."""
        if self.store is None:
            return self._compute(batch)
        found = [self.store.read(split, frame) for frame in batch["frame"]]
        if any(prediction is None for prediction in found):
            new = self._compute(batch)
            arrays = [tensor.cpu().numpy() for tensor in (new.depth, new.flow, new.T_src_ref)]
            self.store.write(split, {
                frame: Prediction(*(array[index] for array in arrays)) for index, frame in enumerate(batch["frame"])
            })  # fmt: skip
            found = [self.store.read(split, frame) for frame in batch["frame"]]

        def stack(name: str) -> Tensor:
            return torch.from_numpy(np.stack([getattr(prediction, name) for prediction in found])).to(batch["K"])

        depth, flow, T_src_ref = stack("depth"), stack("flow"), stack("poses")
        return ScenePrediction(depth, T_src_ref, homogeneous_motion(flow, depth, batch["K"], T_src_ref), flow)

    def stored(self, split: str, frame: str) -> Prediction:
        """What the store holds of a frame.

        Raises:
            DataError: there is no store, or the frame is not in it.
        """
        prediction = None if self.store is None else self.store.read(split, frame)
        if prediction is None:
            if self.store is None:
                raise DataError("there is no prediction store: set store: sqlite")
            raise DataError(
                f"prediction store {self.store.path} has no frame {frame} of split '{split}': the stages 'predictions' "
                "and 'instances' fill it"
            )
        return prediction

    def depth_label(self, split: str, frame: str) -> dict[str, Map]:
        """The stored depth of a frame as a label ``scene_depth`` [1,H,W]; empty without a store.

        Raises:
            DataError: there is a store, and the frame is not in it.
        """
        return {} if self.store is None else {"scene_depth": Map(self.stored(split, frame).depth)}

    @torch.no_grad()
    def depth(self, batch: Batch) -> Tensor:
        """Depth [B,1,H,W] of ``reference``: the batch's ``scene_depth``, or computed."""
        if "scene_depth" in batch:
            return batch["scene_depth"]
        with self._context.networks():
            return widen(self.nets["depth"](batch["reference"])[0])

    def _compute(self, batch: Batch) -> ScenePrediction:
        context, K = self._context, batch["K"]
        depth = self.depth({"reference": batch["reference"]})
        reference, sources = without_own_vehicle(batch)
        T_src_ref = predict_poses(context, self.nets["pose"], reference, sources)
        floor = context.config.scene.motion_floor
        motion = residual_motion(
            context, self.nets["motion"], reference, sources, depth, K, T_src_ref, floor=floor
        )  # fmt: skip
        return ScenePrediction(depth, T_src_ref, motion, pixel_flow(reference, depth, K, T_src_ref, motion))


def open_store(context: Context) -> PredictionStore | None:
    """The store of a run, if its config asks for one; it belongs to the scene's weights as they are now.

    Where several machines share the run, all processes open it together: what the machines wrote before is one file
    then, and the first machine's; the others get a part each.

    Raises:
        CheckpointError: the scene stage has left no weights.
        DataError: there is a store of other weights, or it cannot be used.
    """
    if context.config.store == "none":
        return None
    weights = context.weights_of("scene")
    if not weights.is_file():
        raise CheckpointError(f"weights file {weights} does not exist")
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    path = context.run.store
    if world.size() > 1 and world.machines() > 1:
        world.wait_for_all()
        world.from_first(lambda: PredictionStore(path, digest).take_in_parts())
        return PartOfStore(path, digest, world.machine()) if world.machine() else PredictionStore(path, digest)
    store = PredictionStore(path, digest)
    if world.machines() == 1:
        store.take_in_parts()  # of a run that was stopped when it had several
    return store
