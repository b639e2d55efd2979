"""Released checkpoints: every tensor finds its place, and the networks compute what the published ones do."""

from __future__ import annotations

import copy
from pathlib import Path

import published_mask_nets as published_masks
import published_nets as published
import pytest
import torch
from torch import Tensor, nn

from mcd.convert import RELEASED, ConversionError, convert, convert_folder, main
from mcd.nets import build_scale_net
from mcd.run.checkpoint import WEIGHTS, load_weights

STATES = {
    "depth_net.pth": published.diffnet_state,
    "pose_net.pth": published.pose_state,
    "raft.pth": published.raft_state,
    "depth_scale_alignment.pth": published.scale_state,
    "slot_attention.pth": published_masks.slot_state,
    "ground_segmentation.pth": published_masks.ground_state,
}


@pytest.fixture(scope="module")
def states() -> dict[str, dict[str, Tensor]]:
    return {file: build() for file, build in STATES.items()}


@pytest.fixture(scope="module")
def nets(states: dict[str, dict[str, Tensor]]) -> dict[str, nn.Module]:
    return {file: convert(state, RELEASED[file]).eval() for file, state in states.items()}


@pytest.fixture
def folder(tmp_path: Path, states: dict[str, dict[str, Tensor]]) -> Path:
    """A published folder of two nets (all four are 160 MB) and an optimiser state."""
    for file in ("depth_net.pth", "raft.pth"):
        torch.save(states[file], tmp_path / file)
    torch.save({"step": torch.tensor(1)}, tmp_path / "adam.pth")
    return tmp_path


def image(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("file", "entries"),
    [("depth_net.pth", 1886), ("pose_net.pth", 130), ("raft.pth", 179), ("depth_scale_alignment.pth", 66)],
)
def test_the_synthetic_state_dicts_have_as_many_entries_as_the_published(
    file: str, entries: int, states: dict[str, dict[str, Tensor]]
) -> None:
    assert len(states[file]) == entries


@pytest.mark.parametrize(
    ("file", "parameters"),
    [
        ("depth_net.pth", 10_869_100),
        # Published: 13,013,492 with a classifier of 513,000 that nothing reads.
        ("pose_net.pth", 13_013_492 - 513_000),
        ("raft.pth", 5_257_536),
        ("depth_scale_alignment.pth", 11_347_137),
        ("slot_attention.pth", 979_046),
        ("ground_segmentation.pth", 37_862_017),
    ],
)
def test_parameter_counts_are_the_published_ones(file: str, parameters: int, nets: dict[str, nn.Module]) -> None:
    assert sum(parameter.numel() for parameter in nets[file].parameters()) == parameters


def test_every_distinct_tensor_of_the_published_files_is_kept(
    states: dict[str, dict[str, Tensor]], nets: dict[str, nn.Module]
) -> None:
    for file, state in states.items():
        kept = {tensor.double().sum().item() for tensor in nets[file].state_dict().values()}
        lost = [name for name, tensor in state.items() if tensor.double().sum().item() not in kept]
        # A classifier and coordinates: nothing reads the one, and our net makes the others.
        unused = {"pose_net.pth": ".fc.", "slot_attention.pth": ".grid"}.get(file, "none")
        assert [name for name in lost if unused not in name] == []


# Float64 on both sides, so only the order of summation differs: 1e-9 is far above its error and far below any other.


