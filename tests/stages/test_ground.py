"""Ground from depth, on drawn planes; and when each loss of its stage acts."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mcd.config import ConfigError, parse_config
from mcd.errors import StageError
from mcd.masks.source import mask_source
from mcd.nets import build_ground_net
from mcd.nets.ground import image_rows
from mcd.run.checkpoint import WEIGHTS
from mcd.run.context import Context
from mcd.run.folder import Run
from mcd.stages.ground import (
    GroundStage,
    edge_aware_smoothness,
    join_thirds,
    level_surfaces,
    stretched_thirds,
    surface_normals,
)

# Not square, and an odd height: swapped axes and thirds that do not divide show.
SIZE = (50, 64)


def camera() -> torch.Tensor:
    return torch.tensor([[[60.0, 0, 30.0], [0, 55.0, 20.0], [0, 0, 1]]], dtype=torch.float64)


def plane_depth(normal: tuple[float, float, float], distance: float) -> torch.Tensor:
    """Depth [1,1,H,W] of the plane normal · X = distance; 200 where the camera does not see it."""
    y, x = torch.meshgrid(torch.arange(SIZE[0]).double(), torch.arange(SIZE[1]).double(), indexing="ij")
    rays = torch.linalg.inv(camera())[0] @ torch.stack((x, y, torch.ones_like(x))).flatten(1)
    facing = (torch.tensor(normal, dtype=torch.float64) @ rays).view(SIZE)
    depth = distance / facing
    return torch.where((depth > 0) & (depth < 200), depth, 200.0)[None, None]


def tilted(degrees: float) -> tuple[float, float, float]:
    """The normal of a road that rises ahead."""
    return (0.0, math.cos(math.radians(degrees)), math.sin(math.radians(degrees)))


@pytest.mark.parametrize("normal", [(0.0, 0.0, 1.0), (0.6, 0.0, 0.8), (0.1, 0.7, 0.5), (-0.3, -0.2, 0.9)])
def test_normals_of_a_plane_are_its_normal_everywhere(normal):
    unit = F.normalize(torch.tensor(normal, dtype=torch.float64), dim=0)
    depth = plane_depth(tuple(unit.tolist()), 8.0)
    inside = (depth < 200)[0, 0]
    # Away from pixels whose neighbours do not lie on the plane, and from the mirrored border.
    inside = ~(F.max_pool2d((~inside)[None].double(), 9, 1, 4)[0] > 0)
    inside[:4] = inside[-4:] = False
    inside[:, :4] = inside[:, -4:] = False
    assert inside.sum() > 200
    normals = surface_normals(depth, camera(), 4)
    assert normals.shape == (1, 3, *SIZE)
    torch.testing.assert_close(normals[0, :, inside], unit[:, None].expand(-1, int(inside.sum())), rtol=0, atol=1e-9)


def test_all_four_products_point_the_same_way():
    # On a curved surface they differ; in the published order one of them is turned round and cancels another.
    bowl = 5 + 0.002 * (torch.arange(SIZE[1]).double() - 30) ** 2
    depth = bowl.expand(1, 1, *SIZE)
    normals = surface_normals(depth, camera(), 4)
    assert (normals[:, 2] > 0.5).all()
    # Mirrored columns mirror the normals.
    K = camera()
    K[:, 0, 2] = SIZE[1] - 1 - K[:, 0, 2]
    mirrored = surface_normals(depth.flip(-1), K, 4).flip(-1)
    torch.testing.assert_close(mirrored[:, 0], -normals[:, 0], rtol=0, atol=1e-9)


def test_an_image_smaller_than_the_neighbourhood_is_refused():
    with pytest.raises(ValueError, match="larger image than 12x64"):
        surface_normals(torch.ones(1, 1, 12, 64), camera().float(), 4)


@pytest.mark.parametrize(("degrees", "is_ground"), [(0, True), (8, True), (-8, True), (13, False), (80, False)])
def test_ground_is_what_leans_less_than_the_angle(degrees, is_ground):
    depth = plane_depth(tilted(degrees), 1.5)
    found = level_surfaces(depth, camera(), 4, 10.0)
    near = found[0, 0, 36:44, 10:54]
    assert bool(near.all() if is_ground else not near.any())


def test_a_ceiling_is_no_ground_but_by_option():
    # The published code takes every level surface, above the camera too.
    ceiling = plane_depth((0.0, -1.0, 0.0), 1.5)
    assert not level_surfaces(ceiling, camera(), 4, 10.0).any()
    assert level_surfaces(ceiling, camera(), 4, 10.0, below_camera=False)[0, 0, 5:9, 10:54].all()


def test_a_wall_is_no_ground():
    assert not level_surfaces(plane_depth((0.0, 0.0, 1.0), 10.0), camera(), 4, 10.0).any()


def test_thirds_are_the_lower_two_and_fit_back():
    rows = torch.arange(SIZE[0]).float()[None, None, :, None].expand(1, 1, *SIZE)
    middle, near = stretched_thirds(rows)
    third = SIZE[0] // 3  # 16 of 50 rows; two stay above
    assert middle.shape == near.shape == (1, 1, *SIZE)
    assert (middle[0, 0, 0, 0].item(), near[0, 0, -1, 0].item()) == (SIZE[0] - 2 * third, SIZE[0] - 1)
    # A boundary at a row of the image comes back within a row: the enlargement is not of whole pixels.
    boundary = SIZE[0] - third + 5
    logits = [20 * (part - boundary) for part in (middle, near)]
    joined = join_thirds(*logits)
    assert joined.shape == (1, 1, 2 * third, SIZE[1])
    truth = (rows[..., -2 * third :, :] > boundary).float()
    assert (joined != truth).any(dim=-1).sum() <= 1


def test_smoothness_costs_less_at_edges_of_the_guide():
    plane = torch.zeros(1, 1, 4, 6, dtype=torch.float64)
    plane[..., 3:] = 1
    flat, edge = torch.zeros(1, 4, 4, 6, dtype=torch.float64), torch.zeros(1, 4, 4, 6, dtype=torch.float64)
    edge[:, :, :, 3:] = 2
    # One of five differences along the rows is 1, none along the columns.
    assert edge_aware_smoothness(plane, flat).item() == pytest.approx(1 / 5)
    assert edge_aware_smoothness(plane, edge).item() == pytest.approx(math.exp(-2) / 5)


def test_the_light_net_takes_any_size_and_the_published_one_its_own():
    image, disp = torch.rand(1, 3, 16, 24), torch.rand(1, 1, 16, 24)
    for name in ("light", "full"):
        assert build_ground_net(name, (64, 64))(image, disp).shape == (1, 1, 16, 24)
    assert build_ground_net("published", (16, 24))(image, disp).shape == (1, 1, 16, 24)
    with pytest.raises(ValueError, match="built for 8x8, this image is 16x24"):
        build_ground_net("published", (8, 8))(image, disp)
    with pytest.raises(ValueError, match="light, full, published"):
        build_ground_net("unet", (8, 8))


def test_the_unit_of_the_inverse_depth_does_not_matter():
    net, image, disp = build_ground_net("light", (16, 24)), torch.rand(2, 3, 16, 24), torch.rand(2, 1, 16, 24)
    torch.testing.assert_close(net(image, disp), net(image, 7 * disp), rtol=1e-4, atol=1e-5)


def test_nets_without_maps_of_pixels_are_told_where_they_look():
    image, disp = torch.rand(1, 3, 16, 24), torch.rand(1, 1, 16, 24)
    lower = image_rows(disp)[..., 8:, :]
    assert (lower[0, 0, 0, 0].item(), lower[0, 0, -1, -1].item()) == (pytest.approx(1 / 15), 1)
    light, published = build_ground_net("light", (8, 24)), build_ground_net("published", (8, 24))
    part = image[..., 8:, :], disp[..., 8:, :]
    assert torch.equal(light(*part), light(*part, image_rows(part[1])))
    assert (light(*part) - light(*part, lower)).abs().amax() > 1e-3
    assert torch.equal(published(*part), published(*part, lower))


def test_thirds_keep_the_rows_that_they_had(stage, batch, monkeypatch):
    seen = []
    monkeypatch.setattr(stage.nets["ground"], "forward", lambda image, disp, rows=None: seen.append(rows) or disp)
    stage.forward(batch, 9)
    whole, near, middle = seen
    assert whole is None
    below = 1 - 2 * (SIZE[0] // 3) / (SIZE[0] - 1)
    assert middle.amax() <= below <= near.amin()
    assert near.amax() == 1


@pytest.fixture
def stage(tmp_path):
    settings = {"runs": str(tmp_path), "data": {"size": SIZE}, "store": "sqlite"}
    settings["stages"] = ["scene", "predictions", "ground"]
    ramps = {"label_until": 4, "label_floor_from": 8, "thirds_from": 2, "thirds_full_from": 6}
    config = parse_config({**settings, "ground": {"steps": 10, "batch": 2, "distance": 32, **ramps}})
    context = Context(config, Run(config), torch.device("cpu"))
    context.run.stage("scene").mkdir()
    (context.run.stage("scene") / WEIGHTS).write_bytes(b"nets that a store can belong to")
    return GroundStage(context)


@pytest.fixture
def batch():
    depth = plane_depth(tilted(0), 1.5).float().expand(2, -1, -1, -1)
    return {"reference": torch.rand(2, 3, *SIZE), "depth": depth, "K": camera().float().expand(2, -1, -1)}


def test_losses_follow_their_schedules(stage, batch):
    def terms(step):
        torch.manual_seed(0)
        return stage.loss(batch, stage.forward(batch, step), step)

    stage.set_mode(0)
    early, begun, full, late = terms(1), terms(2), terms(6), terms(9)
    assert set(early) == {"total", "labels", "smoothness"}
    assert begun["own"] == 0
    assert begun["near"] == 0
    assert begun["near_smoothness"] > 0
    half = terms(4)
    for name in ("near", "own"):
        assert half[name].item() == pytest.approx(full[name].item() / 2, rel=1e-5)
    assert full["near"].item() == pytest.approx(late["near"].item(), rel=1e-6)
    assert early["labels"].item() == pytest.approx(half["labels"].item(), rel=1e-6)
    assert full["labels"].item() == pytest.approx(0.625 * early["labels"].item(), rel=1e-5)
    assert late["labels"].item() == pytest.approx(0.25 * early["labels"].item(), rel=1e-5)
    for found in (early, full):
        parts = sum(value.item() for name, value in found.items() if name != "total")
        assert found["total"].item() == pytest.approx(parts, rel=1e-6)


def test_losses_are_the_published_ones(stage, batch):
    """Cross entropy with the labels, twice the smoothness; the lowest third; both thirds as a target of their rows."""
    stage.set_mode(9)
    torch.manual_seed(0)
    depth = batch["depth"] * (1 + 0.2 * torch.rand(2, 1, *SIZE))
    batch = batch | {"depth": depth}
    with torch.no_grad():
        outputs = stage.forward(batch, 9)
        terms = {name: value.item() for name, value in stage.loss(batch, outputs, 9).items()}
        image, disp = batch["reference"], 1 / depth
        net = stage.nets["ground"]

        def entropy(p, target):
            return -(target * p.log() + (1 - target) * (1 - p).log()).mean().item()

        def smoothness(p, image, disp):
            guide = torch.cat((image, disp / disp.amax(dim=(1, 2, 3), keepdim=True)), dim=1)
            along = (p[..., 1:] - p[..., :-1]).abs() * (-(guide[..., 1:] - guide[..., :-1]).abs().mean(1, True)).exp()
            below, above = slice(1, None), slice(None, -1)
            edges = (guide[..., below, :] - guide[..., above, :]).abs().mean(1, True)
            down = (p[..., below, :] - p[..., above, :]).abs() * (-edges).exp()
            return (along.mean() + down.mean()).item()

        def third(plane, number):  # of 50 rows: 18 to 33, and 34 to 49
            rows = plane[..., 18 + 16 * number : 34 + 16 * number, :]
            return F.interpolate(rows, SIZE, mode="bilinear", align_corners=False)

        labels = outputs["target"]
        assert 0 < labels.mean() < 1
        p = net(image, disp).sigmoid()
        places = image_rows(disp)
        middle, near = (
            net(third(image, number), 1 / third(depth, number), third(places, number)).sigmoid() for number in (0, 1)
        )
        joined = torch.cat((middle, near), dim=-2)
        own = F.interpolate(joined, (32, SIZE[1]), mode="bilinear", align_corners=False) > 0.5
        assert terms["labels"] == pytest.approx(0.25 * entropy(p, labels), rel=1e-4)
        assert terms["smoothness"] == pytest.approx(2 * smoothness(p, image, disp), rel=1e-4)
        assert terms["near"] == pytest.approx(0.5 * entropy(near, third(labels, 1)), rel=1e-4)
        assert terms["own"] == pytest.approx(0.5 * entropy(p[..., 18:, :], own.float()), rel=1e-4)
        expected = 2 * smoothness(near, third(image, 1), 1 / third(depth, 1))
        assert terms["near_smoothness"] == pytest.approx(expected, rel=1e-4)


def test_validation_does_not_depend_on_the_step(stage, batch):
    stage.nets["ground"].eval()
    with torch.no_grad():
        scores = [stage.loss(batch, stage.forward(batch, step), step)["total"].item() for step in (0, 5, 9)]
    assert scores[0] == scores[1] == scores[2]


def test_the_middle_third_teaches_and_is_not_taught(stage, batch):
    stage.set_mode(9)
    outputs = stage.forward(batch, 9)
    assert not outputs["own_target"].requires_grad
    assert outputs["near_logits"].requires_grad
    assert set(outputs["own_target"].unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_depth_is_hidden_from_a_share_of_the_images(stage, batch, share):
    hidden = stage.schedule.model_copy(update={"hide_depth": share})
    stage.schedule = hidden
    seen = []
    stage.nets["ground"].register_forward_pre_hook(lambda net, given: seen.append(given[1]))
    batch = batch | {"draw": torch.tensor([0.2, 0.7])}
    stage.set_mode(9)
    stage.forward(batch, 9)
    assert len(seen) == 3, "the image, and two thirds of it"
    for disp in seen:
        assert [bool((plane == 1).all()) for plane in disp] == [share > 0, False]


def test_both_views_have_to_agree_where_depth_was_hidden(stage, batch):
    net = stage.nets["ground"].eval()
    image, depth = batch["reference"], batch["depth"]
    with torch.no_grad():
        seen, blind = net(image, 1 / depth).sigmoid(), net(image, torch.ones_like(depth)).sigmoid()
        torch.testing.assert_close(stage.probability(image, depth), seen)
        stage.schedule = stage.schedule.model_copy(update={"hide_depth": 0.5})
        torch.testing.assert_close(stage.probability(image, depth), (seen * blind).sqrt())


def test_a_net_that_always_saw_the_depth_is_not_asked_without(stage):
    stage.save_weights(0, None)
    settings = {"steps": 0, "init": stage.folder}
    stage.schedule = stage.schedule.model_copy(update=settings)
    stage.initialise()
    stage.schedule = stage.schedule.model_copy(update={"hide_depth": 0.5})
    with pytest.raises(StageError, match="always saw the depth: set ground.hide_depth=0"):
        stage.initialise()
    stage._hidden = 0.5
    stage.save_weights(0, None)
    stage.initialise()
    # What is written says what the net has learned with, not how it is used.
    stage.schedule = stage.schedule.model_copy(update={"hide_depth": 0.0})
    stage.initialise()
    assert stage.facts()["hide_depth"] == 0.5


def test_ramps_are_given_whole():
    with pytest.raises(ConfigError, match="'thirds_from' and 'thirds_full_from' are given together"):
        parse_config({"ground": {"steps": 10, "thirds_from": 3}})


def test_later_stages_read_the_ground_of_the_run(stage):
    from PIL import Image

    context = stage.context
    folder = context.run.stage("ground") / "masks" / "val" / "a"
    folder.mkdir(parents=True)
    level = np.full(SIZE, 100, np.uint8)
    level[30:] = 200
    Image.fromarray(level).save(folder / "a_1.png")
    found = mask_source(context.run).ground("val", "a/a_1")
    assert found.shape == (1, *SIZE)
    assert found[0, 30:].all()
    assert not found[0, :30].any()
