"""Prediction: what goes in, what comes out, what is refused."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import av.stream
import numpy as np
import pytest
import torch
from PIL import Image

from mcd.data.video import VideoReader, VideoWriter
from mcd.inference.command import main
from mcd.inference.predictor import DepthPredictor, resize_depth
from mcd.nets import build_depth_net
from mcd.run.checkpoint import CheckpointError, find_weights, load_weights, save_tensors, save_weights

SIZE = (64, 96)  # the smallest height of the light net, and a width of its own


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose scene and final nets differ."""
    folder = tmp_path_factory.mktemp("run")
    for seed, stage in enumerate(("scene", "final")):
        torch.manual_seed(seed)
        save_weights(
            folder / stage / "weights.safetensors",
            {"depth": build_depth_net("light")},
            {"depth": "light"},
            {"size": SIZE, "stage": stage},
        )
    return folder


def write_image(path: Path, size: tuple[int, int], seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)).save(path)
    return path


def predict(*arguments: object) -> int:
    return main([str(argument) for argument in (*arguments, "--device", "cpu")])


def test_every_format_has_the_resolution_of_the_input(run_folder: Path, tmp_path: Path) -> None:
    sizes = {"small": (48, 80), "odd": (101, 37)}  # other than the net's size, and than each other
    for name, size in sizes.items():
        write_image(tmp_path / "in" / f"{name}.png", size)
    assert predict(run_folder, tmp_path / "in", "-o", tmp_path / "out", "--format", "png", "npy", "16bit") == 0
    for name, size in sizes.items():
        depth = np.load(tmp_path / "out" / f"{name}_depth.npy")
        coloured = Image.open(tmp_path / "out" / f"{name}_depth.png")
        levels = Image.open(tmp_path / "out" / f"{name}_depth16.png")
        assert depth.shape == size
        assert depth.dtype == np.float32
        assert (coloured.height, coloured.width, coloured.mode) == (*size, "RGB")
        factor = float(levels.text["depth_factor"])
        # Rounding to a level is half a level off at most.
        np.testing.assert_allclose(np.asarray(levels) / factor, depth, atol=0.5001 / factor)


def test_batches_do_not_change_the_result(run_folder: Path, tmp_path: Path) -> None:
    for number in range(3):
        write_image(tmp_path / "in" / f"{number}.png", (64, 96), number)
    for batch in (1, 2):  # 2 leaves a last batch of one
        assert (
            predict(run_folder, tmp_path / "in", "-o", tmp_path / str(batch), "--format", "npy", "--batch", batch) == 0
        )
    for number in range(3):
        one, two = (np.load(tmp_path / str(batch) / f"{number}_depth.npy") for batch in (1, 2))
        # Convolutions may sum in another order for another batch size.
        np.testing.assert_allclose(one, two, rtol=1e-4)


def test_a_run_folder_means_its_final_net_and_stage_chooses(run_folder: Path, tmp_path: Path) -> None:
    image = write_image(tmp_path / "a.png", SIZE)
    outputs = {}
    for name, arguments in {
        "run": [run_folder],
        "final": [run_folder / "final"],
        "file": [run_folder / "final" / "weights.safetensors"],
        "scene": [run_folder, "--stage", "scene"],
    }.items():
        assert predict(arguments[0], image, "-o", tmp_path / name, "--format", "npy", *arguments[1:]) == 0
        outputs[name] = np.load(tmp_path / name / "a_depth.npy")
    np.testing.assert_array_equal(outputs["run"], outputs["final"])
    np.testing.assert_array_equal(outputs["run"], outputs["file"])
    assert not np.array_equal(outputs["run"], outputs["scene"])


def test_scale_multiplies_the_depth(run_folder: Path, tmp_path: Path) -> None:
    image = write_image(tmp_path / "a.png", SIZE)
    for scale in (1, 2):
        predict(run_folder, image, "-o", tmp_path / str(scale), "--format", "npy", "--scale", scale)
    one, two = (np.load(tmp_path / str(scale) / "a_depth.npy") for scale in (1, 2))
    np.testing.assert_array_equal(2 * one, two)


