from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mcd.data import files as module
from mcd.data.files import read_image, resize_image, resize_planes
from mcd.files import DataError

# Blocks of one colour beside noise: what JPEG does differently where its parts are decoded in another way.
PICTURE = np.random.default_rng(0).integers(0, 256, (40, 61, 3), dtype=np.uint8)
PICTURE[:, 30:] = 40

WAYS: dict[str, tuple[str, dict[str, object]]] = {
    "rgb.png": ("RGB", {}),
    "transparent colour.png": ("RGB", {"transparency": (40, 40, 40)}),
    "palette.png": ("P", {}),
    "grey.png": ("L", {}),
    "alpha.png": ("RGBA", {}),
    "usual.jpg": ("RGB", {}),
    "fine.jpg": ("RGB", {"subsampling": 0, "quality": 97}),
    "progressive.jpg": ("RGB", {"progressive": True}),
    "grey.jpg": ("L", {}),
    "print.jpg": ("CMYK", {}),
}


@pytest.mark.parametrize("name", WAYS)
def test_a_fast_decoder_gives_what_pillow_gives(name: str, tmp_path: Path) -> None:
    mode, options = WAYS[name]
    Image.fromarray(PICTURE).convert(mode).save(tmp_path / name, **options)  # type: ignore[arg-type]
    with Image.open(tmp_path / name) as file:
        assert np.array_equal(read_image(tmp_path / name), np.asarray(file.convert("RGB")))


@pytest.mark.skipif(module.pyspng is None, reason="the extra [fast] is missing")
def test_plain_pictures_go_to_the_fast_decoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_eight_bits", None)  # Pillow's way
    for name in ("rgb.png", "usual.jpg"):
        Image.fromarray(PICTURE).save(tmp_path / name)
        assert read_image(tmp_path / name).shape == PICTURE.shape


@pytest.mark.parametrize("name", ["rgb.png", "usual.jpg"])
@pytest.mark.parametrize("share", [0.02, 0.5])
def test_what_is_cut_off_is_named(name: str, share: float, tmp_path: Path) -> None:
    path = tmp_path / name
    Image.fromarray(PICTURE).save(path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(DataError, match=f"image .*{name} cannot be read"):
        read_image(path)


def test_without_the_decoders_or_the_compiled_module_pictures_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "a.jpg")
    picture = read_image(tmp_path / "a.jpg")
    planes = resize_planes(picture, (17, 20))
    flat = (PICTURE.shape[0] // 4, 2 * PICTURE.shape[1])  # Pillow 13 would begin with the rows
    sharp = np.where(picture > 127, 255, 0).astype(np.uint8)
    wide = resize_planes(sharp, flat)
    monkeypatch.setattr(module, "pyspng", None)
    monkeypatch.setattr(module, "serves", lambda: False)
    assert np.array_equal(read_image(tmp_path / "a.jpg"), picture)
    assert np.array_equal(resize_planes(picture, (17, 20)), planes)
    assert np.array_equal(resize_planes(sharp, flat), wide)
    assert np.array_equal(planes.transpose(1, 2, 0), resize_image(picture, (17, 20)))
    assert np.array_equal(resize_planes(picture[:, ::-1], picture.shape[:2]), picture[:, ::-1].transpose(2, 0, 1))
