"""What the slot net sees, when each loss of its stage acts, and what it leaves behind."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mcd.config import ConfigError, parse_config
from mcd.errors import StageError
from mcd.files import DataError
from mcd.masks.packed import save_masks
from mcd.nets import build_slot_net
from mcd.nets.slots import SlotAttention, suppress_empty
from mcd.run.context import Context
from mcd.run.folder import Run
from mcd.stages.slots import SlotsStage, background_entropy, read_candidates, slot_scene
from mcd.streets.synthetic import generate
from mcd.training.state import learning_rate

SIZE = (32, 48)


def scene_of_two(flow_right: float, flow_left: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Flow [1,2,2,H,W] and depth [1,1,H,W]: two boxes move, the other direction of the flow shows only the first."""
    flow, depth = torch.zeros(1, 2, 2, *SIZE), torch.full((1, 1, *SIZE), 10.0)
    flow[0, :, 0, 4:12, 4:12] = flow_right
    flow[0, 0, 0, 4:12, 30:40] = -flow_left
    depth[0, 0, 4:12, 4:12] = 5.0
    return flow, depth


def test_the_scene_is_white_and_far_where_nothing_moves():
    scene, still = slot_scene(*scene_of_two(4.0, 2.0), SIZE)
    assert scene.shape == (2, 4, *SIZE)
    assert still.shape == (2, 1, *SIZE)
    moving = torch.zeros(2, *SIZE, dtype=torch.bool)
    moving[:, 4:12, 4:12] = True
    moving[0, 4:12, 30:40] = True
    assert torch.equal(still[:, 0] == 0, moving)
    assert (scene.permute(0, 2, 3, 1)[~moving] == 1).all()
    assert torch.allclose(scene[:, 3, 4:12, 4:12], torch.tensor(math.expm1(0.5) / math.expm1(1)))
    # The farthest moving thing is as far as what does not move.
    assert torch.allclose(scene[0, 3, 4:12, 30:40], torch.tensor(1.0))
    # Opposite directions have other colours, and the slower one is paler.
    right, left = scene[0, :3, 8, 8], scene[0, :3, 8, 35]
    assert (right - left).abs().max() > 0.5
    assert (1 - left).abs().max() < (1 - right).abs().max()


def test_colours_do_not_depend_on_the_other_frames_of_a_batch():
    # torchvision's colours are relative to the fastest pixel of all pictures that it gets.
    flow, depth = scene_of_two(4.0, 2.0)
    alone, _ = slot_scene(flow, depth, SIZE)
    together, _ = slot_scene(torch.cat((flow, 50 * flow)), torch.cat((depth, depth)), SIZE)
    assert torch.equal(together[:2], alone)
    assert torch.allclose(together[2:], alone, atol=2 / 255)


def test_a_frame_without_motion_is_an_empty_scene():
    scene, still = slot_scene(torch.zeros(1, 2, 2, *SIZE), torch.rand(1, 1, *SIZE) + 1, (16, 16))
    assert (scene == 1).all()
    assert (still == 1).all()


def test_empty_slots_withdraw_and_the_background_takes_over():
    masks = torch.rand(2, 5, 4, 6, dtype=torch.float64).softmax(dim=1)
    fullness = torch.tensor([[1.0, 1e-9, 1e-9, 1e-9]], dtype=torch.float64).expand(2, -1)
    kept = suppress_empty(masks, fullness)
    torch.testing.assert_close(kept.sum(dim=1), torch.ones(2, 4, 6, dtype=torch.float64))
    torch.testing.assert_close(kept[:, 1], masks[:, 1], rtol=1e-5, atol=1e-7)
    assert kept[:, 2:].max() < 1e-9
    # Full slots sharpen: shares p become p² / sum.
    full = suppress_empty(masks, torch.ones(2, 4, dtype=torch.float64))
    objects = masks[:, 1:]
    torch.testing.assert_close(full[:, 1:], objects**2 / objects.sum(dim=1, keepdim=True))