def test_converted_depth_net_computes_the_published_depth(
    states: dict[str, dict[str, Tensor]], nets: dict[str, nn.Module]
) -> None:
    # Neither square nor a power of two at the coarsest level (2 x 3), so that swapped axes show.
    state, x = states["depth_net.pth"], image(1, 3, 64, 96)
    net = copy.deepcopy(nets["depth_net.pth"]).double()
    expected = published.diffnet_depths(state, x)
    with torch.no_grad():
        actual = net(x)
    assert [depth.shape for depth in actual] == [depth.shape for depth in expected]
    for got, want in zip(actual, expected, strict=True):
        assert want.std() > 1e-3
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_converted_pose_net_computes_the_published_motion(
    states: dict[str, dict[str, Tensor]], nets: dict[str, nn.Module]
) -> None:
    state, first, second = states["pose_net.pth"], image(2, 3, 64, 96), image(2, 3, 64, 96, seed=1)
    net = copy.deepcopy(nets["pose_net.pth"]).double()
    with torch.no_grad():
        actual = net(first, second)
    for got, want in zip(actual, published.pose_motion(state, first, second), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def test_converted_motion_net_computes_the_published_flow(
    states: dict[str, dict[str, Tensor]], nets: dict[str, nn.Module]
) -> None:
    # 128 is the smallest size that the published lookup can do: it divides by the size of the coarsest level less one.
    state, warped, source = states["raft.pth"], image(1, 3, 128, 160), image(1, 3, 128, 160, seed=1)
    net = copy.deepcopy(nets["raft.pth"]).double()
    with torch.no_grad():
        actual = net(warped, source)
        expected = published.raft_flow(state, 255 * warped, 255 * source)
    assert expected.std() > 1e-2
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def test_converted_scale_net_computes_the_published_scale(
    states: dict[str, dict[str, Tensor]], nets: dict[str, nn.Module]
) -> None:
    state, inputs = states["depth_scale_alignment.pth"], image(2, 5, 64, 96).split((3, 1, 1), dim=1)
    net = copy.deepcopy(nets["depth_scale_alignment.pth"]).double()
    with torch.no_grad():
        actual = net(*inputs)
    torch.testing.assert_close(actual, published.scale_factor(state, *inputs), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("use_emptiness", [False, True])
def test_converted_slot_net_computes_the_published_slots(
    use_emptiness: bool, states: dict[str, dict[str, Tensor]], nets: dict[str, nn.Module]
) -> None:
    scene, noise = image(2, 4, 128, 128), image(2, 5, 64, seed=1)
    net = copy.deepcopy(nets["slot_attention.pth"]).double()
    with torch.no_grad():
        actual = net(scene, noise, use_emptiness)
    expected = published_masks.slots(states["slot_attention.pth"], scene, noise, use_emptiness)
    assert expected["masks"].std() > 1e-3
    # The net's attention, masks and pictures are float32 at least.
    for name, got in actual._asdict().items():
        torch.testing.assert_close(got.double(), expected[name], rtol=1e-4, atol=1e-5)


def test_converted_ground_net_computes_the_published_probability(
    states: dict[str, dict[str, Tensor]], nets: dict[str, nn.Module]
) -> None:
    picture, disp = image(1, 3, 192, 512), 0.1 + image(1, 1, 192, 512, seed=1)
    with torch.no_grad():
        actual = nets["ground_segmentation.pth"](picture.float(), disp.float()).sigmoid()
        expected = published_masks.ground(states["ground_segmentation.pth"], picture.float(), disp.float())
    assert expected.std() > 1e-2
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_converted_scale_weights_stay_linear_in_a_net_built_positive(nets: dict[str, nn.Module]) -> None:
    converted = nets["depth_scale_alignment.pth"]
    net = build_scale_net("resnet18", positive=True)
    net.load_state_dict(converted.state_dict())
    inputs = image(1, 5, 64, 64).float().split((3, 1, 1), dim=1)
    with torch.no_grad():
        torch.testing.assert_close(net.eval()(*inputs), converted(*inputs), rtol=0, atol=0)


def test_folder_becomes_a_stage_folder(
    folder: Path, nets: dict[str, nn.Module], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(folder), "-o", str(folder / "out")]) == 0
    weights = load_weights(folder / "out" / WEIGHTS)
    assert weights.nets == {"depth": "diffnet", "motion": "raft"}
    assert weights.size == (192, 512)
    for file in ("depth_net.pth", "raft.pth"):
        released = RELEASED[file]
        net = released.build()
        weights.load_into(released.role, net, released.net)
        expected = nets[file].state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in net.state_dict().items())
    assert "not converted: adam.pth" in capsys.readouterr().out


def test_state_dict_without_the_parallel_prefix_converts(states: dict[str, dict[str, Tensor]]) -> None:
    bare = {name.removeprefix("module."): tensor for name, tensor in states["pose_net.pth"].items()}
    convert(bare, RELEASED["pose_net.pth"])


def test_all_that_does_not_fit_is_named(states: dict[str, dict[str, Tensor]]) -> None:
    pose = dict(states["pose_net.pth"])
    del pose["module.pose_decoder.net.3.bias"]
    pose["module.pose_decoder.net.4.weight"] = torch.zeros(1)
    pose["module.pose_encoder.encoder.conv1.weight"] = torch.zeros(64, 3, 7, 7)
    with pytest.raises(ConversionError) as caught:
        convert(pose, RELEASED["pose_net.pth"])
    assert sorted(str(caught.value).splitlines()) == [
        "left over: module.pose_decoder.net.4.weight",
        "missing: head.1.bias",
        "wrong shape: module.pose_encoder.encoder.conv1.weight is [64, 3, 7, 7], should be [64, 6, 7, 7]",
    ]


def test_nothing_is_written_when_one_file_does_not_fit(
    folder: Path, states: dict[str, dict[str, Tensor]], capsys: pytest.CaptureFixture[str]
) -> None:
    raft = dict(states["raft.pth"])
    raft["module.cnet.layer2.0.downsample.1.weight"] = torch.zeros(96)
    torch.save(raft, folder / "raft.pth")
    assert main([str(folder), "-o", str(folder / "out")]) == 1
    message = capsys.readouterr().err
    assert "raft.pth:\n  stored twice with different values: module.cnet.layer2.0.downsample.1.weight" in message
    assert not (folder / "out").exists()


def test_unreadable_file_is_named(folder: Path) -> None:
    path = folder / "raft.pth"
    path.write_bytes(path.read_bytes()[:1000])
    (folder / "depth_net.pth").unlink()
    with pytest.raises(ConversionError, match=r"raft\.pth:\n  cannot be read"):
        convert_folder(folder, folder / "out")


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"weight": Payload()}, tmp_path / "raft.pth")
    with pytest.raises(ConversionError, match="cannot be read"):
        convert_folder(tmp_path, tmp_path / "out")
    assert not (tmp_path / "ran").exists()


def test_folder_without_checkpoints_says_where_some_are(tmp_path: Path) -> None:
    inner = tmp_path / "scene" / "models" / "weights"
    inner.mkdir(parents=True)
    (inner / "raft.pth").touch()
    with pytest.raises(ConversionError, match=r"holds none of .*; there are some in .*models/weights"):
        convert_folder(tmp_path / "scene", tmp_path / "out")
