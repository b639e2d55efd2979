from __future__ import annotations

import multiprocessing
import os
import subprocess
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from mcd.config import Augment, Data
from mcd.data import (
    FrameDataset,
    Map,
    StepSampler,
    WholeFrame,
    build_loader,
    collate,
    end_workers,
    fixed_batches,
    open_reader,
    prefetch,
    to_device,
)
from mcd.files import DataError

Files = Any


class Numbers(Dataset[dict[str, Any]]):
    """Items that say which process made them."""

    def __init__(self, length: int = 10):
        self.items = [WholeFrame(f"frame{index}") for index in range(length)]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: Any) -> dict[str, Any]:
        return {"index": torch.tensor(key[0]), "process": os.getpid(), "threads": torch.get_num_threads()}


def train_set(config: Data) -> FrameDataset:
    return FrameDataset(open_reader(config, "train"), config, Augment(), seed=7)


def test_an_epoch_sees_every_item_once_and_drops_the_rest() -> None:
    batches = list(StepSampler(length=11, batch=3, seed=0, start=0, steps=6))
    assert [{draw for _, draw in batch} for batch in batches] == [{0}] * 3 + [{1}] * 3
    for epoch in (batches[:3], batches[3:]):
        seen = [index for batch in epoch for index, _ in batch]
        assert len(seen) == len(set(seen)) == 9
        assert set(seen) < set(range(11))
    assert [i for b in batches[:3] for i, _ in b] != [i for b in batches[3:] for i, _ in b], "epochs differ"


def test_a_sampler_that_starts_late_goes_on_where_the_other_would_be() -> None:
    whole = list(StepSampler(11, 3, seed=5, start=0, steps=20))
    for start in (0, 1, 3, 7, 20):
        late = StepSampler(11, 3, seed=5, start=start, steps=20)
        assert list(late) == whole[start:]
        assert len(late) == 20 - start
    assert list(StepSampler(11, 3, seed=6, start=0, steps=20)) != whole


def test_another_first_epoch_is_another_order_and_other_draws() -> None:
    early = list(StepSampler(11, 3, seed=5, start=0, steps=9))
    late = list(StepSampler(11, 3, seed=5, start=0, steps=9, first_epoch=2))
    assert [{draw for _, draw in batch} for batch in late] == [{2}] * 3 + [{3}] * 3 + [{4}] * 3
    assert late[:3] == early[6:]


def test_a_data_set_smaller_than_the_batch_is_an_error_with_both_numbers() -> None:
    with pytest.raises(ValueError, match=r"batch of 8 .* data set of 3 items"):
        StepSampler(3, 8, seed=0, start=0, steps=1)


def test_batches_are_the_same_with_any_number_of_workers_and_after_a_stop(triplets: Data) -> None:
    def run(workers: int, start: int) -> list[dict[str, Any]]:
        loader = build_loader(train_set(triplets), StepSampler(4, 2, 0, start, 6), workers)
        return list(prefetch(loader))

    truth = run(workers=0, start=0)
    for workers, start in ((2, 0), (1, 3)):
        batches = run(workers, start)
        assert len(batches) == 6 - start
        for batch, expected in zip(batches, truth[start:], strict=True):
            assert batch["frame"] == expected["frame"]
            for name in ("reference", "sources", "K", "index", "draw"):
                assert torch.equal(batch[name], expected[name]), name


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_leaves_the_random_stream_of_torch_alone(triplets: Data, workers: int) -> None:
    """A resumed run makes other loaders than one that was not stopped, but must draw the same numbers."""
    state = torch.get_rng_state()
    list(prefetch(fixed_batches(train_set(triplets), 2, workers)))
    assert torch.equal(torch.get_rng_state(), state)


