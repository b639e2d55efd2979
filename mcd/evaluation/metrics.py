"""Depth metrics, and the median ratio that puts a prediction into the unit of the ground truth.

Pixels stand along the last dimension, in one unit; leading dimensions are images. The usual figures (Eigen et al.,
NeurIPS 2014), over the n pixels that count, with p the prediction and g the truth:

    abs_rel  mean |p - g| / g             rmse      sqrt(mean (p - g)²)
    sq_rel   mean (p - g)² / g            rmse_log  sqrt(mean (ln p - ln g)²)
    a1 a2 a3 share of max(p / g, g / p) < 1.25, 1.25², 1.25³
"""

from __future__ import annotations

import torch
from torch import Tensor

METRICS = ("abs_rel", "sq_rel", "rmse", "rmse_log", "a1", "a2", "a3")


def depth_metrics(prediction: Tensor, truth: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
    """The metrics [...] of each image, NaN where no pixel counts.

    Args:
        prediction, truth: [...,n] float, positive where they count; the prediction aligned and clamped already.
        mask: [...,n] bool, the pixels that count (default all); what lies outside may be anything, NaN too.

    Raises:
        ValueError: the shapes differ.
    """
    mask = _checked_mask("depth_metrics", prediction, truth, mask)
    count = mask.sum(-1)
    prediction, truth = torch.where(mask, prediction, 1.0), torch.where(mask, truth, 1.0)

    def mean(values: Tensor) -> Tensor:
        return torch.where(mask, values, 0.0).sum(-1) / count

    error, ratio = prediction - truth, torch.maximum(prediction / truth, truth / prediction)
    metrics = {
        "abs_rel": mean(error.abs() / truth),
        "sq_rel": mean(error.square() / truth),
        "rmse": mean(error.square()).sqrt(),
        "rmse_log": mean((prediction.log() - truth.log()).square()).sqrt(),
    }
    return metrics | {f"a{k}": mean((ratio < 1.25**k).to(error.dtype)) for k in (1, 2, 3)}


def median_ratio(prediction: Tensor, truth: Tensor, mask: Tensor | None = None) -> Tensor:
    """median(truth) / median(prediction) [...] of each image, over the pixels of `mask`; NaN where there is none.

    The median is NumPy's, the mean of the two middle values. Arguments as in :func:`depth_metrics`.
    """
    mask = _checked_mask("median_ratio", prediction, truth, mask)
    return _median(truth, mask) / _median(prediction, mask)


def _median(values: Tensor, mask: Tensor) -> Tensor:
    # torch's median is the lower of the two middle values; that of the negated values is the upper.
    values = values.masked_fill(~mask, torch.nan)
    median = (values.nanmedian(-1).values - (-values).nanmedian(-1).values) / 2
    return median.masked_fill((values.isnan() & mask).any(-1), torch.nan)


def _checked_mask(name: str, prediction: Tensor, truth: Tensor, mask: Tensor | None) -> Tensor:
    mask = torch.ones_like(truth, dtype=torch.bool) if mask is None else mask
    if not prediction.shape == truth.shape == mask.shape:
        raise ValueError(
            f"{name}: prediction is {list(prediction.shape)}, truth {list(truth.shape)} and mask {list(mask.shape)}; "
            "they should be the same"
        )
    if mask.dtype != torch.bool:
        raise TypeError(f"{name}: mask is {mask.dtype}, it should be torch.bool")
    return mask
