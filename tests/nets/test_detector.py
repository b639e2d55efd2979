"""The detector: sizes, what it sees, that it learns, and released weights."""

from __future__ import annotations

import published_nets as published
import pytest
import torch
from torch import Tensor, nn

from mcd.convert import RELEASED, ConversionError, convert
from mcd.nets import build_detector
from mcd.nets.detector import PUBLISHED_MAGNIFY, detector_input, first_layers

SIZE = (64, 96)


@pytest.fixture(scope="module")
def published_net() -> nn.Module:
    return build_detector("resnet18", (192, 512), magnify=PUBLISHED_MAGNIFY)


def count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def test_parameter_counts_are_the_published_ones(published_net: nn.Module) -> None:
    assert count(published_net) == 30_903_387
    # The first of the four layers keeps its ImageNet weights.
    assert count(published_net) - count(first_layers(published_net)) == 30_755_931


def test_anchors_mean_the_same_objects_at_every_size(published_net: nn.Module) -> None:
    sizes = [size[0] for size in published_net.rpn.anchor_generator.sizes]
    assert sizes == pytest.approx([32, 64, 128, 256, 512])
    assert published_net.transform.fixed_size == (1333, 500)
    plain = build_detector("light", (192, 512))
    assert [size[0] * PUBLISHED_MAGNIFY for size in plain.rpn.anchor_generator.sizes] == pytest.approx(sizes)


@pytest.mark.parametrize(("magnify", "expected"), [(1.0, (64, 96)), (2.0, (128, 192))])
def test_inputs_keep_their_size_unless_they_are_magnified(magnify: float, expected: tuple[int, int]) -> None:
    # torchvision's own sizes make seven times as many pixels of an image.
    net = build_detector("light", SIZE, magnify=magnify)
    images, _ = net.transform([torch.zeros(5, *SIZE)])
    assert images.tensors.shape[-2:] == expected
    net.eval()
    (found,) = net([torch.zeros(5, *SIZE)])
    assert found["masks"].shape[1:] == (1, *SIZE)


def test_disparity_is_a_share_of_each_images_own_largest() -> None:
    depth = torch.tensor([2.0, 4.0, 8.0, 8.0]).reshape(1, 1, 2, 2)
    image, ground = torch.rand(2, 3, 2, 2), torch.rand(2, 1, 2, 2)
    found = detector_input(image, torch.cat((depth, 100 * depth)), ground)
    assert torch.equal(found[:, :3], image) and torch.equal(found[:, 4:], ground)
    for row in found[:, 3]:
        assert row.flatten().tolist() == pytest.approx([1.0, 0.5, 0.25, 0.25])


def square(left: int, top: int) -> tuple[Tensor, dict[str, Tensor]]:
    """A bright square on noise, and the target that says where."""
    generator = torch.Generator().manual_seed(left)
    image = 0.3 * torch.rand(5, *SIZE, generator=generator)
    mask = torch.zeros(1, *SIZE, dtype=torch.uint8)
    mask[0, top : top + 20, left : left + 24] = 1
    image[:, mask[0].bool()] += 0.7
    boxes = torch.tensor([[left, top, left + 24, top + 20]], dtype=torch.float32)
    return image, {"boxes": boxes, "labels": torch.ones(1, dtype=torch.int64), "masks": mask}


@pytest.mark.slow
def test_the_light_detector_learns_where_a_square_is() -> None:
    torch.manual_seed(0)
    net = build_detector("light", SIZE)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    places = [(4, 4), (60, 30), (30, 20), (10, 40), (66, 6), (40, 38)]
    for step in range(150):
        images, targets = zip(*(square(*places[(step + k) % len(places)]) for k in range(3)), strict=True)
        loss = sum(net(list(images), list(targets)).values())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimizer.step()
    net.eval()
    image, target = square(30, 20)
    with torch.no_grad():
        (found,) = net([image])
    mask, truth = found["masks"][0, 0] >= 0.5, target["masks"][0].bool()
    assert found["scores"][0] > 0.5
    assert (mask & truth).sum() / (mask | truth).sum() > 0.6


def test_images_without_objects_train_too() -> None:
    net = build_detector("light", SIZE)
    nothing = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "masks": torch.zeros(0, *SIZE, dtype=torch.uint8),
    }
    losses = net([torch.rand(5, *SIZE)], [nothing])
    assert set(losses) == {"loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"}
    assert all(torch.isfinite(loss) for loss in losses.values())


@pytest.mark.parametrize("old_names", [False, True])
def test_released_weights_find_their_places(old_names: bool) -> None:
    # torchvision renamed layers of its detectors once; nobody says which of the two wrote the released file.
    state = published.detector_state(old_names=old_names)
    net = convert(state, RELEASED["maskrcnn.pth"])
    own = net.state_dict()
    assert len(own) == len(state)
    kept = {tensor.double().sum().item() for tensor in own.values()}
    assert {tensor.double().sum().item() for tensor in state.values()} == kept
    first = "backbone.body.layer3.1.conv2.weight"
    assert torch.equal(own[first], state[f"module.{first}"])


def test_a_detector_of_three_channels_is_refused() -> None:
    state = published.detector_state()
    state["module.backbone.body.conv1.weight"] = torch.zeros(64, 3, 7, 7)
    with pytest.raises(ConversionError, match=r"wrong shape: .*body.conv1.weight is \[64, 3, 7, 7\]"):
        convert(state, RELEASED["maskrcnn.pth"])


def test_unknown_names_and_missing_imagenet_weights_are_said() -> None:
    with pytest.raises(ValueError, match="no detector 'yolo'; there are light, resnet18"):
        build_detector("yolo", SIZE)
    with pytest.raises(ValueError, match="'light' has no ImageNet weights"):
        build_detector("light", SIZE, pretrained=True)
