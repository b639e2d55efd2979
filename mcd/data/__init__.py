"""Data sets: synthetic streets, image triplets in the Cityscapes layout, KITTI raw, folders of consecutive frames."""

from mcd.extras import python_m

with python_m("train", "mcd prepare"):
    from mcd.data.dataset import FrameDataset, Map, WholeFrame
    from mcd.data.evaluation import EvaluationSet
    from mcd.data.frames import Frames, Reader
    from mcd.data.kitti import KittiFolder
    from mcd.data.labels import instance_masks, road_mask
    from mcd.data.loader import (
        Batch,
        StepSampler,
        build_loader,
        collate,
        end_workers,
        fixed_batches,
        prefetch,
        to_device,
    )
    from mcd.data.readers import open_reader
    from mcd.data.sequence import SequenceFolder
    from mcd.data.triplets import TripletFolder
    from mcd.files import DataError

__all__ = [
    "Batch",
    "DataError",
    "EvaluationSet",
    "FrameDataset",
    "Frames",
    "KittiFolder",
    "Map",
    "Reader",
    "SequenceFolder",
    "StepSampler",
    "TripletFolder",
    "WholeFrame",
    "build_loader",
    "collate",
    "end_workers",
    "fixed_batches",
    "instance_masks",
    "open_reader",
    "prefetch",
    "road_mask",
    "to_device",
]
