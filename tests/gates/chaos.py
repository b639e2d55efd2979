"""Kills, full disks and stops at random moments: what is left of a run, and of results that were being written.

    PYTHONPATH=tests python tests/gates/chaos.py [--kills 100] [--full 20] [--stops 5] [--seed 0]

A small unsupervised run of every stage is killed (-9, with its workers) and given again, until it ends; then another
one begins, until there were --kills. The same is done with the disk: it becomes full at a random moment, until the
command ends, and has room again for the next. Each run must end with the metrics.json of an undisturbed one, but for
times. Then every command that writes results gets SIGTERM at random moments: what is there
afterwards is whole. A full and a read-only disk need root, for a mount, and are left out without.

Prints a table for docs/reliability.md; the exit status is 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from fuzz.changes import texture
from fuzz.command import Command, warm
from PIL import Image
from small_run import STAGES, files, make_config, make_document

LONGEST = 3600
"""Seconds that a command may take: many, for a machine may have other work."""
NO_SPACE = "No space left on device|disk is full|disk I/O error"


class ChaosError(Exception):
    """What must not happen, in words."""


def write_config(folder: Path, seed: int) -> None:
    """``tiny.yaml`` in a folder; the run and its data lie in it too."""
    document = make_document(folder, "", seed) | {"threads": 1}
    # Relative, for weights say of which config they are.
    document["data"] = document["data"] | {"root": "data", "workers": 1, "size": list(document["data"]["size"])}
    document["slots"] = document["slots"] | {"size": list(document["slots"]["size"])}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(document))


def train(folder: Path) -> Command:
    return Command(["train", "tiny.yaml"], folder, folder.parent / f"{folder.name}.txt")


def figures(folder: Path) -> Any:
    """``metrics.json`` without times."""

    def timeless(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: timeless(item) for key, item in value.items() if "seconds" not in key}

    return timeless(json.loads((folder / "tiny" / "metrics.json").read_text()))


def finish(folder: Path) -> float:
    """Let a run come to its end; returns the seconds of computing that it took."""
    command = train(folder)
    status = command.wait(LONGEST)
    if status != 0:
        command.kill() if status is None else None
        raise ChaosError(f"the run ends with {status}: {command.said[-2000:]}")
    return command.computed


def undisturbed_run(folder: Path) -> tuple[int, float]:
    """A finished run of which no stage found nothing to learn; returns its seed and the seconds of computing."""
    for seed in range(8):
        shutil.rmtree(folder, ignore_errors=True)
        write_config(folder, seed)
        seconds = finish(folder)
        done = [json.loads((folder / "tiny" / stage / "done.json").read_text()) for stage in STAGES]
        if not any("left_out" in facts for facts in done):
            return seed, seconds
    raise ChaosError("no seed leaves objects for every stage")


def at(folder: Path) -> str:
    """The stage that a run is in, by what it has finished."""
    return next((stage for stage in STAGES if not (folder / "tiny" / stage / "done.json").is_file()), "the report")


def expect_same(folder: Path, undisturbed: Path) -> None:
    """Raises ChaosError if a finished run differs from another one, or left half-written files."""
    if figures(folder) != figures(undisturbed):
        raise ChaosError(f"metrics.json of {folder} differs from that of {undisturbed}")
    left = [path for stage in STAGES for path in (folder / "tiny" / stage).rglob(".*")]
    if left:
        raise ChaosError(f"half written and left: {left[:5]}")
    found, expected = (files(make_config(place, "")) for place in (folder, undisturbed))
    other = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    if other:
        raise ChaosError(f"of {folder} differ: {', '.join(other[:5])}")


def kill_runs(
    place: Path, undisturbed: Path, seed: int, seconds: float, kills: int, draw: random.Random
) -> Counter[str]:
    """Kill -9 at random moments until there were ``kills``; returns how many there were in each stage."""
    met: Counter[str] = Counter()
    number = 0
    while met.total() < kills:
        folder = place / f"killed-{number}"
        write_config(folder, seed)
        for _ in range(10 * kills):
            command = train(folder)
            # Between a small and a large share of the run, so that some get far and others hardly begin.
            moment = seconds * draw.choice((0.02, 0.06, 0.2)) * draw.uniform(0.1, 1.9)
            status = command.wait(LONGEST, moment)
            if status is None:
                stage = at(folder)
                status = command.kill()
            if status == 0:
                break
            if status != -signal.SIGKILL:
                raise ChaosError(f"killed in {at(folder)}, the run ends with {status}: {command.said[-2000:]}")
            met[stage] += 1
            if met.total() >= kills:
                finish(folder)
                break
        expect_same(folder, undisturbed)
        shutil.rmtree(folder)
        number += 1
        print(f"killed {met.total()} times, {number} runs ended the same", flush=True)
    met["runs"] = number
    return met


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", *options, str(folder)], check=True, capture_output=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def may_mount() -> bool:
    try:
        with tempfile.TemporaryDirectory() as folder, mounted(Path(folder) / "try", "-t", "tmpfs", "tmpfs"):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def fill(folder: Path) -> Path:
    """Take all the room of a file system; returns the file that has it."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (2**24, 2**16, 2**12):
            with suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass
    return ballast