def test_fixed_batches_keep_order_and_leave_nothing_out() -> None:
    batches = list(fixed_batches(Numbers(10), 4, 0))
    assert [batch["index"].tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    skipping = list(fixed_batches(Numbers(5), 4, 0, skip={"frame0", "frame3"}))
    assert [batch["index"].tolist() for batch in skipping] == [[1, 2, 4]]
    assert list(fixed_batches(Numbers(0), 4, 2)) == []


def test_a_limit_spreads_the_batches_over_the_data_set() -> None:
    batches = list(fixed_batches(Numbers(100), 5, 0, limit=2))
    assert [batch["index"].tolist() for batch in batches] == [[0, 10, 20, 30, 40], [50, 60, 70, 80, 90]]
    assert len(list(fixed_batches(Numbers(7), 5, 0, limit=2))) == 2


def test_collation_stacks_joins_and_lists() -> None:
    masks = [torch.zeros(n, 2, 3, dtype=torch.bool) for n in (2, 0, 1)]
    items = [
        {"K": torch.eye(3), "instances": mask, "frame": name, "ids": [1] * len(mask), "skipped": problems}
        for mask, name, problems in zip(masks, "abc", ([], ["x", "y"], ["z"]), strict=True)
    ]
    batch = to_device(collate(items), "cpu")
    assert batch["K"].shape == (3, 3, 3)
    assert [mask.shape for mask in batch["instances"]] == [(2, 2, 3), (0, 2, 3), (1, 2, 3)]
    assert batch["frame"] == ["a", "b", "c"]
    assert batch["ids"] == [[1, 1], [], [1]]
    assert batch["skipped"] == ["x", "y", "z"]


@pytest.mark.parametrize("channels_last", [False, True])
def test_images_arrive_in_the_unit_interval_and_in_the_layout_asked_for(triplets: Data, channels_last: bool) -> None:
    plain = FrameDataset(open_reader(triplets, "train"), triplets, Augment(jitter=0), seed=7)
    items = [plain[index, 0] for index in range(3)]
    batch = to_device(collate(items), "cpu", channels_last)
    assert batch["reference"].shape == (3, 3, *triplets.size)
    assert batch["sources"].shape == (3, 2, 3, *triplets.size)
    for name in ("reference", "sources"):
        assert batch[name].dtype == torch.float32
        # Division is correctly rounded, so the truth is exact.
        expected = torch.stack([item[name] for item in items]).numpy().astype(np.float32) / np.float32(255)
        assert np.array_equal(batch[name].numpy(), expected)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    for images in (batch["reference"], batch["sources"].flatten(0, 1)):
        assert images.is_contiguous(memory_format=layout)


def test_the_jitter_of_an_item_does_not_depend_on_its_batch(triplets: Data) -> None:
    found = train_set(triplets)
    items = [found[index % 4, index] for index in range(12)]
    draws = [item["jitter"] for item in items]
    assert 0 < sum(bool(draw[4] >= 0) for draw in draws) < 12, "some of them jitter"
    together = to_device(collate(items), "cpu")
    assert "jitter" not in together
    for place, item in enumerate(items):
        alone = to_device(collate([item]), "cpu")
        for name in ("reference", "sources"):
            assert torch.equal(alone[name][0], together[name][place])
            untouched = torch.equal(alone[name][0], item[name].float() / 255)
            assert untouched == bool(draws[place][4] < 0), "what has drawn nothing stays, all else changes"


def test_persistent_workers_serve_every_iteration_until_they_are_ended() -> None:
    loader = fixed_batches(Numbers(8), 2, 2, persistent=True)
    first, second = ({pid for batch in prefetch(loader) for pid in batch["process"]} for _ in range(2))
    assert first == second and os.getpid() not in first
    end_workers(loader)
    assert not any(child.pid in first for child in multiprocessing.active_children())
    end_workers(loader)  # twice is once


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_file_reaches_the_user_in_one_line(triplets: Data, files: Files, workers: int) -> None:
    path = triplets.root / "triplets" / "a" / "a_000000_000010.png"
    files.truncate(path)
    with pytest.raises(DataError) as error:
        list(prefetch(fixed_batches(train_set(triplets), 2, workers)))
    assert str(error.value).startswith(f"image {path} cannot be read: ")
    assert "Traceback" not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_bug_in_a_worker_keeps_its_traceback(triplets: Data) -> None:
    def labels(item: Any) -> dict[str, Any]:
        return {"x": 1 / 0}

    broken = FrameDataset(open_reader(triplets, "train"), triplets, labels=labels)
    with pytest.raises(ZeroDivisionError, match=r"(?s)Traceback.*in labels"):
        list(prefetch(fixed_batches(broken, 2, 1)))


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_items_are_counted_in_their_batch_and_warned_of_once(
    triplets: Data, files: Files, workers: int
) -> None:
    config = triplets.model_copy(update={"on_error": "skip"})
    files.truncate(config.root / "triplets" / "a" / "a_000000_000010.png")
    loader = build_loader(train_set(config), StepSampler(4, 2, 0, 0, 6), workers)
    with pytest.warns(UserWarning, match=r"left out: image .*a_000000_000010\.png") as warnings:
        counts = [len(batch["skipped"]) for batch in prefetch(loader)]
    assert len(counts) == 6
    assert sum(counts) == 3, "once in each of three epochs"
    assert sum("left out" in str(warning.message) for warning in warnings) == 1


def test_workers_outlive_signals_that_are_meant_for_the_main_process() -> None:
    """Ctrl-C and a batch system's SIGTERM hit the whole process group; the main process has to save first."""
    loader = build_loader(Numbers(), [[(step % 10, 0)] for step in range(40)], workers=2)
    batches = prefetch(loader)
    seen = [next(batches) for _ in range(2)]
    for process in {batch["process"][0] for batch in seen}:
        assert process != os.getpid()
        # The parent may end its workers, so somebody else has to send.
        for name in ("-INT", "-TERM"):
            subprocess.run(["kill", name, str(process)], check=True)
    assert len(list(batches)) == 38


def test_no_worker_is_left_when_its_user_is_gone() -> None:
    """Whether the user goes away in the middle, or an exception that is kept holds on to the loader."""
    batches = prefetch(build_loader(Numbers(), [[(0, 0)]] * 40, workers=2))
    next(batches)
    del batches
    assert multiprocessing.active_children() == []
    with pytest.raises(TypeError) as kept:
        list(prefetch(build_loader(Numbers(), [["no key"]] * 40, workers=2)))  # type: ignore[list-item]
    assert kept.value.__traceback__ is not None
    assert multiprocessing.active_children() == []


def test_a_worker_ends_when_its_parent_says_so() -> None:
    """At the end of the interpreter, daemon processes get SIGTERM and are waited for without limit."""
    iterator = iter(build_loader(Numbers(), [[(0, 0)]] * 40, workers=1))
    next(iterator)
    (worker,) = multiprocessing.active_children()
    worker.terminate()
    worker.join(timeout=10)
    assert worker.exitcode == 0


def test_workers_use_one_thread_and_no_more_workers_start_than_batches() -> None:
    batches = list(prefetch(fixed_batches(Numbers(2), 1, workers=8)))
    assert [batch["threads"] for batch in batches] == [[1], [1]]
    assert fixed_batches(Numbers(2), 1, workers=8).num_workers == 2


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_batches_prefetched_to_cuda_are_those_of_the_cpu(triplets: Data) -> None:
    def run(device: str) -> list[dict[str, Any]]:
        labels = {"instances": Map(np.ones((2, *triplets.size), bool))}
        items = FrameDataset(open_reader(triplets, "train"), triplets, Augment(), labels=lambda item: labels)
        loader = build_loader(items, StepSampler(4, 2, 0, 0, 12), 1, device)
        return list(prefetch(loader, device, channels_last=True))

    for batch, expected in zip(run("cuda"), run("cpu"), strict=True):
        assert batch["reference"].is_cuda
        assert len(batch["instances"]) == 2
        # CUDA multiplies by the reciprocal of 255: one unit in the last place of values up to 1.
        assert torch.allclose(batch["reference"].cpu(), expected["reference"], rtol=0, atol=1.2e-7)
        assert torch.equal(batch["instances"][1].cpu(), expected["instances"][1])
