"""What the published code gets wrong between masks and labels, each shown on a case where it would fail."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mcd.config import Config, parse_config
from mcd.masks.instances import FrameInstances
from mcd.run.context import Context
from mcd.run.folder import Run
from mcd.scene.residual import residual_motion
from mcd.stages.instances import InstancesPreparation
from mcd.stages.object import ObjectStage
from mcd.stages.pseudo import PseudoPreparation
from mcd.stages.scale import ScaleStage
from mcd.stages.scene import SceneStage

SIZE = (64, 96)
CAMERA = [[60.0, 0, 47.5], [0, 60, 31.5], [0, 0, 1]]


class Answer(nn.Module):
    """A network that answers with a function of its inputs."""

    def __init__(self, answer: Any):
        super().__init__()
        self.answer = answer

    def forward(self, *inputs: Tensor) -> Any:
        return self.answer(*inputs)


def constant_depth(depth: float) -> Answer:
    return Answer(lambda image: [torch.full_like(image[:, :1], depth)])


def no_camera_motion() -> Answer:
    return Answer(lambda first, second: (first.new_zeros(len(first), 3), first.new_zeros(len(first), 3)))


@pytest.fixture
def context(tmp_path, monkeypatch) -> Context:
    config = parse_config({"runs": str(tmp_path), "data": {"size": SIZE}, "loss": {"scales": 1}})
    # Frozen nets of earlier stages, which no test here has trained.
    monkeypatch.setattr(Context, "trained", lambda self, stage, role: constant_depth(9.0 if stage == "scene" else 0.5))
    return Context(config, Run(config), torch.device("cpu"))


def box(rows: slice, columns: slice) -> Tensor:
    mask = torch.zeros(1, *SIZE, dtype=torch.bool)
    mask[:, rows, columns] = True
    return mask


@pytest.mark.parametrize("direction", [(1.0, -1.0), (1.0, 1.0)])
def test_motion_whose_components_cancel_is_motion(context, direction):
    # The published overlap test adds x and y.
    motion = torch.zeros(2, 2, *SIZE)
    motion[:, :, 20:40, 30:60] = torch.tensor(direction).view(2, 1, 1)
    found = residual_motion(
        context,
        Answer(lambda warped, source: motion),
        torch.rand(1, 3, *SIZE),
        torch.rand(1, 2, 3, *SIZE),
        torch.full((1, 1, *SIZE), 5.0),
        torch.tensor([CAMERA]),
        torch.eye(4).expand(1, 2, 4, 4),
    )
    # One pixel inside the patch: at its border the resampling may mix it with what stands still.
    assert torch.allclose(found[0, :, :, 21:39, 31:59], torch.tensor(direction).view(1, 2, 1, 1).expand(2, 2, 18, 28))


@pytest.mark.parametrize("filtered", [False, True])
def test_motion_towards_one_source_only_is_dropped(context, filtered):
    motion = torch.ones(2, 2, *SIZE)
    motion[0, :, :, :48] = 0
    found = residual_motion(
        context,
        Answer(lambda warped, source: motion),
        torch.rand(1, 3, *SIZE),
        torch.rand(1, 2, 3, *SIZE),
        torch.full((1, 1, *SIZE), 5.0),
        torch.tensor([CAMERA]),
        torch.eye(4).expand(1, 2, 4, 4),
        filtered=filtered,
    )
    assert not found[..., :47].any()
    assert found[..., 49:].all()


def test_an_object_without_pixels_does_not_dilute_the_scale_loss(context):
    # The published mean divides by the length of a list of truth values, which is the batch.
    stage = ScaleStage(context)
    stage.nets["scale"] = Answer(lambda image, ground, depth: image.new_full((len(image),), 2.0))
    batch = {
        "reference": torch.rand(2, 3, *SIZE),
        "object_mask": torch.stack((box(slice(10, 30), slice(5, 25)), box(slice(0, 0), slice(0, 0)))),
        "road": torch.ones(2, 1, *SIZE, dtype=torch.bool),
        "draw": torch.full((2,), 0.5),
    }
    both = stage.loss(batch, stage.forward(batch, 0), 0)["total"]
    one = {name: value[:1] for name, value in batch.items()}
    assert both.item() == pytest.approx(stage.loss(one, stage.forward(one, 0), 0)["total"].item(), rel=1e-6)


def test_training_and_labels_see_the_same_ground_around_an_object(context):
    # The published boxes are grown for the labels only.
    seen: list[Tensor] = []

    def remember(image: Tensor, ground: Tensor, depth: Tensor) -> Tensor:
        seen.append(ground)
        return image.new_ones(len(image))

    image, mask = torch.rand(1, 3, *SIZE), box(slice(20, 40), slice(10, 20))
    road = torch.ones(1, 1, *SIZE, dtype=torch.bool)
    stage = ScaleStage(context)
    stage.nets["scale"] = Answer(remember).eval()
    stage.forward({"reference": image, "object_mask": mask[None], "road": road, "draw": torch.zeros(1)}, 0)
    labels = PseudoPreparation(context)
    labels._nets = {"object": context.trained("object", "depth"), "scale": Answer(remember)}
    labels.compose({"reference": image, "road": road, "instances": [mask]})
    assert torch.equal(seen[0], seen[1])


def test_masks_are_measured_without_road_and_keep_their_names(context):
    # The published size test looks at masks with road, and calls them by their position.
    stage = InstancesPreparation(context)
    stage.predictions.nets = {
        "depth": constant_depth(9.0),
        "pose": no_camera_motion(),
        "motion": Answer(lambda warped, source: torch.zeros_like(warped[:, :2])),
    }
    masks = torch.cat((box(slice(10, 40), slice(5, 25)), box(slice(50, 60), slice(60, 90))))
    road = box(slice(50, 60), slice(62, 96))
    batch = {
        "frame": ["city/frame"],
        "reference": torch.rand(1, 3, *SIZE),
        "sources": torch.rand(1, 2, 3, *SIZE),
        "K": torch.tensor([CAMERA]),
        "instances": [masks],
        "ids": [[3, 7]],
        "road": road[None],
    }
    stage.process("train", batch)
    found = FrameInstances.load(stage.folder / "train" / "city" / "frame.npz")
    assert found.ids.tolist() == [3, 7]
    # 30 x 20 pixels are enough; of 10 x 30, two columns are no road.
    assert found.large.tolist() == found.triplet.tolist() == [True, False]
    assert np.array_equal(found.masks[:, 1], (masks & ~road).numpy())


def test_smoothness_does_not_depend_on_how_much_of_the_image_an_object_fills(context):
    # The published mean disparity is taken over the whole image, zeros included.
    stage = ObjectStage(context)
    depth = 1 + torch.rand(1, 1, *SIZE)
    mask = box(slice(16, 48), slice(24, 72))

    def smoothness(depth: Tensor, mask: Tensor) -> float:
        size = depth.shape[-2:]
        batch = {
            "reference": torch.rand(1, 3, *size),
            "sources": torch.rand(1, 2, 3, *size),
            "object_masks": mask.expand(1, 3, *size),
            "K": torch.tensor([CAMERA]),
        }
        outputs = {"depth": depth, "T_src_ref": torch.eye(4).expand(1, 2, 4, 4)}
        return stage.loss(batch, outputs, 0)["smoothness"].item()

    close = smoothness(depth[..., 16:48, 24:72], mask[:, 16:48, 24:72])
    assert smoothness(depth, mask) == pytest.approx(close, rel=1e-5)


@pytest.mark.parametrize("mask_invalid", [True, False])
def test_pixels_that_leave_the_frame_take_part_in_the_published_form_only(tmp_path, mask_invalid):
    config = parse_config(
        {"runs": str(tmp_path), "data": {"size": SIZE}, "loss": {"scales": 1, "mask_invalid": mask_invalid}}
    )
    stage = SceneStage(Context(config, Run(config), torch.device("cpu")))
    # The camera moves so far that every pixel is sought beyond the left edge, which looks like the reference.
    T = torch.eye(4).repeat(1, 2, 1, 1)
    T[..., 0, 3] = -50
    sources = torch.zeros(1, 2, 3, *SIZE)
    sources[..., :2] = 0.6
    batch = {"reference": torch.full((1, 3, *SIZE), 0.5), "sources": sources, "K": torch.tensor([CAMERA])}
    outputs = {"depths": [torch.full((1, 1, *SIZE), 5.0)], "T_src_ref": T}
    photometric = stage.loss(batch, outputs, 0)["photometric"].item()
    assert photometric == pytest.approx(0.0 if mask_invalid else 0.2, abs=1e-3)


def test_no_stage_selects_by_ground_truth_unless_it_is_told_to():
    config = Config()
    for name in ("scene", "object", "scale", "final"):
        assert getattr(config, name).select == "best", name
    assert parse_config({"scene": {"steps": 1, "select": "ground_truth"}}).scene.select == "ground_truth"
