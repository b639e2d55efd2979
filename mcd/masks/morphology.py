"""Work on masks: bool tensors [n, H, W], all masks of a call at once, on the device that they are on.

Squares are the only structuring element, so that a dilation by 5x5, k times over, is one of radius 2k. What lies
outside the image neither grows into it nor eats a mask at its border.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage, optimize
from torch import Tensor


def areas(masks: Tensor) -> Tensor:
    """Pixels [n] of every mask, int64."""
    return masks.flatten(1).sum(dim=1)


def boxes(masks: Tensor) -> Tensor:
    """Left, top, right and bottom [n,4] int64 of every mask, the last two exclusive; zeros for an empty mask.

    Exclusive, so that the box of a mask one pixel wide has an area. The published code takes the last pixel itself for
    the border, and a detector rejects such a box.
    """
    _check("boxes", masks)
    sides = []
    for dim in (-2, -1):
        occupied = masks.any(dim=dim)
        length = occupied.shape[1]
        position = torch.arange(length, device=masks.device)
        sides.append(torch.where(occupied, position, length).amin(dim=1))
        sides.append(torch.where(occupied, position + 1, 0).amax(dim=1))
    left, right, top, bottom = sides
    return torch.stack((left, top, right, bottom), dim=1) * masks.flatten(1).any(dim=1, keepdim=True)


def box_areas(masks: Tensor) -> Tensor:
    """Area [n] int64 of every mask's bounding box."""
    left, top, right, bottom = boxes(masks).unbind(1)
    return (right - left) * (bottom - top)


def filled_boxes(masks: Tensor, margin: Tensor | int = 0) -> Tensor:
    """The bounding box of every mask as a mask [n,H,W], grown by ``margin`` ([n], or one for all) on every side.

    The box of an empty mask is empty.
    """
    grow = torch.as_tensor(margin, device=masks.device).expand(len(masks))[:, None]
    left, top, right, bottom = boxes(masks)[:, :, None].unbind(1)
    rows, columns = (torch.arange(length, device=masks.device) for length in masks.shape[1:])
    in_rows = (rows >= top - grow) & (rows < bottom + grow) & (bottom > 0)
    return in_rows[:, :, None] & ((columns >= left - grow) & (columns < right + grow))[:, None, :]


def dilate(masks: Tensor, radius: int) -> Tensor:
    """Every mask grown by ``radius`` pixels in each direction, diagonals too."""
    _check("dilate", masks)
    if radius < 0:
        raise ValueError(f"dilate: radius is {radius}, it should not be negative")
    if radius == 0 or not masks.numel():
        return masks.clone()
    size = 2 * radius + 1
    grown = F.max_pool2d(masks[:, None].float(), (size, 1), stride=1, padding=(radius, 0))
    return F.max_pool2d(grown, (1, size), stride=1, padding=(0, radius))[:, 0] > 0


def erode(masks: Tensor, radius: int) -> Tensor:
    """Every mask without its outer ``radius`` pixels; the border of the image is no border of a mask."""
    return ~dilate(~masks, radius)


def opened(masks: Tensor, radius: int) -> Tensor:
    """What of every mask is covered by squares of 2 radius + 1 pixels that lie inside it."""
    return dilate(erode(masks, radius), radius)


def closed(masks: Tensor, radius: int) -> Tensor:
    """Every mask with its gaps of up to 2 radius pixels filled."""
    return erode(dilate(masks, radius), radius)


def components(masks: Tensor, smallest: float = 1) -> tuple[Tensor, Tensor]:
    """The connected parts of every mask; pixels that share a corner are connected.

    Args:
        smallest: parts of fewer pixels are left out.

    Returns:
        parts [m,H,W], mask after mask, and the mask [m] int64 that each is of. Labelled on the CPU, all masks at once.
    """
    _check("components", masks)
    neighbours = np.zeros((3, 3, 3), dtype=bool)
    neighbours[1] = True  # never from one mask to the next
    labels, count = ndimage.label(masks.cpu().numpy(), structure=neighbours)
    kept = np.flatnonzero(np.bincount(labels.ravel(), minlength=count + 1)[1:] >= smallest) + 1
    places = ndimage.find_objects(labels) if count else []
    owner = np.array([places[label - 1][0].start for label in kept], dtype=np.int64)
    parts = labels[owner] == kept[:, None, None]
    return torch.from_numpy(parts).to(masks.device), torch.from_numpy(owner).to(masks.device)


