"""Instances: masks, labels and ragged pixels tell the same story; fields that cannot be right are refused."""

import pytest
import torch

from mcd import Instances


def int32(*values):
    return torch.tensor(values, dtype=torch.int32)


def random_masks(*counts, height=4, width=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(n, height, width, generator=generator) > 0.6 for n in counts]


def test_from_masks_lists_the_pixels_of_every_mask_in_order():
    first = torch.tensor([[[True, False, True], [False, True, False]], [[False] * 3, [False] * 3]])
    second = torch.tensor([[[False, False, False], [False, False, True]]])
    instances = Instances.from_masks([first, second])
    assert instances.pixel.tolist() == [0, 2, 4, 5]
    assert instances.pixel.dtype == torch.int32
    assert instances.offset.tolist() == [0, 3, 3, 4]
    assert instances.offset.dtype == torch.int32
    assert instances.frame.tolist() == [0, 0, 1]
    assert instances.frame.dtype == torch.int32
    assert instances.size == (2, 2, 3)
    assert len(instances) == 3
    assert instances.count.tolist() == [3, 0, 1]
    assert instances.instance.tolist() == [0, 0, 0, 2]


@pytest.mark.parametrize("counts", [(3, 0, 2), (0, 0), (1,)])
def test_masks_survive_the_round_trip(counts):
    masks = random_masks(*counts)
    back = Instances.from_masks(masks).to_masks()
    assert [mask.tolist() for mask in back] == [mask.tolist() for mask in masks]


def test_masks_of_instances_in_any_order_of_frames():
    instances = Instances(int32(1, 0, 1), int32(0, 1, 2, 3), int32(1, 0, 1), (2, 1, 2))
    assert [mask[:, 0].tolist() for mask in instances.to_masks()] == [
        [[True, False]],
        [[False, True], [False, True]],
    ]


def test_no_frame_has_no_masks():
    instances = Instances.from_masks([], size=(4, 5))
    assert instances.size == (0, 4, 5)
    assert len(instances) == 0
    assert instances.to_masks() == []
    with pytest.raises(ValueError, match="size"):
        Instances.from_masks([])


def test_from_labels_agrees_with_a_mask_for_every_value():
    labels = torch.randint(-1, 4, (3, 4, 5), generator=torch.Generator().manual_seed(0))
    labels[1] = 2  # the background alone
    values = [[value for value in frame.unique() if value != 2] for frame in labels]
    masks = [frame == torch.tensor(own).reshape(-1, 1, 1) for frame, own in zip(labels, values, strict=True)]
    expected, instances = Instances.from_masks(masks), Instances.from_labels(labels, background=2)
    for field in ("pixel", "offset", "frame"):
        assert getattr(instances, field).tolist() == getattr(expected, field).tolist()
    assert len(Instances.from_labels(labels[:0])) == 0
    # A background that the labels' type does not have is not that of its lowest bits.
    assert len(Instances.from_labels(torch.tensor([[[255, 1]]], dtype=torch.uint8), background=-1)) == 2


def test_gather_reads_the_frame_of_each_mask_with_its_gradient():
    masks = random_masks(2, 1)
    instances = Instances.from_masks(masks)
    values = torch.arange(40.0).reshape(2, 1, 4, 5).requires_grad_()
    gathered = instances.gather(values)
    expected = [values[b, 0][mask] for b, frame in enumerate(masks) for mask in frame]
    assert gathered.tolist() == torch.cat(expected).tolist()
    (gradient,) = torch.autograd.grad(gathered.sum(), values)
    assert gradient[:, 0].tolist() == torch.stack([frame.sum(0) for frame in masks]).float().tolist()


def test_to_keeps_the_fields():
    instances = Instances.from_masks(random_masks(2))
    moved = instances.to("cpu")
    assert moved.size == instances.size
    assert moved.pixel.tolist() == instances.pixel.tolist()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("pixel", int32(0, 6), r"pixel should lie in \[0, 6\)"),
        ("pixel", int32(0, -1), r"pixel should lie in \[0, 6\)"),
        ("offset", int32(0, 1), "offset has 2 entries, it should have one more than frame, 3"),
        ("offset", int32(0, 3, 2), "offset should not decrease"),
        ("offset", int32(0, 1, 1), "offset should run from 0 to 2"),
        ("frame", int32(0, 2), r"frame should lie in \[0, 2\)"),
        ("frame", int32(0)[0], "frame"),
        ("size", (2, 3), "size"),
        ("size", (2, 2, -3), "size"),
    ],
)
def test_fields_out_of_range_are_named(field, value, message):
    fields = {"pixel": int32(0, 5), "offset": int32(0, 1, 2), "frame": int32(0, 1), "size": (2, 2, 3)}
    Instances(**fields)
    with pytest.raises(ValueError, match=f"Instances: {message}"):
        Instances(**(fields | {field: value}))


@pytest.mark.parametrize("field", ["pixel", "offset", "frame"])
def test_fields_of_another_type_are_named(field):
    fields = {"pixel": int32(0, 5), "offset": int32(0, 1, 2), "frame": int32(0, 1), "size": (2, 2, 3)}
    with pytest.raises(TypeError, match=f"{field} is torch.int64"):
        Instances(**(fields | {field: fields[field].long()}))


def test_masks_of_another_size_or_type_are_named():
    with pytest.raises(ValueError, match=r"masks\[1\]"):
        Instances.from_masks([torch.zeros(1, 2, 3, dtype=torch.bool), torch.zeros(1, 2, 4, dtype=torch.bool)])
    with pytest.raises(TypeError, match=r"masks\[0\] is torch.float32"):
        Instances.from_masks([torch.zeros(1, 2, 3)])
    with pytest.raises(ValueError, match=r"2x3.*4x5"):
        Instances.from_masks([torch.zeros(1, 2, 3, dtype=torch.bool)], size=(4, 5))
    with pytest.raises(TypeError, match=r"labels is torch\.float32"):
        Instances.from_labels(torch.zeros(1, 2, 3))
    with pytest.raises(ValueError, match="gather: values has shape"):
        Instances.from_masks(random_masks(1)).gather(torch.zeros(2, 1, 4, 5))
