"""Objects of a frame on disk, and what is done with them between two rounds of the detector."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mcd.config import Detector
from mcd.files import frame_path, reading, write_text
from mcd.masks import morphology as work
from mcd.masks.packed import load_arrays, load_masks, save_masks

Window = tuple[float, float, float, float]
"""Top, left, height and width as shares of an image."""

# The image; its lower left and lower right four fifths; the same two of its central half.
VIEWS: tuple[Window, ...] = (
    (0.0, 0.0, 1.0, 1.0),
    (0.2, 0.0, 0.8, 0.8),
    (0.2, 0.2, 0.8, 0.8),
    (0.35, 0.25, 0.4, 0.4),
    (0.35, 0.35, 0.4, 0.4),
)


@dataclass(frozen=True)
class FrameDetections:
    """The n objects that were found in one frame."""

    masks: Tensor
    """[n,H,W] bool; they may overlap."""
    scores: Tensor
    """[n] float32 in [0, 1]."""

    def save(self, path: Path, **more: np.ndarray) -> None:
        """Write them, and ``more`` arrays that belong to the frame."""
        save_masks(path, self.masks.cpu().numpy(), scores=self.scores.float().cpu().numpy(), **more)

    @staticmethod
    def load(path: Path) -> FrameDetections:
        """Raises DataError: the file is missing or broken."""
        masks, (scores,) = load_masks(path, "scores")
        with reading("masks", path):
            if masks.ndim != 3 or scores.shape != masks.shape[:1] or scores.dtype != np.float32:
                raise ValueError(f"scores are {scores.dtype} {list(scores.shape)}, and masks {list(masks.shape)}")
        return FrameDetections(torch.from_numpy(masks), torch.from_numpy(scores))


def write_counts(path: Path, counts: dict[str, int]) -> None:
    """A list of frames and how many objects each has."""
    write_text(path, "frame,objects\n" + "".join(f"{frame},{count}\n" for frame, count in counts.items()))


def read_counts(path: Path) -> dict[str, int]:
    """What :func:`write_counts` wrote."""
    with reading("list of detections", path), path.open(newline="") as file:
        return {line["frame"]: int(line["objects"]) for line in csv.DictReader(file)}


def summarise(folder: Path, split: str, frames: Iterable[str]) -> dict[str, int]:
    """Write the list of the frames whose objects are in a folder, and say what it adds up to."""
    paths = {frame: frame_path(folder, split, frame) for frame in frames}
    # Without a file: its image could not be read, and data.on_error is skip.
    counts = {frame: len(load_arrays(path, "scores")[0]) for frame, path in paths.items() if path.is_file()}
    write_counts(folder / f"{split}.csv", counts)
    return {
        "frames": len(counts),
        "frames_with_objects": sum(count > 0 for count in counts.values()),
        "objects": sum(counts.values()),
    }


REASONS = ("thin", "large", "off the ground", "ragged", "small")
"""Why a candidate is no object; the first that holds counts."""


def objects_of_slots(settings: Detector, slots: Tensor, ground: Tensor, moving: Tensor) -> tuple[list[Tensor], Tensor]:
    """Moving objects among the slot masks of B frames (Nguyen et al., CVPR 2024).

    Of each direction of the flow the largest slot is the background. What of another moves and is no ground is an
    object if its box, without what is thin, has ground at it to stand on, is mostly filled and neither large nor small.
    The object is then what of the box moves and is no ground, its gaps closed.

    The published code takes one direction, and a slot for one object, which loses two cars in one slot, and asks for
    ground inside the box, which the straight lower edge of a car may not leave; ``both_directions`` and ``split`` off
    and ``reach`` 0 are that form.

    Args:
        slots: [B,2,S,H,W] bool; ground, moving: [B,1,H,W] bool.

    Returns:
        Masks [n_b,H,W] of each frame, smallest first, and how many candidates were dropped, [B, len(REASONS)] int64.
    """
    height, width = slots.shape[-2:]
    pixels, unit = height * width, width / 512
    slots = slots if settings.both_directions else slots[:, :1]
    largest = slots.flatten(3).sum(dim=3).argmax(dim=2, keepdim=True)
    foreground = torch.arange(slots.shape[2], device=slots.device) != largest
    free = moving & ~ground
    shown = (slots & foreground[..., None, None]).flatten(1, 2) & free
    candidates = shown.flatten(0, 1)
    owner = torch.arange(len(shown), device=slots.device).repeat_interleave(shown.shape[1])
    occupied = candidates.flatten(1).any(dim=1)
    candidates, owner = candidates[occupied], owner[occupied]
    if settings.split:
        # An object is more than half of its box, and so is not lost here.
        candidates, part_of = work.components(candidates, smallest=settings.fill * settings.min_area * pixels)
        owner = owner[part_of]
    cores = work.filled_boxes(work.opened(candidates, round(settings.open * unit)))
    core_area = work.areas(cores)
    objects = cores & free[owner, 0]
    dropped = torch.zeros(len(slots), len(REASONS), dtype=torch.int64, device=slots.device)
    keep = torch.ones_like(owner, dtype=torch.bool)
    # Nearness that is wanted at all is at least a pixel.
    near_ground = work.dilate(cores, math.ceil(settings.reach * unit)) & ground[owner, 0]
    passes = (
        core_area > 0,
        core_area < settings.largest_box * pixels,
        near_ground.flatten(1).any(dim=1),
        work.areas(candidates) > settings.fill * core_area,
        work.areas(objects) > settings.min_area * pixels,
    )
    for reason, holds in enumerate(passes):
        dropped[:, reason] = torch.bincount(owner[keep & ~holds], minlength=len(slots))
        keep &= holds
    objects, owner = objects[keep], owner[keep]
    objects = work.closed(objects, round(settings.close * unit)) & free[owner, 0]
    found = []
    for frame in range(len(slots)):
        of_frame = objects[owner == frame]
        if settings.both_directions or settings.split:
            of_frame, _ = work.merge(of_frame, settings.absorb, settings.replace)
        found.append(of_frame[work.areas(of_frame).argsort(stable=True)])
    return found, dropped


def tidied(settings: Detector, found: FrameDetections, ground: Tensor, *, thorough: bool) -> FrameDetections:
    """The detections of a frame that are kept, best first.

    Masks that are small end. Where it is ``thorough`` and more than one is left: those that do not fill their box end,
    those of the same object become one (with the best of their scores), ground is taken out of all, and what is small
    by now ends too. The published test for small ones only ends empty masks, so that a speck switches the others on.

    Args:
        ground: [H,W] bool.
    """
    order = found.scores.argsort(descending=True, stable=True)
    masks, scores = found.masks[order], found.scores[order]
    smallest = settings.min_area * ground.numel()
    large = work.areas(masks) > smallest
    masks, scores = masks[large], scores[large]
    if thorough and len(masks) > 1:
        compact = work.box_excess(masks) < settings.box_excess
        masks, scores = masks[compact], scores[compact]
        masks, members = work.merge(masks, settings.absorb, settings.replace)
        # Scores descend, so that the first member's is the best.
        scores = scores[[indices[0] for indices in members]]
        masks = masks & ~ground
        large = work.areas(masks) > smallest
        masks, scores = masks[large], scores[large]
    order = scores.argsort(descending=True, stable=True)
    return FrameDetections(masks[order], scores[order])


def distinct(found: FrameDetections, most: float = 0.5) -> Tensor:
    """Indices [m] int64 of the objects, best first, without those that overlap with a better one by more than ``most``.

    A segmenter may show an object once for each of two classes.
    """
    shares, kept = work.overlap(found.masks, found.masks), list[int]()
    for index in found.scores.argsort(descending=True, stable=True).tolist():
        if not kept or shares[index, kept].max() <= most:
            kept.append(index)
    return torch.tensor(kept, dtype=torch.int64)


def window_slices(window: Window, size: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of a window, in whole pixels."""
    (top, left, height, width), (rows, columns) = window, size
    first_row, first_column = round(top * rows), round(left * columns)
    return (
        slice(first_row, round((top + height) * rows)),
        slice(first_column, round((left + width) * columns)),
    )


def look_through(window: Window, images: Tensor) -> Tensor:
    """What of ``images`` [B,C,H,W] a window shows, enlarged to their size."""
    size = (images.shape[-2], images.shape[-1])
    rows, columns = window_slices(window, size)
    return F.interpolate(images[..., rows, columns], size, mode="bilinear", align_corners=False)


def paste_back(window: Window, shares: Tensor) -> Tensor:
    """Masks [n,H,W] bool in the image, of shares [n,1,H,W] in [0,1] that were found through a window."""
    size = (shares.shape[-2], shares.shape[-1])
    rows, columns = window_slices(window, size)
    masks = torch.zeros(len(shares), *size, dtype=torch.bool, device=shares.device)
    if len(shares):
        inside = (rows.stop - rows.start, columns.stop - columns.start)
        masks[:, rows, columns] = F.interpolate(shares, inside, mode="bilinear", align_corners=False)[:, 0] >= 0.5
    return masks