@pytest.mark.parametrize("name", ["light", "published"])
def test_equal_noise_gives_equal_slots_and_other_noise_others(name):
    net = build_slot_net(name).eval()
    scene, noise = torch.rand(2, 4, 32, 16), torch.randn(1, 5, net.channels)
    with torch.no_grad():
        first, again = net(scene, noise), net(scene, noise)
        other, alone = net(scene, noise + 1), net(scene[1:], noise)
    assert torch.equal(first.masks, again.masks)
    assert not torch.allclose(first.masks, other.masks, atol=1e-4)
    torch.testing.assert_close(alone.masks[0], first.masks[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(first.masks.sum(dim=1), torch.ones(2, 32, 16))
    assert first.flow.shape == (2, 5, 3, 32, 16)
    assert first.flow.amin().item() == pytest.approx(-1)
    assert first.flow.amax().item() == pytest.approx(1, abs=1e-3)
    assert (first.depth >= 0).all()
    assert ((first.fullness > 0) & (first.fullness < 1)).all()


def test_object_slots_of_the_light_net_look_at_what_moves():
    scene, _ = slot_scene(*scene_of_two(4.0, 2.0), SIZE)
    bias = build_slot_net("light")._background_bias(scene)
    moves = (scene[:, :3] < 1).any(dim=1).flatten(1)
    assert bias.shape == (2, SIZE[0] * SIZE[1], 1)
    assert torch.equal(bias[..., 0] < 0, moves)
    assert build_slot_net("published")._background_bias(scene) is None

    attention, tokens, noise = (
        SlotAttention(8, own_starts=True),
        torch.randn(2, moves.shape[1], 8),
        torch.zeros(2, 5, 8),
    )
    other = torch.where(moves[..., None], tokens, torch.randn_like(tokens))
    with torch.no_grad():
        slots, changed = attention(tokens, noise, 4 * bias), attention(other, noise, 4 * bias)
    torch.testing.assert_close(slots[:, 1:], changed[:, 1:], rtol=1e-4, atol=1e-4)
    assert (slots[:, 0] - changed[:, 0]).abs().amax() > 1e-2
    # Without noise they differ all the same.
    assert torch.pdist(slots[0, 1:]).amin() > 0.1


def test_the_slot_net_runs_in_bfloat16():
    net = build_slot_net("light").eval()
    scene, noise = torch.rand(2, 4, 32, 16), torch.randn(1, 5, net.channels)
    with torch.no_grad():
        exact = net(scene, noise, True)
        with torch.autocast("cpu", torch.bfloat16):
            rough = net(scene, noise, True)
    # 8 bits, through some twenty layers.
    for name, value in rough._asdict().items():
        assert value.dtype == torch.float32, name
    assert (rough.masks - exact.masks).abs().mean() < 0.02
    assert (rough.fullness - exact.fullness).abs().mean() < 0.02


def test_the_slot_net_says_what_it_takes():
    net = build_slot_net("light")
    with pytest.raises(ValueError, match="multiples of 16"):
        net(torch.rand(1, 4, 30, 32), torch.zeros(1, 5, 32))
    with pytest.raises(ValueError, match=r"noise \[3 or 1, 5, 32\]"):
        net(torch.rand(3, 4, 32, 32), torch.zeros(2, 5, 32))
    with pytest.raises(ValueError, match="light, published"):
        build_slot_net("large")


def make_stage(folder, data=None, **slots):
    document = {"runs": str(folder), "data": data or {"size": SIZE}}
    timing = {"background_from": 3, "emptiness_from": 5, "emptiness_full_from": 9, "size": (16, 32)}
    config = parse_config({**document, "slots": {"steps": 12, "batch": 2, **timing, **slots}})
    return SlotsStage(Context(config, Run(config), torch.device("cpu")))


@pytest.fixture
def stage(tmp_path):
    return make_stage(tmp_path)


@pytest.fixture
def batch():
    flow, depth = scene_of_two(4.0, 2.0)
    return {
        "flow": torch.cat((flow, 0 * flow)),
        "depth": torch.cat((depth, depth)),
    }


def test_losses_begin_at_their_moments(stage, batch):
    stage.set_mode(0)
    names = {step: set(stage.loss(batch, stage.forward(batch, step), step)) - {"total"} for step in (0, 3, 5)}
    reconstruction, background = {"flow", "depth"}, {"background", "background_flow", "background_depth"}
    assert names[0] == reconstruction
    assert names[3] == reconstruction | background
    assert names[5] == reconstruction | background | {"emptiness"}


def test_losses_are_the_published_ones_but_for_the_double_sigmoid(stage, batch):
    stage.set_mode(7)
    outputs = {name: value.detach() for name, value in stage.forward(batch, 7).items()}
    terms = stage.loss(batch, outputs, 7)
    scene, masks, flow, depth = (outputs[name] for name in ("scene", "masks", "flow", "depth"))
    drawn = sum(masks[:, i : i + 1] * flow[:, i] for i in range(5))
    assert terms["flow"].item() == pytest.approx(((drawn - scene[:, :3]) ** 2).mean().item(), rel=1e-5)
    assert terms["background_flow"].item() == pytest.approx(((flow[:, 0] - 1) ** 2).mean().item(), rel=1e-5)
    assert terms["background_depth"].item() == pytest.approx(0.02 * ((depth[:, 0] - 1) ** 2).mean().item(), rel=1e-5)
    share, still = masks[:, 0].double(), outputs["still"][:, 0].double()
    entropy = -(still * share.log() + (1 - still) * (1 - share).log()).mean().item()
    assert terms["background"].item() == pytest.approx(0.005 * entropy, rel=1e-4)
    doubled = F.binary_cross_entropy_with_logits(share, still).item()
    assert abs(doubled / entropy - 1) > 1e-2
    # Half way between steps 5 and 9.
    emptiness = 0.5 * 0.002 * (outputs["fullness"] - 0.01).abs().mean().item()
    assert terms["emptiness"].item() == pytest.approx(emptiness, rel=1e-5)
    parts = sum(value.item() for name, value in terms.items() if name != "total")
    assert terms["total"].item() == pytest.approx(parts, rel=1e-6)


def test_what_moves_counts_more_where_that_is_asked_for(tmp_path, batch):
    stage = make_stage(tmp_path, moving=3.0)
    stage.set_mode(0)
    outputs = stage.forward(batch, 0)
    terms = stage.loss(batch, outputs, 0)
    for name, weight, seen in (("flow", 1.0, outputs["scene"][:, :3]), ("depth", 0.2, outputs["scene"][:, 3:])):
        drawn = (outputs["masks"][:, :, None] * outputs[name]).sum(dim=1)
        errors = (drawn - seen).square() * (4 - 3 * outputs["still"])
        assert terms[name].item() == pytest.approx(weight * errors.mean().item(), rel=1e-5), name


def test_a_background_that_covers_what_is_still_costs_nothing(stage):
    # The published sigmoid of a share stays below 0.74, so that no background is ever good enough.
    masks = torch.zeros(1, 5, 16, 32)
    masks[:, 0] = 1
    ones = torch.ones(1, 5, 1, 16, 32)
    outputs = {"scene": torch.ones(1, 4, 16, 32), "still": torch.ones(1, 1, 16, 32), "masks": masks}
    outputs |= {"flow": ones.expand(-1, -1, 3, -1, -1), "depth": ones, "fullness": torch.zeros(1, 4)}
    stage.set_mode(4)
    assert stage.loss({}, outputs, 4)["total"].item() == pytest.approx(0, abs=1e-7)


# With emptiness, shares are squared.
@pytest.mark.parametrize(("gap", "fullness"), [(3, None), (18, None), (80, None), (3, 0.5), (18, 0.5), (35, 0.5)])
@pytest.mark.parametrize("still", [0.0, 0.3, 1.0])
def test_a_background_that_is_all_too_sure_has_the_right_gradient(gap, still, fullness):
    # In float32 its share is 1 from a gap of 17 on, and one less it is nothing.
    def gradient(dtype):
        logits = torch.zeros(1, 5, 1, 1, dtype=dtype)
        logits[:, 0] = gap
        logits.requires_grad_()
        shares = logits.softmax(dim=1)
        if fullness is not None:
            shares = suppress_empty(shares, torch.full((1, 4), fullness, dtype=dtype))
        loss = background_entropy(shares, torch.full((1, 1, 1, 1), still, dtype=dtype))
        loss.backward()
        return loss.item(), logits.grad.flatten().double()

    (loss, found), (exact_loss, exact) = gradient(torch.float32), gradient(torch.float64)
    assert loss == pytest.approx(exact_loss, rel=1e-4, abs=1e-6)
    torch.testing.assert_close(found, exact, rtol=1e-3, atol=1e-6)


def test_a_background_that_has_next_to_nothing_keeps_it():
    logits = torch.tensor([-25.0, 0, -3, -3, -3])[None, :, None, None]
    kept = suppress_empty(logits.softmax(dim=1), torch.full((1, 4), 1 - 1e-7))
    exact = suppress_empty(logits.double().softmax(dim=1), torch.full((1, 4), 1 - 1e-7, dtype=torch.float64))
    assert (kept >= 0).all()
    torch.testing.assert_close(kept.double(), exact, rtol=1e-4, atol=1e-8)


def test_noise_depends_on_seed_and_step_in_training_and_on_the_seed_alone_after(stage, batch, tmp_path):
    stage.set_mode(0)
    first, again, later = (stage.forward(batch, step)["masks"] for step in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    stage.nets["slots"].eval()
    with torch.no_grad():
        early, late = stage.forward(batch, 1), stage.forward(batch, 11)
        assert torch.equal(early["masks"], late["masks"])
        scores = [stage.loss(batch, early, step)["total"].item() for step in (0, 11)]
    assert scores[0] == scores[1]
    other = make_stage(tmp_path / "other")
    assert torch.equal(other._noise(4, None), stage._noise(2, None))


def test_the_learning_rate_warms_up_and_halves_steadily(tmp_path):
    stage = make_stage(tmp_path, lr=1e-2, warmup=4, halve_every=6)
    rates = [learning_rate(stage, step) for step in range(12)]
    assert rates[0] == pytest.approx(1e-2 / 4)
    assert rates[6] == pytest.approx(1e-2 / 2)
    assert rates[11] == pytest.approx(1e-2 * 0.5 ** (11 / 6))


def test_a_few_steps_explain_the_scene_better(tmp_path, batch):
    stage = make_stage(tmp_path, steps=40, background_from=0)
    optimizer = torch.optim.Adam(stage.nets["slots"].parameters(), lr=3e-3)
    losses = []
    for step in range(15):
        stage.set_mode(step)
        loss = stage.loss(batch, stage.forward(batch, 0), 0)["total"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_candidates_come_back_from_disk(tmp_path):
    masks = np.random.default_rng(0).random((2, 5, 7, 9)) > 0.5  # 630 bits: not a multiple of a byte
    save_masks(tmp_path / "masks" / "val" / "city" / "frame.1.npz", masks)
    assert np.array_equal(read_candidates(tmp_path, "val", "city/frame.1"), masks)
    with pytest.raises(DataError, match="does not exist"):
        read_candidates(tmp_path, "val", "city/frame.2")
    path = tmp_path / "masks" / "val" / "city" / "frame.1.npz"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="cannot be read"):
        read_candidates(tmp_path, "val", "city/frame.1")


def test_scenes_in_which_nothing_moves_are_refused(stage):
    stage.context.run.finish("predictions", train={"frames_with_motion": 0})
    with pytest.raises(StageError, match="nothing to find objects by"):
        stage.initialise()
    stage.context.run.finish("predictions", train={"frames_with_motion": 3})
    stage.initialise()


def test_training_leaves_out_frames_in_which_little_moves(tmp_path):
    generate(tmp_path / "streets", train=5, val=1, size=(32, 64), seed=0)
    stage = make_stage(tmp_path, data={"root": str(tmp_path / "streets"), "size": SIZE}, min_moving=0.1)
    frames = [item.frame for item in stage.dataset("train", None).items]
    stage.context.run.stage("predictions").mkdir()
    listed = stage.context.run.stage("predictions") / "train.csv"
    augment = stage.config.augment
    listed.write_text("frame,moving\n" + "".join(f"{frame},{n / 20}\n" for n, frame in enumerate(frames)))
    assert [item.frame for item in stage.dataset("train", augment).items] == frames[2:]
    assert [item.frame for item in stage.dataset("train", None).items] == frames
    listed.write_text("frame,moving\n" + "".join(f"{frame},0.05\n" for frame in frames))
    with pytest.raises(StageError, match=r"0 of 5 training frames move by slots.min_moving, 0.1, or more; slots.batch"):
        stage.dataset("train", augment)
    listed.unlink()
    with pytest.raises(DataError, match="list of what moves .* does not exist"):
        stage.dataset("train", augment)


def test_training_starts_from_the_weights_that_are_named(tmp_path):
    first = make_stage(tmp_path / "first")
    first.save_weights(1, None)
    second = make_stage(tmp_path / "second", init=str(first.folder))
    with torch.no_grad():
        for parameter in second.nets["slots"].parameters():
            parameter.zero_()
    second.context.run.finish("predictions", train={"frames_with_motion": 1})
    second.initialise()
    for name, tensor in first.nets["slots"].state_dict().items():
        assert torch.equal(second.nets["slots"].state_dict()[name], tensor), name


def test_the_size_and_the_ramp_are_checked():
    with pytest.raises(ConfigError, match="multiples of 16, not 100x128"):
        parse_config({"slots": {"steps": 1, "size": (100, 128)}})
    with pytest.raises(ConfigError, match="'emptiness_from' and 'emptiness_full_from'"):
        parse_config({"slots": {"steps": 1, "emptiness_from": 5, "emptiness_full_from": 3}})
