"""Kinds of odd values, names, options and calls; and all kinds, with those of the modules beside this one."""

from __future__ import annotations

from fuzz.changes import Member, depth, image, settings, text, texture
from fuzz.kinds_of_data import DATA
from fuzz.kinds_of_results import RESULTS

PREDICT = "predict net images/000000.png -o out"
PREPARE = "prepare cityscapes cityscapes out --workers 1"

VALUES: dict[str, list[Member]] = {
    "a value that an operator or a net refuses": [
        settings("data.size=[63, 96]", says="data.size"),
        settings("data.size=[32, 32]", says="data.size"),
        settings("data.size=[0, 64]", says="data.size"),
        settings("data.size=64", says="data.size"),
        settings("data.size=[64, 99999999999999999999]", says="data.size"),
        settings("loss.ssim=-1", says="ssim"),
        settings("loss.c2=0", says="c2"),
        settings("loss.scales=5", says="loss.scales"),
        settings("data.spacing=[]", says="data.spacing"),
        settings("data.spacing=[0]", says="data.spacing"),
        settings("data.spacing=[100]", says="none has neighbours at a distance of 100"),
        Member("--backend foo", "train tiny.yaml --backend foo", "backend: unknown backend 'foo'"),
        settings("seed=99999999999999999999999", says="seed"),
        settings("threads=-1", says="threads"),
        settings("scene.lr=.nan", says="scene.lr"),
        settings("scene.batch=100000", says="batch of 100000 cannot be drawn"),
        settings("scene.steps=0", says="steps"),
        settings("scene.drops=[[1]]", says="scene.drops"),
        settings("nets.depth=nosuch", says="nets.depth"),
        settings("nets.pose=3", says="nets.pose"),
        settings("nets.depth=light", "nets.pretrained=true", says="nets.*ImageNet"),
        settings("device=cuda:99", says="'device'"),
        settings("device=floppy", says="'device'"),
        settings("precision=float16", says="precision"),
        settings("data.fov=180", says="fov"),
        settings("data.fov=0", says="data.fov"),
        settings("data.fov=1e-9", says="fov|intrinsics"),
        settings("data.intrinsics=[100, 100]", says="data.intrinsics"),
        settings("data.intrinsics=[-5, 100, 48, 32]", says="data.intrinsics"),
        settings("data.distortion=[0.1, 0.1]", says="distortion"),
        settings("data.crop=[0.5, 0.4, 0, 1]", says="crop"),
        settings("data.crop=[0.5, 0.501, 0, 1]", says="crop"),
        settings("data.train_frames=[5, 2]", says="train_frames"),
        settings("data.train_frames=[0, 99]", says="train_frames"),
        settings("data.train_frames=[3, 3]", says="none has neighbours"),
        settings("data.own_mask=nosuch.png", says="nosuch.png"),
        settings("data.camera_height=-1", says="camera_height"),
        settings("augment.hue=[-9, 9]", says="augment.hue"),
        settings("evaluation.min_depth=90", says="min_depth"),
        settings("init=nosuch", says="nosuch"),
        settings("data.root=nosuch", says="nosuch"),
        settings("stages=[]", says="stages"),
        settings("runs=tiny.yaml", says="tiny.yaml", name="runs is a file"),
    ],
    "a name that matches nothing": [
        settings("backend={nosuch: native}", says="unknown operator 'nosuch'"),
        settings("backend={backward_wrap: native}", says="did you mean 'backward_warp'"),
        Member("MCD_BACKEND=foo", "train tiny.yaml --set run=new", "MCD_BACKEND.*foo", 1, None, {"MCD_BACKEND": "foo"}),
        Member(
            "MCD_BACKEND of an unknown operator",
            "train tiny.yaml --set run=new",
            "nosuch",
            1,
            None,
            {"MCD_BACKEND": "nosuch=native"},
        ),
        settings("stages=[scen]", says="stages"),
        settings("scen.lr=1", says="did you mean 'scene"),
        settings("data.sizes=[64, 96]", says="did you mean 'data.size'"),
        Member("a config that is not there", "train synthtic", "synthetic"),
        Member("a command that is not there", "trian", "did you mean 'train'", 2),
        Member("predict --stage nosuch", "predict run images/000000.png -o out --stage nosuch", "nosuch", 2),
        Member("evaluate --scale nosuch", "evaluate run --scale nosuch", "nosuch", 2),
        Member("report of no run", "report nosuch", "nosuch"),
        Member("evaluate of no run", "evaluate nosuch", "nosuch"),
        Member("predict --format jpeg", f"{PREDICT} --format jpeg", "jpeg", 2),
        Member("prepare of an unknown split", f"{PREPARE} --splits tran", "tran"),
    ],
    "output of an earlier call with other options": [
        Member(
            "prepare with another gap",
            f"{PREPARE} --gap 1",
            "made with gap 2",
            1,
            text("out/prepared.json", '{"kind": "cityscapes", "gap": 2, "keep_rows": 0.75, "sources": {}}'),
        ),
        Member(
            "prepare from another source",
            PREPARE,
            "was made from /elsewhere",
            1,
            text(
                "out/prepared.json",
                '{"kind": "cityscapes", "gap": 2, "keep_rows": 0.75, "sources": {"train": "/elsewhere"}}',
            ),
        ),
        Member(
            "triplets of unknown origin", PREPARE, "no prepared.json", 1, image("out/triplets/ulm/a.png", texture(0))
        ),
        Member("another config in a run", "train tiny.yaml --set scene.lr=0.5", "scene.lr was 0.001, is 0.5"),
        Member("another data set in a run", "train tiny.yaml --set data.fov=50", "data.fov was 70"),
        Member("predict over results", PREDICT, "exists already; --force", 2, text("out/000000_depth.png", "")),
        Member(
            "predict over results of another format",
            f"{PREDICT} --format npy",
            None,
            0,
            text("out/000000_depth.png", ""),
        ),
        Member("an output that is a file", PREDICT, "out is a file", 2, text("out", "")),
        Member("synthetic scenes where frames are", "train synthetic --set data.root=images --set run=new", "images"),
    ],
    "more workers than work or machine": [
        Member("prepare --workers 100000", "prepare cityscapes cityscapes out --workers 100000 --gap 1", None, 0),
        settings("data.workers=100000", says=None, status=0),
        settings("data.workers=-1", says="data.workers"),
        Member("prepare --workers 0", "prepare cityscapes cityscapes out --workers 0", "at least 1", 2),
        settings("threads=100000", says="threads"),
    ],
    "options that make every result useless": [
        Member("--scale inf", f"{PREDICT} --scale inf", "--scale", 2),
        Member("--scale nan", f"{PREDICT} --scale nan", "--scale", 2),
        Member("--scale 0", f"{PREDICT} --scale 0", "--scale", 2),
        Member("--scale 1e39", f"{PREDICT} --scale 1e39", "--scale", 2),
        Member("--factor 1e-9", f"{PREDICT} --format 16bit --factor 1e-9", "--factor", 2),
        Member("--factor 1e9", f"{PREDICT} --format 16bit --factor 1e9", "--factor", 2),
        Member("--size 0x0", f"{PREDICT} --size 0x0", "size 0x0", 2),
        Member("--size 33x64", f"{PREDICT} --size 33x64", "multiples of 32", 2),
        Member("--size 9999999968x64", f"{PREDICT} --size 9999999968x64", "size", 2),
        Member("--batch 0", f"{PREDICT} --batch 0", "--batch", 2),
        Member("--camera-height inf", f"{PREDICT} --camera-height inf", "--camera-height", 2),
        Member(
            "--camera-height and --scale", f"{PREDICT} --camera-height 2 --scale 2", "--scale and --camera-height", 2
        ),
        Member("--fov 500", f"{PREDICT} --camera-height 2 --fov 500", "--fov", 2),
        Member(
            "evaluate --camera-height nan",
            "evaluate run --camera-height nan --set data.depth=depth",
            "camera_height",
            1,
            depth(5),
        ),
        Member("train --camera-height 0", "train tiny.yaml --camera-height 0", "camera_height", 1),
        Member("train --profile 9:3", "train tiny.yaml --profile 9:3", "START:STOP", 2),
        settings("evaluation.max_depth=1e-3", says="max_depth"),
    ],
}

KINDS = VALUES | DATA | RESULTS
