from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from mcd.ops import native
from mcd.ops.colour_jitter import KINDS, colour_jitter

# The other tests of operators need PyTorch and NumPy alone.
published = pytest.importorskip("torchvision.transforms.functional")
pytest.importorskip("pydantic")

from mcd.config import Augment  # noqa: E402
from mcd.data.augment import draw_jitter, no_jitter  # noqa: E402

STRONG = Augment(brightness=(0.3, 1.7), contrast=(0.3, 1.7), saturation=(0.3, 1.7), hue=(-0.4, 0.4))
ADJUST = (published.adjust_brightness, published.adjust_contrast, published.adjust_saturation, published.adjust_hue)
HERE = ["reference", *(["native"] if native.why_not("cpu") is None else [])]


def picture(seed: int = 0, width: int = 16) -> Tensor:
    """Noise, with the corners of the colour cube and a grey ramp, where hue and chroma change their branch."""
    image = np.random.default_rng(seed).integers(0, 256, (3, 12, width), dtype=np.uint8)
    for corner in range(8):
        image[:, 0, corner] = [255 * (corner >> bit & 1) for bit in range(3)]
    image[:, 1, :16] = np.arange(0, 256, 16)
    return torch.from_numpy(image)


def only(kind: int, amount: float) -> Tensor:
    """Draws in which one change acts, the others being those that change nothing, in another order."""
    factors = [1.0, 1.0, 1.0, 0.0]
    factors[kind] = amount
    return torch.tensor([[*factors, *((kind + 1 + place) % len(KINDS) for place in range(len(KINDS)))]])


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize(
    ("kind", "amounts"),
    [(0, (0.8, 1.2, 1.7)), (1, (0.8, 1.2, 0.1)), (2, (0.8, 1.2, 0.0)), (3, (-0.1, 0.1, 0.37, -0.5, 0.5))],
    ids=KINDS,
)
def test_each_change_is_what_torchvision_does(backend: str, kind: int, amounts: tuple[float, ...]) -> None:
    # The second image is darker: contrast goes towards the mean of each.
    images = torch.stack([picture(0), picture(1) // 2])[None]
    for amount in amounts:
        expected = ADJUST[kind](images[0].float() / 255, amount) * 255
        found = colour_jitter(images, only(kind, amount), backend=backend)[0]
        # Rounding takes half a level; torchvision's luminance has the weight 0.2989 where ours is 0.299.
        assert (found.float() - expected).abs().max() < 0.5 + 0.08, amount


@pytest.mark.parametrize("backend", HERE)
def test_all_changes_in_their_order_are_torchvisions_within_a_grey_level(backend: str) -> None:
    images = torch.stack([torch.stack([picture(seed), picture(seed + 9), picture(seed)]) for seed in range(5)])
    for seed in range(6):
        draws = torch.stack([draw_jitter(STRONG, np.random.default_rng((seed, item))) for item in range(5)])
        found = colour_jitter(images, draws, backend=backend)
        for item, row in enumerate(draws):
            x = images[item].float() / 255
            for kind in row[4:].int().tolist():
                x = ADJUST[kind](x, float(row[kind]))
            assert (found[item].float() - 255 * x).abs().max() <= 1
        assert torch.equal(found[:, 0], found[:, 2]), "equal images of an item change alike"


@pytest.mark.skipif(len(HERE) == 1, reason="the compiled module is missing")
@pytest.mark.parametrize("target", native.cpu_targets())
@pytest.mark.parametrize("width", [16, 21, 61])
def test_the_compiled_operator_agrees_with_its_definition(
    target: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "_cpu", getattr(native._C, target))
    images = torch.stack([picture(seed, width)[None] for seed in range(40)])
    draws = torch.stack([draw_jitter(STRONG, np.random.default_rng(item)) for item in range(40)])
    native_one, reference = (colour_jitter(images, draws, backend=name).int() for name in ("native", "reference"))
    differences = (native_one - reference).abs()
    assert differences.max() <= 1
    assert (differences > 0).float().mean() < 1e-3


@pytest.mark.parametrize("backend", HERE)
def test_items_without_jitter_stay_as_they_are(backend: str) -> None:
    images = torch.stack([picture(seed)[None] for seed in range(3)])
    ended = torch.tensor([0.5, 0.5, 0.5, 0.2, -1, 0, 1, 2])  # the first says that there is none
    draws = torch.stack([no_jitter(), draw_jitter(STRONG, np.random.default_rng(0)), ended])
    found = colour_jitter(images, draws, backend=backend)
    assert torch.equal(found[::2], images[::2])
    assert not torch.equal(found[1], images[1])
    none = Augment(brightness=(1, 1), contrast=(1, 1), saturation=(1, 1), hue=(0, 0))
    same = torch.stack([draw_jitter(none, np.random.default_rng(item)) for item in range(3)])
    assert torch.equal(colour_jitter(images, same, backend=backend), images)


@pytest.mark.parametrize("backend", HERE)
def test_the_order_in_memory_does_not_matter(backend: str) -> None:
    images = torch.stack([torch.stack([picture(0), picture(1)])])
    draws = draw_jitter(STRONG, np.random.default_rng(0))[None]
    turned = images.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    assert torch.equal(colour_jitter(turned, draws, backend=backend), colour_jitter(images, draws, backend=backend))


@pytest.mark.parametrize("backend", HERE)
def test_black_stays_black(backend: str) -> None:
    """Masked-out frames are black, and the photometric loss relies on it."""
    black = torch.zeros(4, 3, 3, 4, 5, dtype=torch.uint8)
    draws = torch.stack([draw_jitter(STRONG, np.random.default_rng(item)) for item in range(4)])
    assert not colour_jitter(black, draws, backend=backend).any()


def test_draws_are_those_of_version_0_1() -> None:
    """A run that was begun before goes on with the same colours: factors in this order, then the permutation."""
    draws, rng = draw_jitter(STRONG, np.random.default_rng(3)), np.random.default_rng(3)
    factors = [rng.uniform(0.3, 1.7), rng.uniform(0.3, 1.7), rng.uniform(0.3, 1.7), rng.uniform(-0.4, 0.4)]
    assert torch.equal(draws[:4], torch.tensor(factors, dtype=torch.float32))
    assert draws[4:].tolist() == rng.permutation(4).tolist()


@pytest.mark.parametrize("backend", HERE)
def test_an_empty_batch_stays_empty(backend: str) -> None:
    for shape in ((0, 3, 3, 4, 5), (2, 0, 3, 4, 5)):
        images = torch.zeros(shape, dtype=torch.uint8)
        draws = torch.stack([draw_jitter(STRONG, np.random.default_rng(0))] * shape[0] or [no_jitter()])[: shape[0]]
        assert colour_jitter(images, draws, backend=backend).shape == shape


def test_names_what_is_wrong() -> None:
    images, draws = torch.zeros(2, 3, 3, 4, 5, dtype=torch.uint8), torch.zeros(2, 8)
    for wrong, error in (
        ((images.float(), draws), TypeError),
        ((images, draws.double()), TypeError),
        ((images[0], draws), ValueError),
        ((images[:, :, :2], draws), ValueError),
        ((images, draws[:1]), ValueError),
        ((images, draws.to("meta")), ValueError),
    ):
        with pytest.raises(error, match="colour_jitter"):
            colour_jitter(*wrong)
    with pytest.raises(ValueError, match="unknown backend 'fast'"):
        colour_jitter(images, draws, backend="fast")
