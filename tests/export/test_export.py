"""`mcd export`: the files compute what the net does, seen by onnxruntime; what cannot be exported is said."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from bare import link_packages, run_bare
from PIL import Image
from torch import Tensor, nn

import mcd
from mcd.cli import main as mcd_command
from mcd.export import command, formats
from mcd.export.command import main
from mcd.export.formats import FORMATS
from mcd.export.graph import ExportError, Request, lanczos, trace, with_constant_padding
from mcd.inference.predictor import DepthPredictor
from mcd.nets import build_depth_net
from mcd.run.checkpoint import save_weights

SIZE = (64, 96)
ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "onnx_depth.py"


class Tiny(nn.Module):
    """A depth net of two layers: what is tested here is the way around it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Conv2d(4, 1, 3, padding=1)

    def forward(self, image: Tensor) -> list[Tensor]:
        x = F.interpolate(F.relu(self.first(image)), scale_factor=2.0, mode="nearest")
        return [1 / (0.01 + 9.99 * torch.sigmoid(4 * self.second(x)))]


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights of a tiny net, which `mcd` builds under the name light."""
    monkeypatch.setattr("mcd.inference.predictor.build_depth_net", lambda name: Tiny())
    monkeypatch.setattr(command, "ROUNDS", 1)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.safetensors"
    save_weights(path, {"depth": Tiny()}, {"depth": "light"}, {"size": SIZE})
    return path


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def test_an_onnx_file_takes_batches_and_sizes_of_its_own_and_says_what_it_is(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tiny)]) == 0
    said = capsys.readouterr().out
    assert "opset 18" in said
    assert "PyTorch" in said
    assert "onnxruntime" in said
    assert [path.name for path in Path.cwd().iterdir() if path.suffix != ".safetensors"] == ["tiny.onnx"]
    model = onnx.load("tiny.onnx")
    onnx.checker.check_model(model)
    assert {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}["ai.onnx"] == 18
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert (facts["size"], facts["preprocessing"], facts["mcd"]) == ("64x96", "outside", mcd.__version__)
    net = DepthPredictor.load(tiny)
    for shape in ((1, 3, 64, 96), (5, 3, 128, 64)):
        image = torch.rand(shape)
        (found,) = session(Path("tiny.onnx")).run(["depth"], {"image": image.numpy()})
        np.testing.assert_allclose(found, net(image).numpy(), rtol=1e-4)


def test_pictures_go_in_where_the_preprocessing_is_inside(tiny: Path) -> None:
    assert main([str(tiny), "--preprocess", "inside", "-o", "inside.onnx"]) == 0
    model, run = mcd.load(tiny, device="cpu"), session(Path("inside.onnx"))
    for size in ((64, 96), (200, 333), (40, 51)):
        ramp = np.linspace(0, 255, size[0] * size[1]).reshape(*size, 1)
        image = np.broadcast_to(ramp, (*size, 3)).astype(np.uint8)
        image = np.where(np.arange(size[1])[:, None] < size[1] // 2, image, 255 - image)
        (found,) = run.run(["depth"], {"image": np.stack([image, image[::-1]])})
        assert found.shape == (2, *size)
        # Pillow rounds to levels between its two passes.
        np.testing.assert_allclose(found[0], model(image).numpy(), rtol=0.02)
        np.testing.assert_allclose(found[1], model(image[::-1]).numpy(), rtol=0.02)


@pytest.mark.parametrize(("old", "new"), [(375, 192), (50, 64), (64, 64), (1242, 640), (7, 3)])
def test_the_matrix_of_lanczos_is_pillows_filter(old: int, new: int) -> None:
    line = np.random.default_rng(0).random(old).astype(np.float32)
    image = Image.fromarray(np.repeat(line[None], 3, axis=0))
    expected = np.asarray(image.resize((new, 3), Image.Resampling.LANCZOS))[0]
    # Positions are float32: a hundredth of a level of 1/255 is lost at most.
    np.testing.assert_allclose((lanczos(old, new) @ torch.from_numpy(line)).numpy(), expected, rtol=0, atol=4e-5)


def test_batch_and_size_can_be_held(tiny: Path) -> None:
    assert main([str(tiny), "--batch", "2", "--fixed-size"]) == 0
    (image,) = session(Path("tiny.onnx")).get_inputs()
    assert image.shape == [2, 3, 64, 96]


def test_an_exported_program_is_the_net(tiny: Path) -> None:
    assert main([str(tiny), "--format", "exported-program"]) == 0
    program = torch.export.load("tiny.pt2").module()
    image = torch.rand(3, 3, 96, 64)
    torch.testing.assert_close(program(image), DepthPredictor.load(tiny)(image), rtol=1e-5, atol=0)


@pytest.mark.slow
@pytest.mark.compiles
@pytest.mark.timeout(900)  # a C++ compiler works on it
def test_a_compiled_package_is_the_net(tiny: Path) -> None:
    assert main([str(tiny), "--format", "aoti"]) == 0
    package = torch._inductor.aoti_load_package(str(Path("tiny.aoti.pt2")))
    image = torch.rand(3, 3, 96, 64)
    torch.testing.assert_close(package(image), DepthPredictor.load(tiny)(image), rtol=1e-4, atol=0)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_lower_precisions_say_what_they_cost(
    tiny: Path, tmp_path: Path, precision: str, capfd: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    for number in range(4):
        Image.fromarray(rng.integers(0, 256, (70, 100, 3), dtype=np.uint8)).save(images / f"{number}.png")
    assert main([str(tiny), "--precision", precision, "--images", str(images)]) == 0
    (said,) = [line for line in capfd.readouterr().out.splitlines() if line.startswith(precision)]
    assert said.endswith("(2 pictures)")
    printed = float(said.split("depth ")[1].split()[0])
    model = onnx.load("tiny.onnx")
    assert {entry.key: entry.value for entry in model.metadata_props}["precision"] == precision
    kinds = {tensor.data_type for tensor in model.graph.initializer}
    assert {"fp16": onnx.TensorProto.FLOAT16, "int8": onnx.TensorProto.INT8}[precision] in kinds
    # The printed loss is that of the file.
    run, net, losses = session(Path("tiny.onnx")), DepthPredictor.load(tiny), []
    for number in (2, 3):
        picture = Image.open(images / f"{number}.png").resize((96, 64), Image.Resampling.LANCZOS)
        x = np.asarray(picture, np.float32).transpose(2, 0, 1)[None] / 255
        (found,) = run.run(["depth"], {"image": x})
        losses.append(float(np.abs(found / net(torch.from_numpy(x)).numpy() - 1).mean()))
    assert printed == pytest.approx(np.mean(losses), abs=2e-4)
    assert 0 < np.mean(losses) < 0.2


def test_the_example_needs_onnxruntime_numpy_and_pillow_alone(tiny: Path, tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (90, 140, 3), dtype=np.uint8)
    Image.fromarray(image).save("photo.png")
    site = link_packages(tmp_path / "site", "onnxruntime", "numpy", "pillow")
    assert not (site / "torch").exists()
    expected = mcd.load(tiny, device="cpu")(image).numpy()
    for place in ("outside", "inside"):
        assert main([str(tiny), "--preprocess", place, "-o", f"{place}.onnx"]) == 0
        done = run_bare(site, str(EXAMPLE), f"{place}.onnx", "photo.png", f"{place}.npy", cwd=tmp_path)
        assert done.returncode == 0, done.stdout
        found = np.load(f"{place}.npy")
        # Pillow interpolates the inverse depth as torch does; noise is the worst of pictures to round between passes.
        np.testing.assert_allclose(found, expected, rtol=1e-3 if place == "outside" else 0.05)


class Unruly(Tiny):
    def forward(self, image: Tensor) -> list[Tensor]:
        if image.mean().item() > 0.5:
            return [self.second(self.first(image))]
        return super().forward(image)


class Random(Tiny):
    def forward(self, image: Tensor) -> list[Tensor]:
        return [depth + torch.rand_like(depth) for depth in super().forward(image)]


@pytest.mark.parametrize(
    ("net", "message"),
    [(Unruly(), "torch.export makes no graph of the net"), (Random(), "differs from the net's by")],
)
def test_a_net_that_cannot_be_exported_leaves_a_line_and_no_file(
    tiny: Path, net: nn.Module, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mcd.inference.predictor.build_depth_net", lambda name: net)
    before = set(Path.cwd().iterdir())
    assert mcd_command(["export", str(tiny), "--format", "exported-program"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert set(Path.cwd().iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tiny}", "--size", "100x100"], "multiples of 32"),
        (["nowhere"], "checkpoint nowhere does not exist"),
        (["empty"], "empty holds no weights"),
        (["{tiny}", "-o", "there.onnx"], "there.onnx exists already; --force overwrites"),
        (["{tiny}", "-o", "empty"], "empty is a folder; -o names a file"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    tiny: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty").mkdir()
    Path("there.onnx").write_text("kept")
    assert mcd_command(["export", *(argument.format(tiny=tiny) for argument in arguments)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mcd export: ")
    assert message in line
    assert Path("there.onnx").read_text() == "kept"


@pytest.mark.parametrize(
    "options",
    [
        ("--batch", "0"),
        ("--opset", "9"),
        ("--format", "aoti", "--precision", "int8"),
        ("--precision", "fp16", "--preprocess", "inside"),
        ("--format", "tensorrt"),
    ],
)
def test_options_that_contradict_are_refused(
    tiny: Path, options: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="^2$"):
        main([str(tiny), *options])
    assert capsys.readouterr().err.splitlines()[-1].startswith("mcd export: error: ")


def test_a_size_that_the_net_refuses_is_said_by_the_net(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_weights("light.safetensors", {"depth": build_depth_net("light")}, {"depth": "light"}, {"size": SIZE})
    assert main(["light.safetensors", "--size", "32x96"]) == 1
    assert "at least 64; this image is 32x96" in capsys.readouterr().err


def test_a_kill_leaves_nothing_in_the_folder(tiny: Path, tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from mcd.export import command, formats\n"
        "def kill(*_): os.kill(os.getpid(), signal.SIGKILL)\n"
        "command.check = kill\n"
        f"command.main([{str(tiny)!r}, '--format', 'exported-program'])"
    )
    save_weights(tiny, {"depth": build_depth_net("light")}, {"depth": "light"}, {"size": SIZE})
    before = set(tmp_path.iterdir())
    finished = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert finished.returncode == -9
    assert set(tmp_path.iterdir()) == before


def test_constant_padding_is_timms_padding() -> None:
    net = build_depth_net("lite0").eval()
    padded, image = with_constant_padding(net), torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(padded(image)[0], net(image)[0], rtol=1e-5, atol=0)
    assert "Padded" in repr(padded)
    assert "Padded" not in repr(net)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lite0", "light"])
def test_the_nets_are_exported(name: str) -> None:
    net = build_depth_net(name).eval()
    form = FORMATS["onnx"]
    assert command.export(net, Request(SIZE), form, {})


def test_a_graph_says_what_torch_says() -> None:
    with pytest.raises(ExportError) as caught:
        trace(Unruly(), Request(SIZE))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), RuntimeError("no such operator")])
def test_a_stop_within_a_conversion_is_no_fault_of_the_net(raised: BaseException) -> None:
    """torch.onnx raises errors of its own in place of whatever ends a step of it."""
    expected = KeyboardInterrupt if isinstance(raised, KeyboardInterrupt) else ExportError
    with pytest.raises(expected), formats._said("the net cannot be written"):
        try:
            raise raised
        except BaseException as error:
            raise ValueError("step 2 of 3 failed") from error