def intersections(masks: Tensor, others: Tensor) -> Tensor:
    """Pixels [n,m] float32 that each mask shares with each other one; exact below 2^24."""
    _check("intersections", masks)
    _check("intersections", others)
    return masks.flatten(1).float() @ others.flatten(1).float().T


def overlap(masks: Tensor, others: Tensor) -> Tensor:
    """Intersection over union [n,m]; 0 where both are empty."""
    shared = intersections(masks, others)
    return shared / (areas(masks)[:, None] + areas(others) - shared).clamp(min=1)


def coverage(masks: Tensor, others: Tensor) -> Tensor:
    """Share [n,m] of each mask that each other one covers; 0 for an empty mask."""
    return intersections(masks, others) / areas(masks)[:, None].clamp(min=1)


def box_excess(masks: Tensor) -> Tensor:
    """Pixels [n] of the bounding box that a mask leaves free, as a share of the mask; 0 for an empty mask."""
    area = areas(masks)
    return (box_areas(masks) - area) / area.clamp(min=1)


def merge(masks: Tensor, absorb: float = 0.5, replace: float = 0.25) -> tuple[Tensor, list[list[int]]]:
    """One mask an object, of masks [n,H,W] that may show the same one more than once (Nguyen et al., CVPR 2024).

    First, in order: if another mask covers at least the share ``absorb`` of a mask, the mask is merged into the largest
    one that covers at least ``replace`` of it. Then every mask is removed of which a larger one covers at least
    ``replace``. Empty masks are removed. The published code replaces removed masks by copies and compares later masks
    with these too; here a removed mask is not compared any more.

    Returns:
        The masks [m,H,W] that are left, in their order, and the indices of the masks that make up each.
    """
    _check("merge", masks)
    flat = masks.flatten(1).float()
    shared = (flat @ flat.T).cpu()
    members = [[index] for index in range(len(masks))]
    alive = shared.diagonal() > 0

    def covered(index: int) -> Tensor:
        share = torch.where(alive, shared[index] / shared[index, index], 0.0)
        share[index] = 0.0
        return share

    for index in alive.nonzero()[:, 0].tolist():
        share = covered(index)
        if share.max() < absorb:
            continue
        host = int(torch.where(share >= replace, shared.diagonal(), 0.0).argmax())
        flat[host] = torch.maximum(flat[host], flat[index])
        alive[index] = False
        members[host] += members[index]
        shared[host] = shared[:, host] = (flat @ flat[host]).cpu()
    area = shared.diagonal()
    inside = [bool((area[covered(index) >= replace] > area[index]).any()) for index in range(len(masks))]
    left = [index for index in range(len(masks)) if alive[index] and not inside[index]]
    return flat[left].bool().reshape(-1, *masks.shape[1:]), [sorted(members[index]) for index in left]


def match(masks: Tensor, others: Tensor, threshold: float = 0.5) -> list[tuple[int, int]]:
    """Pairs of masks and others that overlap (intersection over union) by at least ``threshold``.

    Each is in one pair at most; there are as many pairs as possible, and of these choices the one of most overlap.
    """
    return pairs(overlap(masks, others), threshold)


def pairs(overlaps: Tensor, threshold: float) -> list[tuple[int, int]]:
    """The same of overlaps [n,m] that are known."""
    shares = overlaps.cpu().double().numpy()
    near = shares >= threshold
    # Any pair outweighs all differences in overlap.
    weight = np.where(near, shares + sum(shares.shape) + 1, 0.0)
    found = zip(*optimize.linear_sum_assignment(weight, maximize=True), strict=True)
    return [(int(row), int(column)) for row, column in found if near[row, column]]


def _check(function: str, masks: Tensor) -> None:
    if not isinstance(masks, Tensor) or masks.dtype != torch.bool or masks.ndim != 3:
        found = f"{masks.dtype} {list(masks.shape)}" if isinstance(masks, Tensor) else type(masks).__name__
        raise TypeError(f"{function}: masks should be a bool tensor [n, H, W], not {found}")
