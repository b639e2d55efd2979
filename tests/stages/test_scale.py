"""What the scale net sees: boxes, shifts, normalisation."""

import torch

from mcd.config import Config, Scale, parse_config
from mcd.stages.scale import ScaleInputs, surrounding_box

WIDTH, HEIGHT = 512, 40


def mask_of(rows: tuple[int, int], columns: tuple[int, int]) -> torch.Tensor:
    mask = torch.zeros(1, 1, HEIGHT, WIDTH, dtype=torch.bool)
    mask[..., rows[0] : rows[1], columns[0] : columns[1]] = True
    return mask


def test_the_box_grows_more_straight_ahead():
    # The published band is empty, so that objects straight ahead get the small margin: 2 dilations, 4 pixels.
    config = Config()
    aside = surrounding_box(config, mask_of((15, 20), (100, 110)))
    assert torch.equal(aside, mask_of((11, 24), (96, 114)))
    ahead = surrounding_box(config, mask_of((15, 20), (250, 260)))
    assert torch.equal(ahead, mask_of((5, 30), (240, 270)))


def test_the_box_spans_separate_parts_and_nothing_for_nothing():
    parts = mask_of((15, 17), (100, 102)) | mask_of((20, 22), (110, 112))
    assert torch.equal(surrounding_box(Config(), parts), mask_of((11, 26), (96, 116)))
    assert not surrounding_box(Config(), torch.zeros(1, 1, HEIGHT, WIDTH, dtype=torch.bool)).any()


def test_a_shift_moves_everything_and_brings_in_nothing():
    torch.manual_seed(0)
    mask = torch.rand(2, 1, 4, 6) > 0.5
    inputs = ScaleInputs(
        torch.rand(2, 3, 4, 6), mask, torch.rand(2, 1, 4, 6), torch.rand(2, 1, 4, 6), torch.rand(2, 1, 4, 6)
    )
    moved = inputs.shifted(torch.tensor([2, -1]))
    for name in ("image", "mask", "scene_depth", "ground", "object_depth"):
        before, after = getattr(inputs, name), getattr(moved, name)
        assert torch.equal(after[0, ..., 2:], before[0, ..., :-2]), name
        assert not after[0, ..., :2].any(), name
        assert torch.equal(after[1, ..., :-1], before[1, ..., 1:]), name
        assert not after[1, ..., -1:].any(), name


def test_the_shift_is_on_by_default_and_the_published_form_an_option():
    assert Scale(steps=1).shift_augment > 0
    assert parse_config({"scale": {"steps": 1, "shift_augment": 0}}).scale.shift_augment == 0