def fill_disks(
    place: Path, undisturbed: Path, seed: int, seconds: float, times: int, draw: random.Random
) -> Counter[str]:
    """Full disks at random moments; returns how many commands met one, by the stage that they were in."""
    met: Counter[str] = Counter()
    number = 0
    while met.total() < times:
        # The root of a tmpfs: the command's words go elsewhere, or they would meet the full disk too.
        with mounted(place / "disk", "-t", "tmpfs", "-o", "size=1g", "tmpfs") as disk:
            folder = disk / "run"
            write_config(folder, seed)
            while True:
                command = Command(["train", "tiny.yaml"], folder, place / "disk.txt")
                status = command.wait(LONGEST, seconds * draw.choice((0.05, 0.2)) * draw.uniform(0, 1))
                if status is None:
                    ballast, stage = fill(disk), at(folder)
                    status = command.wait(LONGEST)
                    ballast.unlink()
                if status == 0:
                    break
                said = command.said.strip()
                lines = [line for line in re.split("[\r\n]+", said) if line]
                if status != 1 or "Traceback" in said or not re.search(NO_SPACE, lines[-1]):
                    raise ChaosError(f"on a full disk, in {stage}, the run ends with {status}: {said[-2000:]}")
                met[stage] += 1
                print(f"full in {stage}: {lines[-1]}", flush=True)
                if met.total() >= times:
                    status = Command(["train", "tiny.yaml"], folder, place / "disk.txt").wait(LONGEST)
                    break
            if status != 0:
                raise ChaosError(f"with room again, the run ends with {status}")
            expect_same(folder, undisturbed)
        number += 1
    met["runs"] = number
    return met


def whole(path: Path) -> None:
    """Raises if a result is half a file."""
    if path.name.startswith("."):
        raise ChaosError(f"{path} is left half written")
    if path.suffix in (".png", ".jpg"):
        with Image.open(path) as image:
            image.load()
    elif path.suffix == ".npy":
        np.load(path)
    elif path.suffix == ".mp4":
        from mcd.data.video import VideoReader

        clip = VideoReader(path)
        if not sum(1 for _ in clip) or clip.problem:
            raise ChaosError(f"{path} breaks off: {clip.problem}")
    elif path.suffix == ".json":
        json.loads(path.read_text())
    elif path.suffix == ".html" and "</html>" not in path.read_text():
        raise ChaosError(f"{path} has no end")
    elif path.suffix == ".onnx":
        import onnx

        onnx.checker.check_model(onnx.load(path))
    elif path.suffix == ".pt2":
        with zipfile.ZipFile(path) as archive:
            archive.testzip()
    elif path.suffix == ".safetensors":
        from mcd.run.checkpoint import load_weights

        load_weights(path)
    elif path.stat().st_size == 0:
        raise ChaosError(f"{path} is empty")


def prepare_results(folder: Path, run: Path) -> None:
    """Inputs of every command that writes results."""
    (folder / "frames").mkdir(parents=True)
    for number in range(24):
        Image.fromarray(texture(number, (96, 160))).save(folder / "frames" / f"{number:06d}.png")
    from mcd.data.video import VideoWriter

    with VideoWriter(folder / "clip.mp4", Fraction(25)) as movie:
        for number in range(40):
            movie.write(texture(number, (96, 160)))
    shutil.copytree(run / "tiny", folder / "tiny")
    shutil.copytree(run / "data", folder / "data")
    place = folder / "cityscapes" / "leftImg8bit_sequence" / "train" / "ulm"
    place.mkdir(parents=True)
    for number in range(24):
        Image.fromarray(texture(number, (256, 512))).save(place / f"ulm_000000_{number:06d}_leftImg8bit.png")
    place = folder / "cityscapes" / "camera" / "train" / "ulm"
    place.mkdir(parents=True)
    camera = {"intrinsic": {"fx": 400, "fy": 400, "u0": 255.5, "v0": 127.5}}
    (place / "ulm_000000_000002_camera.json").write_text(json.dumps(camera))


RESULTS = {
    "predict, pictures": "predict start frames -o out --batch 1 --device cpu",
    "predict, arrays and 16 bits": "predict start frames -o out --batch 1 --device cpu --format npy 16bit",
    "predict, video": "predict start clip.mp4 -o out --batch 2 --device cpu",
    "export, ONNX": "export tiny -o out/net.onnx",
    "export, program": "export tiny --format exported-program -o out/net.pt2",
    "evaluate": "evaluate tiny -o out",
    "report": "report tiny",
    "report, a picture": "report tiny --panel out/panel.png",
    "prepare": "prepare cityscapes cityscapes out --splits train --workers 2",
}