def test_a_video_becomes_a_video_of_the_same_length_and_rate(run_folder: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    with VideoWriter(tmp_path / "clip.mp4", Fraction(12)) as video:
        for _ in range(5):
            video.write(generator.integers(0, 255, (50, 70, 3), dtype=np.uint8))
    out = tmp_path / "out"
    assert predict(run_folder, tmp_path / "clip.mp4", "-o", out, "--format", "png", "npy", "--batch", 2) == 0
    result = VideoReader(out / "clip_depth.mp4")
    frames = list(result)
    assert result.rate == 12
    assert len(frames) == 5
    assert frames[0].shape == (50, 70, 3)
    assert sorted(path.name for path in (out / "clip").iterdir()) == [f"{i:06d}_depth.npy" for i in range(5)]


def test_files_of_one_name_keep_their_folders(run_folder: Path, tmp_path: Path) -> None:
    for camera in ("left", "right"):
        write_image(tmp_path / "in" / camera / "0.png", SIZE)
    assert predict(run_folder, tmp_path / "in" / "*" / "*.png", "-o", tmp_path / "out") == 0
    assert (tmp_path / "out" / "left" / "0_depth.png").is_file()
    assert (tmp_path / "out" / "right" / "0_depth.png").is_file()


def test_an_unreadable_image_is_named_and_the_others_are_done(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = write_image(tmp_path / "in" / "b.png", SIZE)
    (tmp_path / "in" / "a.png").write_bytes(good.read_bytes()[:500])
    assert predict(run_folder, tmp_path / "in", "-o", tmp_path / "out") == 1
    assert "a.png cannot be read" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b_depth.png"]


def test_an_image_of_floating_point_pixels_is_refused(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.full(SIZE, np.nan, np.float32)).save(tmp_path / "nan.tiff")
    assert predict(run_folder, tmp_path / "nan.tiff", "-o", tmp_path / "out") == 1
    assert "nan.tiff cannot be read: its pixels are of kind 'F'" in capsys.readouterr().err


def test_a_broken_video_leaves_no_file(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"no video")
    assert predict(run_folder, tmp_path / "clip.mp4", "-o", tmp_path / "out") == 1
    assert "clip.mp4 cannot be read" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


def test_results_are_overwritten_only_by_force(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = write_image(tmp_path / "a.png", SIZE)
    out = tmp_path / "out"
    out.mkdir()
    (out / "a_depth.png").write_text("kept")
    assert predict(run_folder, image, "-o", out) == 1
    assert "--force" in capsys.readouterr().err
    assert (out / "a_depth.png").read_text() == "kept"
    assert predict(run_folder, image, "-o", out, "--force") == 0
    assert Image.open(out / "a_depth.png").size == (SIZE[1], SIZE[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}", "{tmp}/missing.png", "-o", "{tmp}/out"], "missing.png does not exist"),
        (["{run}", "{tmp}/empty", "-o", "{tmp}/out"], "holds no image"),
        (["{run}", "{tmp}/notes.txt", "-o", "{tmp}/out"], "neither an image nor a video"),
        (["{run}", "{tmp}/a.png", "-o", "{tmp}/notes.txt"], "is a file"),
        (["{run}", "{tmp}/a.png", "{tmp}/a.jpg", "-o", "{tmp}/out"], "would both be written"),
        (["{tmp}/nowhere", "{tmp}/a.png", "-o", "{tmp}/out"], "nowhere does not exist"),
        (["{tmp}/empty", "{tmp}/a.png", "-o", "{tmp}/out"], "holds no weights"),
        (["{tmp}/notes.txt", "{tmp}/a.png", "-o", "{tmp}/out"], "no readable safetensors"),
        (["{run}", "{tmp}/a.png", "-o", "{tmp}/out", "--size", "100x100"], "multiples of 32"),
        (["{run}", "{tmp}/a.png", "-o", "{tmp}/out", "--size", "9999999968x64"], "multiples of 32, up to 16384"),
    ],
)
def test_what_cannot_be_done_is_said_and_nothing_is_written(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("notes")
    write_image(tmp_path / "a.png", SIZE)
    write_image(tmp_path / "a.jpg", SIZE)
    assert predict(*(argument.format(run=run_folder, tmp=tmp_path) for argument in arguments)) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_does_not_say_its_size_needs_one(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_weights(path, {"depth": build_depth_net("light")}, {"depth": "light"}, {})
    with pytest.raises(CheckpointError, match="size"):
        DepthPredictor.load(path)
    assert DepthPredictor.load(path, size=SIZE).size == SIZE


def test_weights_that_overflow_give_no_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = build_depth_net("light")
    for tensor in net.state_dict().values():
        if tensor.is_floating_point():
            tensor.fill_(1e38)
    path = tmp_path / "weights.safetensors"
    save_weights(path, {"depth": net}, {"depth": "light"}, {"size": SIZE})
    write_image(tmp_path / "a.png", SIZE)
    assert predict(path, tmp_path / "a.png", "-o", tmp_path / "out") == 1
    assert "images: the depth that the net predicts is not finite" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


def test_hidden_files_of_a_folder_are_no_inputs(run_folder: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "in" / "a.png", SIZE)
    (tmp_path / "in" / "._a.png").write_bytes(b"of another system")
    assert predict(run_folder, tmp_path / "in", "-o", tmp_path / "out") == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a_depth.png"]


def test_sound_alone_is_no_video(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        frame.rate = 8000
        container.mux([*stream.encode(frame), *stream.encode()])
    assert predict(run_folder, tmp_path / "sound.mp4", "-o", tmp_path / "out") == 1
    assert "sound.mp4 has no picture stream" in capsys.readouterr().err


def test_resizing_interpolates_inverse_depth() -> None:
    depth = torch.tensor([[[[1.0, 4.0]]]])
    # Twice as wide, pixel areas aligned: the inner pixels lie a quarter and three quarters of the way.
    expected = [1.0, 1 / (0.75 + 0.25 / 4), 1 / (0.25 + 0.75 / 4), 4.0]
    assert resize_depth(depth, (1, 4))[0, 0, 0].tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        ("--scale", "inf"),
        ("--scale", "nan"),
        ("--scale", "0"),
        ("--scale", "-1"),
        ("--scale", "much"),
        ("--factor", "inf"),
        ("--batch", "0"),
        ("--batch", "9" * 30),
    ],
)
def test_options_that_no_result_survives_are_refused_by_name(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, str]
) -> None:
    image = write_image(tmp_path / "a.png", (8, 8))
    with pytest.raises(SystemExit) as stop:
        predict(run_folder, image, "-o", tmp_path / "out", *options)
    assert stop.value.code == 2
    assert f"argument {options[0]}: " in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--scale", "1e37"), "beyond float32"),
        (("--scale", "1e-38"), "beyond float32"),
        (("--format", "16bit", "--scale", "1e7"), "all outside 1 to 65535"),
        (("--format", "16bit", "--factor", "0.001"), "all outside 1 to 65535"),
    ],
)
def test_a_scale_that_leaves_no_depth_is_refused(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    image = write_image(tmp_path / "a.png", (8, 8))
    assert predict(run_folder, image, "-o", tmp_path / "out", *options) == 1
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", [(8, 8), (1, 1), (5, 300), (3, 9000)])
def test_a_clip_of_any_size_is_written(run_folder: Path, tmp_path: Path, size: tuple[int, int]) -> None:
    images = [Image.fromarray(np.full((*size, 3), 60 * number, np.uint8)) for number in range(3)]
    images[0].save(tmp_path / "clip.gif", save_all=True, append_images=images[1:], duration=40)
    assert predict(run_folder, tmp_path / "clip.gif", "-o", tmp_path / "out") == 0
    assert len(list(VideoReader(tmp_path / "out" / "clip_depth.mp4"))) == 3


def test_frames_of_other_sizes_get_the_size_of_the_first(tmp_path: Path) -> None:
    sizes = [(20, 31), (21, 30), (40, 62), (7, 5)]
    with VideoWriter(tmp_path / "a.mp4", Fraction(25)) as movie:
        for size in sizes:
            movie.write(np.full((*size, 3), 128, np.uint8))
    assert [picture.shape for picture in VideoReader(tmp_path / "a.mp4")] == [(20, 30, 3)] * 4


@pytest.mark.parametrize("attached", [True, False])
@pytest.mark.parametrize("cover_first", [True, False])
def test_the_film_is_read_and_not_its_cover(tmp_path: Path, attached: bool, cover_first: bool) -> None:
    path = tmp_path / "film.mkv"
    with av.open(str(path), "w") as container:

        def add_cover() -> av.VideoStream:
            cover = container.add_stream("mjpeg", rate=Fraction(25))
            cover.pix_fmt, cover.width, cover.height = "yuvj420p", 64, 64
            if attached:
                cover.disposition = av.stream.Disposition.attached_pic
            return cover

        cover = add_cover() if cover_first else None
        film = container.add_stream("mpeg4", rate=Fraction(25))
        film.pix_fmt, film.width, film.height = "yuv420p", 32, 16
        cover = cover or add_cover()
        picture = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 200, np.uint8), format="rgb24")
        container.mux([*cover.encode(picture), *cover.encode()])
        for level in (0, 50, 100, 150):
            frame = av.VideoFrame.from_ndarray(np.full((16, 32, 3), level, np.uint8), format="rgb24")
            container.mux(film.encode(frame))
        container.mux(film.encode())
    assert [picture.shape for picture in VideoReader(path)] == [(16, 32, 3)] * 4


