"""The command `mcd`: its table, its words, and what it says where a package is missing."""

from __future__ import annotations

import errno
import importlib
import os
import re
import runpy
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from bare import CORE, link_packages, run_bare

import mcd
from mcd import cli
from mcd.config import parse_config
from mcd.data.sequence import sequence_folder
from mcd.extras import MissingPackage, extra
from mcd.files import atomic_path

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packages: torch, NumPy, what they need, and mcd."""
    site = link_packages(tmp_path_factory.mktemp("bare") / "site", *CORE)
    (site / "mcd").symlink_to(ROOT / "mcd")
    return site


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
@pytest.mark.parametrize("given", [True, False])
def test_help_lists_every_command(
    arguments: list[str], given: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["mcd", *arguments])
    assert cli.main(arguments if given else None) == 0
    said = capsys.readouterr().out
    for name, command in cli.COMMANDS.items():
        assert f"  {name:10}{command.help}\n" in said + "\n"


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"mcd {mcd.__version__}\n"


@pytest.mark.parametrize(
    ("name", "message"), [("trian", "did you mean 'train'?"), ("xyz", f"there are {', '.join(cli.COMMANDS)}")]
)
def test_an_unknown_command_is_answered_in_one_line(
    name: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([name]) == 2
    assert capsys.readouterr().err == f"mcd: no command '{name}'; {message}\n"


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_a_module_and_an_extra_that_exist(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = cli.COMMANDS[name]
    assert callable(importlib.import_module(command.module).main)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert command.extra in ("", *extras)
    with pytest.raises(SystemExit, match="^0$"):
        cli.main([name, "--help"])
    assert capsys.readouterr().out.startswith(f"usage: mcd {name}")


def test_commands_pass_their_arguments_and_their_status_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "no-such-config"]) == 1
    assert "no-such-config does not exist; those that come with mcd are cityscapes," in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_command_that_is_stopped_leaves_nothing_half_written(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(arguments: list[str]) -> int:
        with atomic_path(tmp_path / "result.png") as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), number)
            time.sleep(60)
        return 0

    monkeypatch.setattr("mcd.backend.main", work)
    before = signal.getsignal(signal.SIGTERM)
    # Python's own, which a shell's background job does not have.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert cli.main(["backend"]) == 130
    finally:
        signal.signal(signal.SIGINT, inherited)
    assert capsys.readouterr().err == "mcd backend: stopped\n"
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("answer", [1, ValueError("the file is broken"), OSError("the file is broken"), 0])
def test_what_a_library_makes_of_a_stop_is_a_stop(
    answer: int | Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(arguments: list[str]) -> int:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        except KeyboardInterrupt:
            if isinstance(answer, Exception):
                raise answer from None
        return int(answer) if isinstance(answer, int) else 0

    monkeypatch.setattr("mcd.backend.main", work)
    assert cli.main(["backend"]) == (0 if answer == 0 else 130)
    assert capsys.readouterr().err == ("" if answer == 0 else "mcd backend: stopped\n")


def test_a_fault_is_no_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(arguments: list[str]) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr("mcd.backend.main", work)
    with pytest.raises(ZeroDivisionError):
        cli.main(["backend"])


def test_a_warning_is_said_once_and_without_the_line_that_said_it() -> None:
    code = """
import sys, warnings, mcd.backend
from mcd import cli
def work(arguments):
    for _ in range(3):
        with warnings.catch_warnings():  # after which Python would say it again
            warnings.simplefilter("ignore")
        warnings.warn("the lens is guessed")
    return 0
mcd.backend.main = work
sys.exit(cli.main(["backend"]))
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (finished.returncode, finished.stderr) == (0, "warning: the lens is guessed\n")


def test_a_full_disk_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def work(arguments: list[str]) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "result.png")

    monkeypatch.setattr("mcd.backend.main", work)
    assert cli.main(["backend"]) == 1
    assert capsys.readouterr().err == "mcd backend: [Errno 28] No space left on device: 'result.png'\n"


@pytest.mark.parametrize(
    "module",
    ["mcd", "mcd.train", "mcd.predict", "mcd.evaluate", "mcd.report", "mcd.convert", "mcd.data.prepare", "mcd.backend"],
)
@pytest.mark.filterwarnings("ignore:'mcd.* found in sys.modules:RuntimeWarning")
def test_python_m_is_a_way_in(module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["-m", "--help"])
    with pytest.raises(SystemExit, match="^0$"):
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    assert capsys.readouterr().out.startswith("usage: mcd")


@pytest.mark.parametrize("module", [["mcd", "train"], ["mcd.train"], ["mcd.data.prepare"]], ids="-".join)
def test_a_missing_package_is_named_with_the_extra_that_brings_it(
    bare: Path, tmp_path: Path, module: list[str]
) -> None:
    finished = run_bare(bare, "-m", *module, cwd=tmp_path)
    assert finished.returncode == 1
    command = module[-1].rpartition(".")[2]
    assert re.fullmatch(rf"mcd {command} needs \w+: pip install 'mcd-depth\[train\]'\n", finished.stdout)


def test_ranges_without_nvtx_are_answered_with_the_extra(bare: Path, tmp_path: Path) -> None:
    code = "import torch, mcd; print(mcd.ops.motion_sparsity(torch.ones(1, 1, 2, 2)).item())"
    finished = run_bare(bare, "-c", code, cwd=tmp_path, MCD_NVTX="1")
    assert finished.returncode == 0, finished.stdout
    said, value = finished.stdout.splitlines()
    assert said == "mcd: MCD_NVTX=1 needs nvtx: pip install 'mcd-depth[profile]'; until then there are no ranges"
    assert float(value) > 0


def test_a_net_that_is_loaded_without_the_extra_names_it(bare: Path, tmp_path: Path) -> None:
    code = "import mcd\nfrom mcd import *\ntry: load('start')\nexcept mcd.errors.McdError as error: print(error)"
    finished = run_bare(bare, "-c", code, cwd=tmp_path)
    assert finished.returncode == 0, finished.stdout
    assert re.fullmatch(r"mcd.load needs \w+: pip install 'mcd-depth\[train\]'\n", finished.stdout)


def test_without_extras_the_library_is_whole(bare: Path, tmp_path: Path) -> None:
    code = """
import sys, torch, mcd, mcd.backend, mcd.geometry, mcd.losses
from mcd.ops.registry import OPERATORS
assert len(OPERATORS) >= 10 and mcd.backend.table("cpu")
print(mcd.__file__, *sorted({"PIL", "pydantic", "yaml", "scipy", "timm", "torchvision", "av"} & {*sys.modules}))
"""
    finished = run_bare(bare, "-c", code, cwd=tmp_path)
    assert (finished.returncode, finished.stdout) == (0, f"{bare}/mcd/__init__.py\n")


def test_a_module_of_ours_that_is_missing_is_a_fault_and_no_missing_package() -> None:
    with pytest.raises(ModuleNotFoundError, match="mcd.no_such_module") as caught, extra("train", "mcd train"):
        importlib.import_module("mcd.no_such_module")
    assert not isinstance(caught.value, MissingPackage)


def test_a_video_without_its_library_is_answered_with_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.delitem(sys.modules, "mcd.data.video", raising=False)
    (tmp_path / "clip.mp4").write_bytes(b"")
    with pytest.raises(MissingPackage, match=r"needs av: pip install 'mcd-depth\[video\]'"):
        sequence_folder(parse_config({"data": {"kind": "sequence", "root": str(tmp_path / "clip.mp4")}}).data)
