"""Kinds of odd data: frames, videos, ground truth, lists."""

from __future__ import annotations

import numpy as np

from fuzz.changes import (
    SIZE,
    Member,
    both,
    clip,
    cut,
    depth,
    folder_at,
    gone,
    image,
    images,
    sound,
    text,
    texture,
    training,
    with_cover,
)

TRUTH = "--set data.depth=depth"
PREPARE = "prepare cityscapes cityscapes out --workers 1"
TRIPLETS = """
{run: new, runs: ., device: cpu, threads: 1, stages: [scene], scene: {steps: 1, batch: 1},
 data: {root: prepared, size: [64, 96], workers: 0}}
"""

DATA: dict[str, list[Member]] = {
    "no usable pixel in the ground truth": [
        training("depth is 0 everywhere", depth(0), "no pixel of the ground truth counts", extra=TRUTH),
        training("beyond max_depth", depth(90), "evaluation.max_depth, 80", extra=TRUTH),
        training("nearer than min_depth", depth(5), "min_depth, 10", extra=f"{TRUTH} --set evaluation.min_depth=10"),
        training("outside the crop", depth(5), "inside the crop", extra=f"{TRUTH} --set evaluation.crop=[0,0.001,0,1]"),
        training(
            "some frames without",
            both(depth(5), image("depth/000023.png", np.zeros(SIZE, np.uint16))),
            "left out",
            extra=TRUTH,
        ),
        training("8 bits", depth(5, np.uint8), "expected 16-bit grey", 1, TRUTH),
        training("another size", depth(5, size=(32, 48)), "000.*is 32x48, but its image is 64x96", 1, TRUTH),
        training("no file for some frames", both(depth(5), gone("depth/000023.png")), "000023.png", 1, TRUTH),
        training("an empty folder", folder_at("depth"), "depth", 1, TRUTH),
        training("no folder", gone("net"), "depth", 1, TRUTH),
    ],
    "files of one sequence that differ": [
        Member(
            "Cityscapes: the fifth image is half as large",
            PREPARE,
            "000004.*is 32x64, but most .* 64x128",
            1,
            image("cityscapes/leftImg8bit_sequence/train/ulm/ulm_000000_000004_leftImg8bit.png", texture(4, (32, 64))),
        ),
        Member(
            "the same with --skip",
            f"{PREPARE} --gap 1 --skip",
            "left out: .*000004",
            0,
            image("cityscapes/leftImg8bit_sequence/train/ulm/ulm_000000_000004_leftImg8bit.png", texture(4, (32, 64))),
        ),
        training("a frame of another size", image("images/000007.png", texture(7, (32, 96))), "000007.png is 32x96", 1),
        training("the first frame of another size", image("images/000000.png", texture(0, (32, 48))), "0000", 1),
        training("a grey frame among coloured ones", image("images/000007.png", texture(7)[..., 0]), None),
        training("a frame with transparency", image("images/000007.png", np.dstack([texture(7)] * 2)[..., :4]), None),
        training(
            "a frame of 16 bits", image("images/000007.png", np.full(SIZE, 9, np.uint16)), "000007.png.*8 bits", 1
        ),
        training("a JPEG among PNGs", both(gone("images/000007.png"), image("images/000007.jpg", texture(7))), None),
        training("a frame both as JPEG and PNG", image("images/000007.jpg", texture(7)), "frame 000007 twice", 1),
        training("a frame cut off", cut("images/000007.png"), "000007.png cannot be read", 1),
        training("the same, skipped", cut("images/000007.png"), None, 0, "--set data.on_error=skip"),
        training("an empty frame", text("images/000007.png", ""), "000007.png cannot be read", 1),
        training(
            "a folder called as a frame", both(gone("images/000007.png"), folder_at("images/000007.png")), "000007", 1
        ),
    ],
    "frames that the encoder refuses": [
        Member("a GIF of 8x8", "predict net clip.gif -o out", None, 0, clip("clip.gif", 3, (8, 8))),
        Member("a GIF of 1x1", "predict net clip.gif -o out", None, 0, clip("clip.gif", 3, (1, 1))),
        Member("a GIF of 17x33", "predict net clip.gif -o out --with-image", None, 0, clip("clip.gif", 3, (17, 33))),
        Member("a GIF of 2x9000", "predict net clip.gif -o out", None, 0, clip("clip.gif", 2, (2, 9000))),
        Member("a GIF of one picture", "predict net clip.gif -o out", None, 0, clip("clip.gif", 1)),
        Member(
            "a GIF of 9000x2, every format",
            "predict net clip.gif -o out --format png npy 16bit",
            None,
            0,
            clip("clip.gif", 2, (9000, 2)),
        ),
    ],
    "a video that is not what its name says": [
        Member("begins with its cover", "predict net covered.mkv -o out --format npy", None, 0, with_cover),
        Member("sound alone", "predict net sound.mp4 -o out", "has no picture stream", 1, sound),
        Member(
            "a picture",
            "predict net a.mp4 -o out --format npy",
            None,
            0,
            both(image("a.png", texture(0)), lambda folder: (folder / "a.png").rename(folder / "a.mp4") and None),
        ),
        Member("text", "predict net a.mp4 -o out", "a.mp4", 1, text("a.mp4", "no film")),
        Member("empty", "predict net a.mp4 -o out", "a.mp4", 1, text("a.mp4", "")),
        Member("a folder", "predict net a.mp4 -o out", "a.mp4 holds no image", 1, folder_at("a.mp4")),
        Member("cut off", "predict net a.mp4 -o out", "a.mp4", 1, both(clip("a.mp4", 9), cut("a.mp4"))),
        training("trained on, text", text("film.mp4", "no film"), "film.mp4", 1, "--set data.images=film.mp4"),
        training("trained on, too short", clip("film.mp4", 2), "none has neighbours", 1, "--set data.images=film.mp4"),
        training("trained on, sound alone", sound, "sound.mp4", 1, "--set data.images=sound.mp4"),
    ],
    "input from which nothing can be learned": [
        training("equal frames", images(lambda _: texture(0)), "the camera stands still"),
        training("black frames", images(lambda _: np.zeros((*SIZE, 3), np.uint8)), "have one colour only"),
        training("white frames", images(lambda _: np.full((*SIZE, 3), 255, np.uint8)), "have one colour only"),
        training("every frame twice", images(lambda number: texture(number // 2)), "equal|stands still"),
        training(
            "frames of one colour each, fading",
            images(lambda number: np.full((*SIZE, 3), 9 * number, np.uint8)),
            "have one colour only",
        ),
        training("one frame", images(lambda _: texture(0), numbers=range(1)), "none has neighbours", 1),
        training("two frames", images(texture, numbers=range(2)), "none has neighbours", 1),
        training("no frame", folder_at("images/nothing"), "holds no .png", 1, "--set data.images=images/nothing"),
        training("fewer frames than a batch", images(texture, numbers=range(3)), "batch of 2 cannot be drawn", 1),
    ],
    "a sequence with missing or odd numbers": [
        training(
            "frames 10 to 14 are missing",
            images(lambda n: None if 10 <= n < 15 else texture(n)),
            "leave 1 gap, the first between 000009 and 000015",
        ),
        training(
            "bridged", images(lambda n: None if 10 <= n < 15 else texture(n)), None, 0, "--set data.bridge_gaps=true"
        ),
        training("every second number", images(lambda n: None if n % 2 else texture(n), numbers=range(40)), None),
        training(
            "gaps everywhere",
            images(lambda n: texture(n) if (n % 5 == 0 and n % 3) or n % 7 == 0 else None, numbers=range(60)),
            "gap|none has neighbours",
            1,
        ),
        training(
            "names without numbers",
            lambda folder: (
                [
                    path.rename(path.with_name(f"{chr(97 + number)}.png"))
                    for number, path in enumerate(sorted((folder / "images").iterdir()))
                ]
                and None
            ),
            None,
        ),
        training("hidden files of another system", text("images/._000003.png", b"\0\5\26\7\0\2\0\0Mac OS X"), None),
        training("other files beside", both(text("images/Thumbs.db", "x"), text("images/readme.txt", "x")), None),
        Member(
            "hidden files, predicted",
            "predict net images -o out",
            None,
            0,
            text("images/._000003.png", b"\0\5\26\7\0\2\0\0Mac OS X"),
        ),
        training(
            "numbers beyond 64 bits",
            lambda folder: (
                [
                    path.rename(path.with_name(f"9999999999999999999{path.name}"))
                    for path in (folder / "images").iterdir()
                ]
                and None
            ),
            None,
        ),
        training(
            "digits that are no decimals",
            lambda folder: (folder / "images/000023.png").rename(folder / "images/²³.png") and None,
            None,
        ),
    ],
    "a split list or triplet that does not fit": [
        *(
            Member(
                name,
                "train triplets.yaml",
                says,
                1,
                both(
                    *(
                        image(f"prepared/triplets/ulm/{frame}.png", np.hstack([texture(n) for n in range(3)]))
                        for frame in ("a", "b")
                    ),
                    text("prepared/triplets/ulm/a_cam.txt", "90,0,48,0,90,32,0,0,1"),
                    text("prepared/triplets/ulm/b_cam.txt", "90,0,48,0,90,32,0,0,1"),
                    text("triplets.yaml", TRIPLETS),
                    text("prepared/splits/train.txt", "ulm a\nulm b\n"),
                    text("prepared/splits/val.txt", "ulm b\n"),
                    change,
                ),
            )
            for name, says, change in (
                ("a line of one word", "train.txt, entry 2", text("prepared/splits/train.txt", "ulm a\nulm\n")),
                ("an empty list", "train.txt is empty", text("prepared/splits/train.txt", "\n\n")),
                ("no list", "train.txt does not exist", gone("prepared/splits/train.txt")),
                ("a list of bytes", "train.txt cannot be read", text("prepared/splits/train.txt", b"\xff\xfe\x80")),
                ("a frame that is not there", "c.png does not exist", text("prepared/splits/train.txt", "ulm c\n")),
                ("a path out of the data", "x.png", text("prepared/splits/train.txt", "../.. x\n")),
                (
                    "a width that is no three frames",
                    "expected three frames",
                    both(*(image(f"prepared/triplets/ulm/{frame}.png", texture(0)[:, :95]) for frame in "ab")),
                ),
                (
                    "8 numbers of a camera",
                    "_cam.txt hold 8",
                    both(*(text(f"prepared/triplets/ulm/{frame}_cam.txt", "1,0,1,0,1,1,0,0") for frame in "ab")),
                ),
                (
                    "a singular camera",
                    "singular",
                    both(*(text(f"prepared/triplets/ulm/{frame}_cam.txt", "0,0,1,0,0,1,0,0,1") for frame in "ab")),
                ),
                (
                    "an infinite camera",
                    "not finite",
                    both(*(text(f"prepared/triplets/ulm/{frame}_cam.txt", "inf,0,1,0,9,1,0,0,1") for frame in "ab")),
                ),
            )
        ),
    ],
}
