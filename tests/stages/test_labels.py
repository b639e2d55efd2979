"""From masks to labels: masked objects, composed pseudo depth, and the loss that uses it. Nets are stand-ins."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mcd import ops
from mcd.config import parse_config
from mcd.errors import StageError
from mcd.run.checkpoint import save_weights
from mcd.run.context import Context
from mcd.run.folder import Run
from mcd.stages.final import ControlStage, FinalStage
from mcd.stages.object import masked_images
from mcd.stages.pseudo import PseudoPreparation, corrections
from mcd.stages.scale import predict_scale, scale_inputs

SIZE = (64, 64)


class Constant(nn.Module):
    """A depth net that sees the same everywhere."""

    def __init__(self, depth: float):
        super().__init__()
        self.depth = depth

    def forward(self, image: Tensor) -> list[Tensor]:
        return [torch.full_like(image[:, :1], self.depth)]


class ScaleByWidth(nn.Module):
    """A scale net that says how many columns the object has."""

    def forward(self, image: Tensor, ground: Tensor, object_depth: Tensor) -> Tensor:
        return (object_depth > 0).any(dim=2).sum(dim=(1, 2)).float()


@pytest.fixture
def context(tmp_path) -> Context:
    config = parse_config({"runs": str(tmp_path), "data": {"size": SIZE}, "loss": {"scales": 2}})
    return Context(config, Run(config), torch.device("cpu"))


def boxes(*columns: slice) -> Tensor:
    masks = torch.zeros(len(columns), *SIZE, dtype=torch.bool)
    for mask, where in zip(masks, columns, strict=True):
        mask[10:20, where] = True
    return masks


def test_masking_leaves_the_batch_as_it_is():
    # The published code multiplies the masks into the batch, so that a second call would see black images.
    torch.manual_seed(0)
    batch = {
        "reference": torch.rand(2, 3, *SIZE),
        "sources": torch.rand(2, 2, 3, *SIZE),
        "object_masks": torch.rand(2, 3, *SIZE) > 0.5,
    }
    before = {name: value.clone() for name, value in batch.items()}
    reference, sources = masked_images(batch)
    for name, value in batch.items():
        assert torch.equal(value, before[name]), name
    assert torch.equal(reference == 0, (~batch["object_masks"][:, 1:2]).expand_as(reference))
    assert torch.equal(sources[:, 0], batch["sources"][:, 0] * batch["object_masks"][:, 0:1])
    assert torch.equal(sources[:, 1], batch["sources"][:, 1] * batch["object_masks"][:, 2:3])


def test_objects_are_composed_over_the_scene_in_its_scale_and_the_nearest_wins(context):
    stage = PseudoPreparation(context)
    stage.predictions.nets = {"depth": Constant(30.0)}
    stage._nets = {"object": Constant(0.7), "scale": ScaleByWidth()}
    batch = {
        "reference": torch.rand(2, 3, *SIZE),
        "road": torch.zeros(2, 1, *SIZE, dtype=torch.bool),
        # The narrow object stands before the wide one, by the stand-in's measure.
        "instances": [boxes(slice(0, 20), slice(15, 25)), boxes(slice(40, 45))],
    }
    fused = stage.compose(batch)
    assert fused.shape == (2, 1, *SIZE)
    assert fused[0, 0, 15, 0:15].tolist() == pytest.approx([20.0] * 15, rel=1e-5)
    assert fused[0, 0, 15, 15:25].tolist() == pytest.approx([10.0] * 10, rel=1e-5)
    assert fused[1, 0, 15, 40:45].tolist() == pytest.approx([5.0] * 5, rel=1e-5)
    outside = ~torch.stack([masks.any(dim=0) for masks in batch["instances"]])
    assert torch.equal(fused[:, 0][outside], torch.full((int(outside.sum()),), 30.0))


class Plane(nn.Module):
    """A depth net that sees a road below row 16, and nothing else."""

    def forward(self, image: Tensor) -> list[Tensor]:
        rows = torch.arange(image.shape[-2], dtype=torch.float32)[:, None] - 16
        return [torch.where(rows > 0, 100 / rows.clamp(min=0.1), 80.0).expand_as(image[:, :1]).contiguous()]


def test_all_frames_of_an_object_get_one_ratio_to_the_ground_at_its_foot(tmp_path):
    config = parse_config({
        "runs": str(tmp_path),
        "data": {"kind": "sequence", "size": SIZE, "fov": 70},
        "instances": {"tracks": True},
        "pseudo": {"contact": 0.1},
    })  # fmt: skip
    context = Context(config, Run(config), torch.device("cpu"))
    parts = list(PseudoPreparation.parts(context))
    assert [part.name for part in parts] == ["pseudo/contact", "pseudo"]
    # The same object at rows 20 to 30 and, lower, 30 to 40; the stand-in gives it 20 in both, the road 7.41 and 4.26.
    masks = [boxes(slice(0, 20)).roll(10, dims=1), boxes(slice(0, 20)).roll(20, dims=1)]
    road = torch.zeros(2, 1, *SIZE, dtype=torch.bool)
    road[:, :, 20:] = True
    batch = {"reference": torch.rand(2, 3, *SIZE), "road": road, "instances": masks}
    batch |= {"frame": ["1", "2"], "ids": [[5], [5]]}
    for part in parts:
        part.predictions.nets = {"depth": Plane()}
        part._nets = {"object": Constant(0.7), "scale": ScaleByWidth()}
    parts[0].write("train", batch)
    parts[1]._factors = parts[1]._corrections("train", batch["frame"])
    fused = parts[1].compose(batch)
    for depth, rows, foot in ((fused[0], slice(20, 30), 29.5), (fused[1], slice(30, 40), 39.5)):
        expected = torch.full((10, 20), 1.1 * 100 / (foot - 16))
        assert torch.allclose(depth[0, rows, :20], expected, rtol=1e-4)


def test_a_foot_that_is_not_seen_is_corrected_like_the_rest_of_its_object():
    ratios = {"1": [1.0, 2.0], "2": [1.1, np.nan], "3": [1.5, np.nan]}
    ids = np.array([3, 4])
    found = {frame: (ids, np.array(values, np.float32)) for frame, values in ratios.items()}
    factors = corrections(found, 0.2, shared=True)
    assert factors["1"].tolist() == pytest.approx([1.1, 0.6])
    assert factors["2"].tolist() == pytest.approx([1.0, 0.6])
    assert factors["3"].tolist() == pytest.approx([1.1 / 1.5, 0.6])
    # Without tracks a number names nothing beyond its frame.
    alone = corrections(found, 0.2, shared=False)
    assert alone["3"].tolist() == pytest.approx([1.2 / 1.5, 1.0])
    assert alone["1"].tolist() == pytest.approx([1.0, 0.6])


def test_the_scale_net_sees_ground_outside_the_box_and_a_mean_of_one(context):
    mask = boxes(slice(30, 34))[None, 0:1]
    road = torch.ones(1, 1, *SIZE, dtype=torch.bool)
    scene_depth = torch.full((1, 1, *SIZE), 8.0)
    inputs = scale_inputs(context, scene_depth, Constant(0.4), torch.rand(1, 3, *SIZE), mask, road)
    assert not inputs.ground[mask].any()
    assert inputs.ground[0, 0, 40, 40] == 8.0
    seen = {}

    class Spy(ScaleByWidth):
        def forward(self, image: Tensor, ground: Tensor, object_depth: Tensor) -> Tensor:
            seen.update(ground=ground, object_depth=object_depth)
            return super().forward(image, ground, object_depth)

    assert predict_scale(context, Spy(), inputs).tolist() == [4.0]
    assert seen["object_depth"][mask].mean().item() == pytest.approx(1.0)
    assert not seen["object_depth"][~mask].any()
    assert torch.equal(seen["ground"], inputs.ground + seen["object_depth"])


def test_the_label_adds_its_loss_to_the_final_stage_and_not_to_the_control(context):
    stage = FinalStage(context)
    control = ControlStage(context)
    torch.manual_seed(0)
    batch = {
        "reference": torch.rand(2, 3, *SIZE),
        "sources": torch.rand(2, 2, 3, *SIZE),
        "K": torch.tensor([[50.0, 0, 31.5], [0, 50, 31.5], [0, 0, 1]]).repeat(2, 1, 1),
        "pseudo_depth": torch.rand(2, 1, *SIZE) + 1,
        "dynamic_mask": torch.stack((boxes(slice(10, 30)), torch.zeros(1, *SIZE, dtype=torch.bool))),
    }
    batch["pseudo_depth"][1] = 0  # a frame without a label
    outputs = stage.forward(batch, 0)
    terms, without = stage.loss(batch, outputs, 0), control.loss(batch, outputs, 0)
    fine = ops.scale_invariant_loss(outputs["depths"][0], batch["pseudo_depth"], batch["dynamic_mask"])[0]
    half = nn.functional.interpolate(batch["pseudo_depth"], scale_factor=0.5, mode="bilinear")
    mask = batch["dynamic_mask"][..., ::2, ::2]
    coarse = ops.scale_invariant_loss(outputs["depths"][1], half, mask)[0]
    expected = context.config.final.pseudo_weight * (fine + coarse).item() / 2
    assert terms["pseudo"].item() == pytest.approx(expected, rel=1e-5)
    assert terms["total"].item() == pytest.approx(without["total"].item() + expected, rel=1e-5)
    assert "pseudo" not in without


def test_the_final_stage_does_not_train_without_the_labels_it_is_to_use(context):
    # Every frame without a label counts as one without a moving object.
    with pytest.raises(StageError, match="'pseudo' comes before 'final'"):
        FinalStage(context).dataset("train", None)


def test_the_final_stage_starts_from_the_scene_stage(context):
    scene = FinalStage(context)
    with torch.no_grad():
        for net in scene.nets.values():
            for parameter in net.parameters():
                parameter.add_(0.01)
    folder = context.run.stage("scene")
    save_weights(folder / "weights.safetensors", scene.nets, {"depth": "light", "pose": "light"}, {"size": SIZE})
    stage = FinalStage(context)
    stage.initialise()
    for role, net in scene.nets.items():
        for name, value in net.state_dict().items():
            assert np.array_equal(stage.nets[role].state_dict()[name], value), name
