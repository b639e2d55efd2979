"""Which objects, pixels and colours a stage learns from, and which must not reach its loss."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from mcd.config import Augment, parse_config
from mcd.data import collate, to_device
from mcd.files import write_text
from mcd.masks.instances import FrameInstances
from mcd.run.context import Context
from mcd.run.folder import Run
from mcd.scene.predictions import ScenePredictions
from mcd.scene.residual import keep
from mcd.stages.final import FinalStage
from mcd.stages.object import ObjectStage, shape_loss
from mcd.stages.pseudo import PseudoPreparation
from mcd.stages.scale import ScaleInputs, ScaleStage, scale_inputs, surrounding_box
from mcd.stages.scene import SceneStage

SIZE = (64, 96)
CAMERA = [[60.0, 0, 47.5], [0, 60, 31.5], [0, 0, 1]]
FRAME = "ulm/ulm_000000_000001"
# The objects of the one frame, by (dynamic, large): a column each.
KINDS = ((True, True), (True, False), (False, True), (False, False))


class Answer(nn.Module):
    """A network whose answer is the same for every image."""

    def __init__(self, depth: float):
        super().__init__()
        self.depth = depth

    def forward(self, image: Tensor) -> list[Tensor]:
        return [torch.full_like(image[:, :1], self.depth)]


class Moves(nn.Module):
    """A motion net that sees everything move by one pixel · depth, and the left half ten times as fast."""

    def forward(self, warped: Tensor, source: Tensor) -> Tensor:
        motion = torch.ones_like(warped[:, :2])
        motion[..., : motion.shape[-1] // 2] = 10
        return motion


class Still(nn.Module):
    """A pose net for a camera that stands."""

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        return first.new_zeros(len(first), 3), first.new_zeros(len(first), 3)


def column(kind: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[20:40, 20 * kind + 4 : 20 * kind + 14] = True
    return mask


@pytest.fixture
def context(tmp_path, monkeypatch) -> Context:
    """A run over one triplet whose instances stage is finished; its nets are stand-ins."""
    settings = {"runs": str(tmp_path / "runs"), "loss": {"scales": 1}, "data": {"root": str(tmp_path), "size": SIZE}}
    settings["scene"] = {"steps": 9, "batch": 1, "motion_from": 3, "joint_from": 6, "motion_floor": 5.0}
    config = parse_config(settings)
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE[0], 3 * SIZE[1], 3), dtype=np.uint8)
    (tmp_path / "triplets" / "ulm").mkdir(parents=True)
    Image.fromarray(pixels).save(tmp_path / "triplets" / f"{FRAME}.png")
    write_text(tmp_path / "triplets" / f"{FRAME}_cam.txt", "60,0,47.5,0,60,31.5,0,0,1")
    run = Run(config)
    lines = ["frame,row,id,dynamic,large,triplet,coverage"]
    for row, (dynamic, large) in enumerate(KINDS):
        lines.append(f"{FRAME},{row},{row},{dynamic:d},{large:d},{large:d},0.5")
    masks = np.stack([column(kind) for kind in range(len(KINDS))])
    dynamic, large = (np.array(values) for values in zip(*KINDS, strict=True))
    for split in ("train", "val"):
        write_text(tmp_path / "splits" / f"{split}.txt", FRAME.replace("/", " "))
        (tmp_path / "road_masks" / split / "ulm").mkdir(parents=True)
        Image.fromarray(np.full(SIZE, 255, np.uint8)).save(tmp_path / "road_masks" / split / f"{FRAME}.png")
        write_text(run.stage("instances") / f"{split}.csv", "\n".join(lines) + "\n")
        FrameInstances(
            ids=np.arange(len(KINDS)),
            dynamic=dynamic,
            coverage=np.full(len(KINDS), 0.5, np.float32),
            large=large,
            triplet=large,
            masks=np.repeat(masks[:, None], 3, axis=1),
        ).save(run.stage("instances") / split / f"{FRAME}.npz")
    monkeypatch.setattr(Context, "trained", lambda self, stage, role: Answer(9.0 if stage == "scene" else 0.5))
    return Context(config, run, torch.device("cpu"))


def batch_of(dataset, key=0):
    return to_device(collate([dataset[key]]), "cpu")


def scene_batch() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "reference": torch.rand(1, 3, *SIZE),
        "sources": torch.rand(1, 2, 3, *SIZE),
        "K": torch.tensor([CAMERA]),
    }


def test_motion_below_the_floor_is_dropped_though_it_is_above_the_mean():
    motion = torch.zeros(1, 2, 1, 4)
    motion[0, 0, 0] = torch.tensor([0.3, 0.5, 0.0, 0.0])
    seen = torch.ones(1, 1, 1, 4)
    assert keep(motion, seen, filtered=True, floor=0.4).flatten().tolist() == [False, True, False, False]
    assert keep(motion, seen, filtered=True, floor=0.5).flatten().tolist() == [False, True, False, False]
    assert not keep(motion, seen, filtered=True, floor=0.6).any()


@pytest.mark.parametrize("floor", [5.0, 20.0])
def test_the_scene_stage_and_its_predictions_drop_motion_below_the_configured_floor(context, floor):
    scene = context.config.scene.model_copy(update={"motion_floor": floor})
    context = replace(context, config=context.config.model_copy(update={"scene": scene}))
    stage, batch = SceneStage(context), scene_batch()
    nets = {"depth": Answer(4.0), "pose": Still(), "motion": Moves()}
    stage.nets = dict(nets)
    trained = stage.forward(batch, 6)["motion"]
    predictions = ScenePredictions(context)
    predictions.nets = nets
    predicted = predictions("train", batch).motion
    # 10 · √2 is below 20 and above 5.
    for motion in (trained, predicted):
        assert motion[..., : SIZE[1] // 2].any() == (floor == 5.0)
        assert not motion[..., SIZE[1] // 2 + 1 :].any()


def test_sparsity_begins_with_the_phase_in_which_all_nets_train(context):
    stage, batch = SceneStage(context), scene_batch()
    stage.nets = {"depth": Answer(4.0), "pose": Still(), "motion": Moves()}
    with_sparsity = [step for step in range(9) if "sparsity" in stage.loss(batch, stage.forward(batch, step), step)]
    assert with_sparsity == [6, 7, 8]


def test_the_scale_net_learns_from_large_static_objects_alone(context):
    assert [(item.frame, item.row) for item in ScaleStage(context).dataset("train", None).items] == [(FRAME, 2)]
    assert [item.row for item in ScaleStage(context).dataset("val", None).items] == [2]


def test_the_scale_net_learns_on_the_colours_that_the_frozen_nets_know(context):
    # Flips may come in: they are of the depth too.
    every = Augment(flip=0, jitter=1)
    stage = ScaleStage(context)

    def reference(stage, augment):
        return to_device(collate([stage.dataset("train", augment)[(0, 3)]]), "cpu")["reference"][0]

    plain, jittered = (reference(stage, augment) for augment in (None, every))
    assert torch.equal(plain, jittered)
    assert not torch.equal(plain, reference(ObjectStage(context), every))
    mirrored = reference(stage, every.model_copy(update={"flip": 1.0}))
    assert torch.equal(mirrored, plain.flip(-1))


def test_no_ground_inside_the_box_of_an_object_is_seen(context):
    mask = torch.from_numpy(column(1))[None, None]
    road = torch.ones(1, 1, *SIZE, dtype=torch.bool)
    inputs = scale_inputs(context, torch.full((1, 1, *SIZE), 8.0), Answer(0.5), torch.rand(1, 3, *SIZE), mask, road)
    box = surrounding_box(context.config, mask)
    ring = box & ~mask
    assert ring.any()
    assert not inputs.ground[box].any()
    assert (inputs.ground[~box] == 8.0).all()


@pytest.mark.parametrize(("draw", "columns"), [(0.0, (4, 14)), (1.0, (84, 94))])
def test_a_sideways_shift_leaves_the_middle_of_the_object_in_the_image(context, draw, columns):
    scale = context.config.scale.model_copy(update={"shift_augment": 1.0})
    stage = ScaleStage(replace(context, config=context.config.model_copy(update={"scale": scale})))
    mask = torch.zeros(1, 1, *SIZE, dtype=torch.bool)
    mask[..., 20:40, slice(*columns)] = True
    plane = torch.ones(1, 1, *SIZE)
    inputs = ScaleInputs(plane.repeat(1, 3, 1, 1), mask, plane, plane, plane)
    moved = inputs.shifted(stage._draw_shift(mask, torch.tensor([draw]))).mask
    # At most the half beyond the border is lost, to a pixel.
    assert 20 * 5 <= moved.sum() <= 20 * 6
    assert moved[..., 0 if draw == 0.0 else -1].any()


def test_an_objects_loss_is_taken_where_it_is_in_the_reference(context):
    stage = ObjectStage(context)
    torch.manual_seed(0)
    masks = torch.from_numpy(np.stack([column(0), column(1), column(2)]))[None]
    batch = scene_batch() | {"object_masks": masks}
    depth = (1 + torch.rand(1, 1, *SIZE)).requires_grad_()
    T = torch.eye(4).repeat(1, 2, 1, 1)
    T[..., 0, 3] = torch.tensor([-0.4, 0.4])
    stage.loss(batch, {"depth": depth, "T_src_ref": T}, 0)["total"].backward()
    touched = depth.grad[0, 0] != 0
    assert touched[masks[0, 1]].any()
    assert not touched[~masks[0, 1]].any()


def test_an_object_keeps_its_shape_and_not_its_size(context):
    mask = torch.from_numpy(np.stack([column(1), column(2)]))[:, None]
    start = 1 + torch.rand(2, 1, *SIZE)
    assert shape_loss(torch.where(mask, 3 * start, 9.0), start, mask) < 1e-6
    # The upper half of one of two objects twice as far: ln 2 / 2 from the mean in every pixel.
    depth = start.clone()
    depth[0, :, : SIZE[0] // 2] *= 2
    upper = mask[0, :, : SIZE[0] // 2].sum() / mask[0].sum()
    expected = 2 * upper * (1 - upper) * np.log(2) / 2
    assert shape_loss(depth, start, mask).item() == pytest.approx(float(expected), rel=1e-4)
    assert shape_loss(depth, start, torch.zeros_like(mask)) == 0

    answer = {"depth": depth, "T_src_ref": torch.eye(4).repeat(2, 2, 1, 1), "start": start}
    masks = mask.expand(-1, 3, -1, -1)
    batch = scene_batch()
    batch = {name: torch.cat([value] * 2) for name, value in batch.items() if isinstance(value, Tensor)}
    weighted = context.config.object.model_copy(update={"start": 2.0})
    stage = ObjectStage(replace(context, config=context.config.model_copy(update={"object": weighted})))
    terms = stage.loss(batch | {"object_masks": masks}, answer, 0)
    assert terms["start"].item() == pytest.approx(2 * float(expected), rel=1e-4)
    assert terms["total"] == terms["photometric"] + terms["smoothness"] + terms["start"]


def test_the_label_of_the_final_stage_covers_large_dynamic_objects_alone(context):
    pseudo = context.run.stage("pseudo")
    for split in ("train", "val"):
        (pseudo / split / "ulm").mkdir(parents=True)
        np.save(pseudo / split / f"{FRAME}.npy", np.full(SIZE, 7, np.float32))
    context.run.finish("pseudo")
    item = FinalStage(context).dataset("train", None)[0]
    assert torch.equal(item["dynamic_mask"][0], torch.from_numpy(column(0)))
    assert (item["pseudo_depth"] == 7).all()


def test_the_pseudo_depth_holds_large_dynamic_objects_alone(context):
    stage = PseudoPreparation(context)
    dataset = stage._dataset("train")
    assert dataset is not None
    batch = batch_of(dataset)
    assert torch.equal(batch["instances"][0], torch.from_numpy(column(0))[None])


def test_a_split_whose_objects_all_stand_gets_no_pseudo_depth(context):
    table = context.run.stage("instances") / "train.csv"
    lines = table.read_text().splitlines()
    write_text(table, "\n".join([lines[0], *lines[2:]]) + "\n")
    assert PseudoPreparation(context)._dataset("train") is None
