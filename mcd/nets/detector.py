"""Detectors of moving objects: torchvision's Mask R-CNN on colours, disparity and ground.

In training, forward(images, targets) -> five losses by name; otherwise forward(images) -> for each image ``boxes``
[n,4], ``scores`` [n] and ``masks`` [n,1,H,W] in [0,1]. Images are [5,H,W] as :func:`detector_input` makes them; targets
are dicts of ``boxes``, ``labels`` (1 for an object) and ``masks``. Training draws anchors from torch's random numbers;
after :func:`draw_by_image` those of an image do not depend on the images beside it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from mcd.nets.layers import ResNet18, one_group, resnet18_backbone

CHANNELS = 5
CLASSES = 2  # background and object
# Sides of the anchors on the five levels of the pyramid, in pixels of an image as wide as the published one.
ANCHORS, ANCHORS_WIDTH = (32, 64, 128, 256, 512), 1333
PUBLISHED_MAGNIFY = ANCHORS_WIDTH / 512
"""The published code leaves torchvision's sizes as they are: an input of 192x512 becomes 499x1333."""


def detector_input(image: Tensor, depth: Tensor, ground: Tensor) -> Tensor:
    """Input [B,5,H,W]: colours in [0,1], disparity as a share of the image's largest, probability of ground.

    The largest disparity is each image's own. The published code takes that of the batch when it views parts of an
    image, though the detector was trained on the other.

    Args:
        image: [B,3,H,W]; depth: [B,1,H,W] positive, in any unit; ground: [B,1,H,W] in [0,1].
    """
    return torch.cat((image, depth.amin(dim=(1, 2, 3), keepdim=True) / depth, ground), dim=1)


def build_detector(name: str, size: tuple[int, int], *, magnify: float = 1.0, pretrained: bool = False) -> MaskRCNN:
    """The detector ``light`` (1.6 M parameters) or ``resnet18`` (30,903,387).

    Args:
        size: height and width of its inputs.
        magnify: inputs are enlarged so many times before the first layer; anchors grow with them, and so mean the same
            objects. Released weights want ``PUBLISHED_MAGNIFY``.
        pretrained: start ``resnet18`` from ImageNet weights; disparity and ground begin with the filters of red.
            Without them its batch normalisation, which does not train, does nothing.

    Raises:
        ValueError: there is no such network, or it has no ImageNet weights.
        PretrainedError: the weights cannot be had.
    """
    if name not in ("light", "resnet18"):
        raise ValueError(f"no detector '{name}'; there are light, resnet18")
    if name == "light" and pretrained:
        raise ValueError("the detector 'light' has no ImageNet weights; set nets.pretrained: false")
    height, width = (round(side * magnify) for side in size)
    common = {
        "image_mean": (0.485, 0.456, 0.406, 0.0, 0.0),
        "image_std": (0.229, 0.224, 0.225, 1.0, 1.0),
        "fixed_size": (width, height),
        "rpn_anchor_generator": AnchorGenerator(
            tuple((anchor * width / ANCHORS_WIDTH,) for anchor in ANCHORS), ((0.5, 1.0, 2.0),) * len(ANCHORS)
        ),
    }
    if name == "resnet18":
        backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=5)
        _take_five_channels(backbone.body, pretrained)
        return MaskRCNN(backbone, CLASSES, **common)
    return light_mask_rcnn(CHANNELS, CLASSES, **common)


def light_mask_rcnn(channels: int, classes: int, **options: Any) -> MaskRCNN:
    """A small Mask R-CNN of images with so many channels, with few proposals.

    Args:
        classes: the background is one of them.
        options: further ones of torchvision's ``MaskRCNN``.
    """
    width, hidden = 64, 128
    return MaskRCNN(
        _LightPyramid(channels, width),
        box_head=TwoMLPHead(width * 7 * 7, hidden),
        box_predictor=FastRCNNPredictor(hidden, classes),
        mask_head=MaskRCNNHeads(width, (width, width), 1),
        mask_predictor=MaskRCNNPredictor(width, width, classes),
        rpn_pre_nms_top_n_train=500,
        rpn_pre_nms_top_n_test=300,
        rpn_post_nms_top_n_train=300,
        rpn_post_nms_top_n_test=100,
        rpn_batch_size_per_image=128,
        box_batch_size_per_image=64,
        **options,
    )


class SamplerByImage(BalancedPositiveNegativeSampler):
    """torchvision's choice of the boxes that enter the losses, drawn for each image from a seed of its own.

    torchvision draws for one image after the other: what is drawn for the second depends on the first.
    """

    def __init__(self, sampler: BalancedPositiveNegativeSampler, salt: int) -> None:
        super().__init__(sampler.batch_size_per_image, sampler.positive_fraction)
        self._salt, self.seeds = salt, [0]
        self.positive = self.chosen = torch.zeros(())

    def __call__(self, matched_idxs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        drawn = []
        for seed, matched in zip(self.seeds, matched_idxs, strict=True):
            torch.manual_seed(seed ^ self._salt)
            drawn.append(super().__call__([matched]))
        positive, negative = ([found[0] for found in side] for side in zip(*drawn, strict=True))
        self.positive = torch.stack([mask.sum() for mask in positive]).sum()
        self.chosen = self.positive + torch.stack([mask.sum() for mask in negative]).sum()
        return positive, negative


def draw_by_image(net: MaskRCNN, seeds: Sequence[int]) -> None:
    """Let the next images draw from these seeds, non-negative and below 2^63; it changes torch's own stream."""
    for salt, part in enumerate((net.rpn, net.roi_heads)):
        if not isinstance(part.fg_bg_sampler, SamplerByImage):
            part.fg_bg_sampler = SamplerByImage(part.fg_bg_sampler, salt)
        part.fg_bg_sampler.seeds = list(seeds)


def loss_counts(net: MaskRCNN) -> dict[str, Tensor]:
    """What each of the last losses was divided by, after :func:`draw_by_image`: boxes, for masks those of objects."""
    proposals, boxes = net.rpn.fg_bg_sampler, net.roi_heads.fg_bg_sampler
    return {
        "loss_objectness": proposals.chosen,
        "loss_rpn_box_reg": proposals.chosen,
        "loss_classifier": boxes.chosen,
        "loss_box_reg": boxes.chosen,
        "loss_mask": boxes.positive,
    }


def first_layers(net: MaskRCNN) -> nn.Module | None:
    """The layers of ``resnet18`` that keep their ImageNet weights while the detector trains; None for ``light``."""
    return getattr(net.backbone.body, "layer1", None)


class _LightPyramid(nn.Module):
    """A feature pyramid over the ResNet-18 layout of width 32, normalised by group so that it trains from nothing."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.out_channels = channels
        self.body = ResNet18(in_channels, 32, norm=one_group)
        self.fpn = FeaturePyramidNetwork(list(self.body.channels[1:]), channels, LastLevelMaxPool())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.body(x)[1:]
        return self.fpn(OrderedDict((str(level), feature) for level, feature in enumerate(features)))


def _take_five_channels(body: nn.Module, pretrained: bool) -> None:
    body.conv1 = nn.Conv2d(CHANNELS, 64, 7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(body.conv1.weight, mode="fan_out", nonlinearity="relu")
    if pretrained:
        state = resnet18_backbone(pretrained=True).state_dict()
        colours = state["conv1.weight"]
        state["conv1.weight"] = torch.cat((colours, colours[:, :1], colours[:, :1]), dim=1)
        body.load_state_dict(state)
