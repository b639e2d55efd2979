"""Kinds of odd weights, results and run folders."""

from __future__ import annotations

import shutil

import torch

from fuzz.changes import (
    Member,
    both,
    cut,
    depth,
    fill,
    folder_at,
    gone,
    held,
    settings,
    tensors,
    text,
    without_one,
)

PREDICT = "predict net images/000000.png -o out"

RESULTS: dict[str, list[Member]] = {
    "weights that cannot be used": [
        Member("metadata are a list", PREDICT, "weights.safetensors: its metadata", 1, tensors(lambda _: None, "[1]")),
        Member("metadata are no JSON", PREDICT, "weights.safetensors: its metadata", 1, tensors(lambda _: None, "{")),
        Member("metadata name no net", PREDICT, "does not say which depth net", 1, tensors(lambda _: None, None)),
        Member(
            "metadata name an unknown net",
            PREDICT,
            "nosuch",
            1,
            tensors(lambda _: None, '{"nets": {"depth": "nosuch"}, "size": [64, 96]}'),
        ),
        Member(
            "metadata have a size of 0",
            PREDICT,
            "weights.safetensors: its metadata.*size",
            1,
            tensors(lambda _: None, '{"nets": {"depth": "light"}, "size": [0, 96]}'),
        ),
        Member(
            "metadata have a size that is no multiple of 32",
            PREDICT,
            "multiples of 32",
            1,
            tensors(lambda _: None, '{"nets": {"depth": "light"}, "size": [63, 96]}'),
        ),
        Member(
            "metadata have half a camera",
            f"{PREDICT} --camera-height 1.5",
            "camera",
            1,
            tensors(lambda _: None, '{"nets": {"depth": "light"}, "size": [64, 96], "camera": [1, 2]}'),
        ),
        Member("all NaN", PREDICT, "weights.safetensors.*not finite", 1, tensors(fill(float("nan")))),
        Member("all infinite", PREDICT, "weights.safetensors.*not finite", 1, tensors(fill(float("inf")))),
        Member("all 1e38", PREDICT, "not finite", 1, tensors(fill(1e38))),
        Member("a tensor is missing", PREDICT, "missing", 1, tensors(without_one)),
        Member("no tensors", PREDICT, "missing|holds no depth net", 1, tensors(lambda found: found.clear())),
        Member(
            "a pickle",
            PREDICT,
            "no readable safetensors",
            1,
            lambda folder: torch.save({"a": torch.zeros(2)}, folder / "net" / "weights.safetensors"),
        ),
        Member("cut off", PREDICT, "no readable safetensors", 1, cut("net/weights.safetensors")),
        Member("empty", PREDICT, "no readable safetensors", 1, text("net/weights.safetensors", "")),
        Member(
            "a run without them",
            "predict run images -o out",
            "holds no weights",
            1,
            gone("run/scene/weights.safetensors"),
        ),
        settings("init=net", says="not finite", change=tensors(fill(float("nan"))), name="init with NaN"),
        Member(
            "evaluate",
            "evaluate run --set data.depth=depth",
            "not finite",
            1,
            both(
                depth(5),
                tensors(fill(float("nan"))),
                lambda folder: shutil.copy(folder / "net/weights.safetensors", folder / "run/scene") and None,
            ),
        ),
        Member(
            "convert a text", "convert published -o out", "cannot be read", 1, text("published/depth_net.pth", "no")
        ),
        Member("convert a folder without any", "convert images -o out", "holds none of", 1),
        Member(
            "convert a list",
            "convert published -o out",
            "state dict",
            1,
            lambda folder: ((folder / "published").mkdir(), torch.save([1], folder / "published" / "pose_net.pth"))[1],
        ),
    ],
    "results of an earlier run that are broken": [
        *(
            Member(
                f"{file} is {content or 'empty'}, {command}",
                command if "train" in command else f"{command} run",
                re_says,
                1,
                text(f"run/{file}", content),
            )
            for file, content, command, re_says in (
                ("metrics.json", "[]", "report", "metrics.json"),
                ("metrics.json", "", "report", "metrics.json"),
                ("metrics.json", '{"stages": 3}', "report", "metrics.json"),
                ("metrics.json", '{"stages": {"scene": {"all": {"abs_rel": "x"}}}}', "report", "metrics.json"),
                ("metrics.json", '{"warnings": [1]}', "report", "metrics.json"),
                ("env.json", "[]", "report", "env.json"),
                ("metrics.json", '{"contact": 3}', "report", "metrics.json"),
                ("metrics.json", '{"camera": {"fx": 1}}', "report", "metrics.json"),
                ("config.yaml", "[1]", "report", "config.yaml"),
                ("config.yaml", "\x00", "report", "config.yaml"),
                ("config.yaml", "a: [", "evaluate", "config.yaml"),
                ("log/scene.csv", "no,table\n1", "report", "scene.csv"),
                ("log/scene.csv", "step,total\n1,many\n", "report", "scene.csv"),
                ("log/warnings.json", "[]", "train tiny.yaml", "warnings.json"),
                ("scene/done.json", "[]", "train tiny.yaml", "done.json"),
                ("scene/done.json", '{"seconds": "x"}', "train tiny.yaml", "done.json"),
                ("config.yaml", "scene: 3", "train tiny.yaml", "config.yaml"),
            )
        ),
        Member(
            "state.pt is text",
            "train tiny.yaml",
            "state.pt",
            1,
            both(text("run/scene/last/state.pt", "x"), gone("run/scene/done.json")),
        ),
        Member(
            "state.pt is of another net",
            "train tiny.yaml",
            "state.pt",
            1,
            both(
                lambda folder: torch.save({"step": 1}, folder / "run/scene/last/state.pt"), gone("run/scene/done.json")
            ),
        ),
        Member(
            "a stage's log is cut off",
            "train tiny.yaml",
            "scene.csv",
            1,
            both(text("run/log/scene.csv", "total\n\x00\n"), gone("run/scene/done.json")),
        ),
        Member(
            "the store is text",
            "train tiny.yaml --set run=new --set store=sqlite --set stages=[scene,predictions] "
            "--set scene.motion_from=0",
            "predictions.sqlite",
            1,
            text("new/predictions.sqlite", "no database"),
        ),
        Member("no figures at all", "report run", None, 0, gone("run/metrics.json")),
        Member("no log", "report run", None, 0, gone("run/log")),
    ],
    "a run folder that is another's": [
        Member("two processes", "train tiny.yaml", "in use by", 1, held),
        Member("a report beside a training", "report run", None, 0, held),
        Member("a prediction beside a training", "predict run images -o out", None, 0, held),
        Member("a lock that was left", "train tiny.yaml", None, 0, text("run/lock", "process 1 on elsewhere")),
        Member("a folder called lock", "train tiny.yaml", "run", 1, both(gone("run/lock"), folder_at("run/lock"))),
        Member("the run is a file", "train tiny.yaml --set run=new", "new", 1, text("new", "")),
        Member("the log is a file", "train tiny.yaml --set run=new", "new", 1, text("new/log", "")),
        Member("a stage is a file", "train tiny.yaml --set run=new", "scene", 1, text("new/scene", "")),
        Member(
            "weights are a folder",
            "train tiny.yaml --set run=new",
            "weights.safetensors",
            1,
            folder_at("new/scene/weights.safetensors/x"),
        ),
        Member(
            "the report is a folder",
            "report run",
            "report.html",
            1,
            both(gone("run/report.html"), folder_at("run/report.html/x")),
        ),
        Member(
            "a result is a folder", PREDICT + " --force", "000000_depth.png", 1, folder_at("out/000000_depth.png/x")
        ),
        Member(
            "a link to itself",
            "predict net loop -o out",
            "loop",
            1,
            lambda folder: (folder / "loop").symlink_to("loop"),
        ),
    ],
}
