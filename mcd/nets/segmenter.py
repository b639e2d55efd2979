"""Segmenters: torchvision's Mask R-CNN on colours, which knows what COCO's classes look like.

forward(images, a list of [3,H,W] in [0,1]) -> for each image ``boxes`` [n,4], ``labels`` [n], ``scores`` [n] and
``masks`` [n,1,H,W] in [0,1]. A label is a position in :data:`CLASSES`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torchvision.models.detection import MaskRCNN, MaskRCNN_ResNet50_FPN_V2_Weights, maskrcnn_resnet50_fpn_v2
from torchvision.models.detection.anchor_utils import AnchorGenerator

from mcd.nets.detector import ANCHORS, light_mask_rcnn
from mcd.nets.layers import PretrainedError

COCO = MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1
CLASSES: tuple[str, ...] = tuple(COCO.meta["categories"])
"""Names by label; 0 is the background, "N/A" is in no data set."""

_SIDE, _LONGEST = 800, 1333
"""Shorter and longest side of the images of torchvision's training."""


def seen_size(native: tuple[int, int], side: int) -> tuple[int, int]:
    """Height and width at which a frame is shown to a segmenter, by torchvision's rule.

    The shorter side becomes ``side``, or less, so that the longer one is at most 1333/800 of it.
    """
    scale = min(side / min(native), side * _LONGEST / _SIDE / max(native))
    height, width = (max(round(length * scale), 1) for length in native)
    return height, width


def build_segmenter(name: str, size: tuple[int, int]) -> MaskRCNN:
    """The segmenter ``resnet50_v2`` (Mask R-CNN v2 of torchvision, 46,359,409 parameters) or ``light`` (3.6 M).

    ``light`` has no weights of its own: it is for those who train one for their cameras, with COCO's labels.

    Args:
        size: height and width of its inputs, which are not resized any more.

    Raises:
        ValueError: there is no such network.
    """
    height, width = size
    if name == "resnet50_v2":
        return maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, fixed_size=(width, height))
    if name == "light":
        sides = tuple((anchor * min(size) / _SIDE,) for anchor in ANCHORS)
        anchors = AnchorGenerator(sides, ((0.5, 1.0, 2.0),) * len(sides))
        return light_mask_rcnn(3, len(CLASSES), fixed_size=(width, height), rpn_anchor_generator=anchors)
    raise ValueError(f"no segmenter '{name}'; there are resnet50_v2, light")


def coco_weights() -> Path:
    """The file of ``resnet50_v2``'s COCO weights in torch's cache, fetched by torchvision where it is not there.

    Raises:
        PretrainedError: it cannot be fetched; the message says which file is wanted and where it goes.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / COCO.url.rpartition("/")[2]
    if not path.is_file():
        try:
            COCO.get_state_dict(progress=True, check_hash=True)
        except (OSError, RuntimeError) as error:  # the network and the disk; another content than its name says
            raise PretrainedError(
                f"COCO weights cannot be fetched ({error}): put {COCO.url} at {path}, or name the file with "
                "--set segment.weights=FILE"
            ) from None
    return path