def test_a_video_of_one_picture_is_that_picture(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "one.mp4", Fraction(25)) as movie:
        movie.write(np.full((16, 16, 3), 99, np.uint8))
    assert len(list(VideoReader(tmp_path / "one.mp4"))) == 1


@pytest.fixture
def shipped(run_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A start of another net than the one that is shipped, which knows pictures of any shape."""
    weights = load_weights(run_folder / "final" / "weights.safetensors")
    path = tmp_path / "start.safetensors"
    save_tensors(path, weights.tensors, weights.nets, {"size": SIZE, "any_shape": True})
    monkeypatch.setattr("mcd.run.checkpoint.START", path)
    monkeypatch.chdir(tmp_path)
    return path


@pytest.mark.parametrize("arguments", [("a.png", "b.png"), ("start", "a.png", "b.png"), ("in",), ("start", "in")])
def test_without_a_checkpoint_the_shipped_nets_predict(shipped: Path, arguments: tuple[str, ...]) -> None:
    folder = "in" if "in" in arguments else "."
    for name in ("a", "b"):
        write_image(Path(folder, f"{name}.png"), (64, 96))
    assert predict(*arguments, "--format", "npy") == 0
    expected = DepthPredictor.load(shipped).predict([np.asarray(Image.open(Path(folder, "a.png")))])[0]
    # Two pictures go through the net together.
    np.testing.assert_allclose(np.load("depth/a_depth.npy"), expected, rtol=1e-5)
    assert Path("depth/b_depth.npy").is_file()


def test_start_alone_names_no_input(shipped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        predict("start")
    assert "no INPUT is named" in capsys.readouterr().err


def test_a_run_called_start_is_that_run(shipped: Path, run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "start").symlink_to(run_folder)
    assert find_weights("start") == Path("start", "final", "weights.safetensors")
    (tmp_path / "start").unlink()
    assert find_weights("start") == shipped


def test_pictures_keep_their_shapes_where_the_net_knows_any(shipped: Path) -> None:
    predictor = DepthPredictor.load(shipped)
    # 64x96 is 6,144 pixels; sides are multiples of 32, at least 64.
    assert predictor.size_for((64, 96, 3)) == (64, 96)
    assert predictor.size_for((200, 100)) == (96, 64)
    assert predictor.size_for((100, 1000)) == (64, 192)
    assert DepthPredictor.load(shipped, size=(64, 96)).size_for((200, 100)) == (64, 96)
    images = [np.full(shape, 90, np.uint8) for shape in ((64, 96, 3), (200, 100, 3), (64, 96, 3))]
    depths = predictor.predict(images)
    assert [tuple(depth.shape) for depth in depths] == [image.shape[:2] for image in images]
    torch.testing.assert_close(depths[0], depths[2])
