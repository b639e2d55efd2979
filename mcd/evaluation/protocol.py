"""How depth is compared with ground truth.

Image by image: the predicted inverse depth is resized bilinearly to the ground truth; pixels count inside the
protocol's crop where the truth lies strictly between the limits; the prediction is multiplied by the ratio of the
medians of all counted pixels (one ratio, whatever the region; with --scale: by what that says) and clamped to the
limits. A region's figure is the mean
over the images in which it has a pixel. Regions are ``all``, ``standing`` (measured points that stand on the road, see
:mod:`mcd.evaluation.standing`) and, where moving objects are known, ``static`` and ``dynamic``; the net of single
objects has ``objects``, where each has a ratio of its own. ``row_median`` is no net: it knows how far each image row
is, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mcd.config import Config, Evaluation
from mcd.data import Batch, EvaluationSet, fixed_batches, prefetch
from mcd.data.evaluation import valid_pixels
from mcd.data.files import read_mask, resize_nearest
from mcd.data.labels import numbered_masks
from mcd.errors import McdError
from mcd.evaluation.bootstrap import FrameFigures
from mcd.evaluation.figures import Regions
from mcd.evaluation.metrics import METRICS, depth_metrics, median_ratio
from mcd.evaluation.scale import ScaleOf
from mcd.evaluation.standing import standing_points
from mcd.files import DataError
from mcd.inference.predictor import DepthPredictor

REGIONS = ("all", "standing", "static", "dynamic", "objects")

Predict = Callable[[Batch], Tensor]
"""A batch of an :class:`EvaluationSet` (``image`` [B,3,H,W], ``frame``) to depths [B,1,h,w] of any size and scale."""


class EvaluationError(McdError, RuntimeError):
    """A prediction that cannot be evaluated."""


class NothingCountsError(DataError):
    """Ground truth that leaves no pixel to evaluate in any frame; the message says by which rule."""


def evaluate_depth(
    predict: Predict,
    dataset: EvaluationSet,
    settings: Evaluation,
    device: torch.device | str = "cpu",
    workers: int = 0,
    scale: ScaleOf | None = None,
    notes: list[str] | None = None,
    frames: FrameFigures | None = None,
) -> Regions:
    """Evaluate a depth predictor by the protocol above.

    Args:
        scale: what puts a prediction into metres; None: the ratio of the medians.
        notes: gets a line if frames are left out, because none of their pixels counts.
        frames: gets the figures of every frame.

    Returns:
        ``{region: {metric: mean over images}}``; a region that is empty in every image is left out. With a ``scale``
        the region ``all`` has two more: ``scale``, the median of what was used, and ``scale_scatter``, the standard
        deviation over the images of the logarithm of what was used over the ratio of the medians.

    Raises:
        DataError: ground truth is missing or broken.
        NothingCountsError: no pixel of any frame counts.
        EvaluationError: a prediction is not finite and positive.
    """
    empty: list[str] = []
    scales: list[tuple[float, float]] = []
    found: dict[str, list[dict[str, Tensor]]] = {region: [] for region in REGIONS}
    for batch in prefetch(fixed_batches(dataset, settings.batch, workers, device), device):
        depths = predict(batch)
        usable = (torch.isfinite(depths) & (depths > 0)).flatten(1).all(1).tolist()
        for index, frame in enumerate(batch["frame"]):
            if not usable[index]:
                raise EvaluationError(f"the predicted depth of frame {frame} is not finite and positive")
            gt, valid = (torch.from_numpy(batch[name][index]).to(device) for name in ("depth_gt", "valid"))
            if not valid.any():
                empty.append(f"{frame}: {batch['empty'][index]}")
                continue
            dynamic = batch["dynamic_mask"][index]
            masks = {"all": valid}
            standing = standing_points(batch["depth_gt"][index], batch["K_gt"][index].cpu().numpy())
            if standing is not None:
                masks["standing"] = valid & torch.from_numpy(standing).to(device)
            if dynamic is not None:
                moving = torch.from_numpy(dynamic).to(device)
                masks |= {"static": valid & ~moving, "dynamic": valid & moving}
            depth = depths[index : index + 1]
            predicted = resize_to(depth, gt)
            ratio = float(median_ratio(predicted[valid], gt[valid].double()))
            if scale is not None:
                scales.append((scale(depth, batch, index), ratio))
                ratio = scales[-1][0]
            aligned = (predicted * ratio).clamp(settings.min_depth, settings.max_depth)
            for region, mask in masks.items():
                if mask.any():
                    metrics = depth_metrics(aligned[mask], gt[mask].double())
                    found[region].append(metrics)
                    if frames is not None:
                        values = {name: float(value) for name, value in metrics.items()}
                        frames.regions.setdefault(region, {})[frame] = values
            if frames is not None and int(valid.sum()) > 1:
                frames.agreement.append(_agreement(predicted[valid], gt[valid].double()))
    if not found["all"]:
        raise NothingCountsError(f"no pixel of the ground truth counts in any of {len(empty)} frames; {empty[0]}")
    if notes is not None:
        notes += dataset.notes
    if empty and notes is not None:
        notes.append(
            f"{len(empty)} of {len(dataset)} evaluated frames are left out, for none of their pixels counts; {empty[0]}"
        )
    regions = {region: _means(rows) for region, rows in found.items() if rows}
    if scales:
        used, exact = torch.tensor(scales, dtype=torch.float64).unbind(1)
        scatter = float((used / exact).log().std(correction=0))
        regions["all"] |= {"scale": float(used.median()), "scale_scatter": scatter}
    return regions


def _agreement(predicted: Tensor, truth: Tensor) -> tuple[float, float]:
    """Correlation of the logarithms, 0 where one of them is the same everywhere, and the ratio of the medians."""
    correlation = (
        torch.corrcoef(torch.stack((predicted.log(), truth.log())))[0, 1] if len(truth) > 1 else torch.zeros(())
    )
    return float(correlation.nan_to_num(0.0)), float(median_ratio(predicted, truth))


def align(depth: Tensor, gt: Tensor, valid: Tensor, settings: Evaluation) -> Tensor:
    """Predicted depth [1,1,h,w] at the size, in the unit and within the limits of a ground truth [H,W]; float64."""
    predicted = resize_to(depth, gt)
    ratio = median_ratio(predicted[valid], gt[valid].double())
    return (predicted * ratio).clamp(settings.min_depth, settings.max_depth)


def resize_to(depth: Tensor, gt: Tensor) -> Tensor:
    """Predicted depth [1,1,h,w] at the size of a ground truth [H,W]; float64."""
    return 1 / F.interpolate(1 / depth.double(), gt.shape, mode="bilinear", align_corners=False)[0, 0]


def evaluate_objects(net: DepthPredictor, config: Config) -> dict[str, float]:
    """A depth net of single objects: each is shown alone on black, and evaluated inside its mask at its own scale.

    Truth and masks have the net's size here. Masks are those of moving objects, as in the evaluation of whole images.

    Returns:
        Means over the objects with a valid pixel; empty if there is none.
    """
    settings, size = config.evaluation, net.size
    masks_of_split = config.data.root / f"{settings.split}_mask_class"
    dataset = EvaluationSet(config)
    found = []
    for item in (dataset[index] for index in range(len(dataset))):
        kept = len(item["depth_gt"])
        paths = numbered_masks(masks_of_split / item["frame"]).values()
        masks = [torch.from_numpy(resize_nearest(read_mask(path)[:kept], size)) for path in paths]
        masks = [mask for mask in masks if mask.float().mean() >= settings.min_mask_area]
        if not masks:
            continue
        gt = torch.from_numpy(resize_nearest(item["depth_gt"], size)).double()
        valid = torch.from_numpy(valid_pixels(config, gt.numpy()))
        alone = torch.stack([item["image"].float() / 255 * mask for mask in masks])
        for mask, depth in zip(masks, net(alone).cpu().double()[:, 0], strict=True):
            inside = mask & valid
            if inside.any():
                scaled = depth[inside] * median_ratio(depth[inside], gt[inside])
                found.append(depth_metrics(scaled.clamp(settings.min_depth, settings.max_depth), gt[inside]))
    return _means(found) if found else {}


def _means(found: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
    rows = torch.stack([torch.stack([metrics[name] for name in METRICS]) for metrics in found])
    return dict(zip(METRICS, rows.mean(0).tolist(), strict=True))