def stop_results(
    place: Path, run: Path, stops: int, draw: random.Random, names: Iterable[str] = RESULTS
) -> dict[str, Counter[str]]:
    """SIGTERM at random moments of commands that write results; returns what they ended with, by command."""
    prepare_results(place / "example", run)
    found: dict[str, Counter[str]] = {}
    for name in names:
        words = RESULTS[name]
        found[name], seconds = Counter(), 0.0
        for attempt in range(stops + 1):
            folder = place / "stopped"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(place / "example", folder)
            command = Command(words.split(), folder, place / "stopped.txt")
            # The first one is left alone, and says how long it takes.
            status = command.wait(LONGEST, math.inf if attempt == 0 else draw.uniform(0, seconds))
            seconds = seconds or command.computed
            if status is None:
                os.kill(command.pid, signal.SIGTERM)
                status = command.wait(LONGEST)
            if status not in (0, 130, -signal.SIGTERM) or "Traceback" in command.said:
                raise ChaosError(f"mcd {words} ends with {status}: {command.said[-2000:]}")
            for path in (*(folder / "out").rglob("*"), folder / "tiny" / "report.html", *(folder / "tiny").glob(".*")):
                if path.is_file():
                    whole(path)
            found[name]["ended" if status == 0 else "stopped"] += attempt > 0
        print(f"{name}: {dict(found[name])}", flush=True)
    return found


def read_only(place: Path, run: Path) -> list[str]:
    """Training on data, images and videos, that must not be written to; returns what was trained on."""
    data = place / "data"
    write_config(place / "runs", 0)
    shutil.copytree(run / "data", data / "synthetic")
    prepare_results(data, run)
    document = yaml.safe_load((place / "runs" / "tiny.yaml").read_text())
    document["stages"] = ["scene"]
    trained = []
    with mounted(data, "--bind", str(data)):
        subprocess.run(["mount", "-o", "remount,bind,ro", str(data)], check=True)
        sequence = {"kind": "sequence", "fov": 70, "size": [64, 96], "workers": 1}
        for name, section in {
            "triplets": document["data"] | {"root": str(data / "synthetic")},
            "a folder of frames": sequence | {"root": str(data / "frames")},
            "a video": sequence | {"root": str(data), "images": "clip.mp4"},
        }.items():
            path = place / "runs" / "readonly.yaml"
            path.write_text(yaml.safe_dump(document | {"data": section, "run": name.replace(" ", "-"), "runs": "."}))
            command = Command(["train", str(path)], place / "runs", place / "readonly.txt")
            if (status := command.wait(LONGEST)) != 0:
                raise ChaosError(
                    f"on {name} that cannot be written, training ends with {status}: {command.said[-1500:]}"
                )
            trained.append(name)
    return trained


def table(title: str, counts: dict[str, Any]) -> str:
    return (
        "\n".join([f"| {title} | |", "|---|---|", *(f"| {name} | {count} |" for name, count in counts.items())]) + "\n"
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="chaos.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--full", type=int, default=20, help="full disks")
    parser.add_argument("--stops", type=int, default=5, help="stops of each command that writes results")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    warm()
    tables: list[str] = []
    steps: list[tuple[str, Callable[[Path, Path, int, float, random.Random], dict[str, Any]]]] = [
        ("kill -9 in", lambda *told: kill_runs(*told[:4], given.kills, told[4])),
        (
            "SIGTERM in",
            lambda place, run, *told: {
                name: ", ".join(f"{count} {what}" for what, count in counts.items() if count)
                for name, counts in stop_results(place, run, given.stops, told[2]).items()
            },
        ),
    ]
    if may_mount():
        steps += [
            ("disk full in", lambda *told: fill_disks(*told[:4], given.full, told[4])),
            ("data that cannot be written", lambda place, run, *_: dict.fromkeys(read_only(place, run), "trained")),
        ]
    else:
        print("no mounts: full and read-only disks are left out")
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="mcd-chaos-") as name:
        place = Path(name)
        seed, seconds = undisturbed_run(place / "undisturbed")
        print(f"the run computes for {seconds:.1f} s undisturbed", flush=True)
        for number, (title, step) in enumerate(steps):
            try:
                draw = random.Random(given.seed)
                counts = step(place / f"step-{number}", place / "undisturbed", seed, seconds, draw)
                tables.append(table(title, counts))
            except ChaosError as error:
                wrong += 1
                print(f"WRONG, {title}: {error}", flush=True)
    print("\n".join(["", *tables]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
