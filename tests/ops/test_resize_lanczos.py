from __future__ import annotations

import numpy as np
import pytest
import torch

from mcd.ops import native
from mcd.ops.resize_lanczos import resize_lanczos

# The other tests of operators need PyTorch and NumPy alone.
Image = pytest.importorskip("PIL.Image")
pytestmark = pytest.mark.skipif(native.why_not("cpu") is not None, reason="the compiled module is missing")

SIZES = [
    ((96, 256), (48, 128)),  # as the published frames are halved
    ((37, 53), (10, 17)),
    ((10, 17), (37, 53)),
    ((24, 80), (24, 33)),  # one side stays
    ((1, 1), (3, 2)),
    ((33, 40), (1, 1)),
    ((38, 33), (34, 56)),  # Pillow 13 would begin with the rows
]


@pytest.mark.parametrize("target", native.cpu_targets())
@pytest.mark.parametrize(("old", "new"), SIZES)
def test_it_is_pillows_to_the_bit(
    old: tuple[int, int], new: tuple[int, int], target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "_cpu", getattr(native._C, target))
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (*old, 3), dtype=np.uint8)
    # Black and white: Lanczos overshoots there, and is cut off.
    for image in (noise, np.where(noise > 127, 255, 0).astype(np.uint8)):
        columns = Image.fromarray(image).resize((new[1], old[0]), Image.Resampling.LANCZOS)
        expected = np.asarray(columns.resize(new[::-1], Image.Resampling.LANCZOS))
        found = resize_lanczos(torch.from_numpy(image), new).numpy()
        assert np.array_equal(found, expected.transpose(2, 0, 1))


def test_threads_give_the_same_bits() -> None:
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        single = resize_lanczos(image, (31, 44))
        torch.set_num_threads(3)
        assert torch.equal(resize_lanczos(image, (31, 44)), single)
    finally:
        torch.set_num_threads(before)


def test_names_what_is_wrong() -> None:
    image = torch.zeros(4, 5, 3, dtype=torch.uint8)
    with pytest.raises(TypeError, match="uint8 on cpu, not torch.float32"):
        resize_lanczos(image.float(), (2, 2))
    for wrong in ((image[..., :2], (2, 2)), (image, (0, 2)), (image[:0], (2, 2))):
        with pytest.raises(ValueError, match="resize_lanczos: expected an image"):
            resize_lanczos(*wrong)
