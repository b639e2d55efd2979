"""Config: what is accepted, what is refused, and by which words."""

import re
from pathlib import Path

import pytest

from mcd.config import ConfigError, known_keys, load_config, parse_config
from mcd.run.networks import check_motion, check_nets

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_is_valid(path):
    assert load_config(path).run == path.stem


@pytest.mark.parametrize("name", ["kitti", "kitti.yaml", "configs/kitti.yaml"])
def test_a_config_that_comes_with_the_program_is_found_from_anywhere_by_its_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config(name) == load_config(Path(__file__).parents[1] / "configs" / "kitti.yaml")
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text("seed: 321")
    assert load_config(name).seed == 321


@pytest.mark.parametrize("name", ["kity", "other/kitti.yaml", "kitti.txt"])
def test_a_config_that_is_not_there_is_answered_with_those_that_are(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ConfigError, match=rf"config {name} does not exist; .* are cityscapes, .*, synthetic_.*, video, video_masks$"
    ):
        load_config(name)


def test_the_cityscapes_config_has_the_published_schedule():
    config = load_config(Path(__file__).parents[1] / "configs" / "cityscapes.yaml")
    scene, objects, scale, final = config.scene, config.object, config.scale, config.final
    steps_per_epoch = 69731 // 12
    assert (config.data.size, config.loss.scales) == ((192, 512), 4)
    assert config.nets.model_dump(include={"depth", "pose", "motion", "scale"}) == {
        "depth": "diffnet", "pose": "resnet18", "motion": "raft", "scale": "resnet18",
    }  # fmt: skip
    assert scene.length(steps_per_epoch) == 87_150
    assert final.length(steps_per_epoch) == 29_050
    assert [(s.epochs, s.batch, s.lr) for s in (scene, objects, scale, final)] == [
        (15, 12, 2e-4), (5, 12, 2e-4), (20, 32, 1e-3), (5, 12, 2e-5),
    ]  # fmt: skip
    assert [s.clip for s in (scene, objects, scale, final)] == [10, 10, None, 10]
    assert [s.drops for s in (scene, objects, scale, final)] == [((10, 0.5),), (), ((3, 0.5), (10, 0.5)), ()]
    assert (scene.motion_from, scene.joint_from, final.motion_from, final.joint_from) == (1, 2, 0, 0)
    assert (final.pseudo_weight, objects.smoothness, scale.huber) == (0.1, 0.02, 0.005)
    assert scale.contact is None and config.pseudo.contact is None
    weights = config.loss.model_dump(include={"ssim", "l1", "c2", "smoothness", "sparsity"})
    assert weights == {"ssim": 3, "l1": 2, "c2": 9e-6, "smoothness": 0.002, "sparsity": 0.02}
    assert config.loss.c1 == float("inf")
    assert config.instances.model_dump(exclude={"batch"}) == {
        "flow_threshold": 1.0, "coverage": 0.5, "middle": 20, "min_area": 0.005, "tracks": False, "persist": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"scen": {}}, "unknown key 'scen'; did you mean 'scene'"),
        ({"scene": {"steps": 1, "lrr": 1}}, "unknown key 'scene.lrr'; did you mean 'scene.lr'"),
        ({"scene": {"steps": "many"}}, "'scene.steps'"),
        ({"scene": {"steps": 1, "epochs": 1}}, "exactly one of 'steps' and 'epochs'"),
        ({"scene": {"steps": 1, "motion_from": 5, "joint_from": 4}}, "'joint_from' must not lie before"),
        ({"object": {"steps": 1, "select": "ground_truth"}}, "select: ground_truth needs"),
        ({"data": {"size": [64]}}, "'data.size"),
        ({"stages": ["scene", "ground_truth"]}, "'stages.1'"),
        ({"stages": []}, "'stages'"),
        ({"augment": {"flip": 1.5}}, "'augment.flip'"),
        (
            {"loss": {"ssim": -1}},
            "'loss': Value error, loss: ssim_weight is -1.0, it should be finite and not negative",
        ),
        ({"loss": {"c2": 0}}, "'loss': Value error, loss: c1 = inf and c2 = 0.0 should be positive"),
        ({"loss": {"smoothness": float("nan")}}, "'loss.smoothness'"),
        ({"data": {"spacing": []}}, "'data.spacing'"),
        ({"backend": "foo"}, "'backend': Value error, backend: unknown backend 'foo'; known: auto, native"),
        ({"backend": {"backwardwarp": "native"}}, "unknown operator 'backwardwarp'; did you mean 'backward_warp'?"),
        ({"backend": {"nosuch": "native"}}, "unknown operator 'nosuch'; known: "),
    ],
)
def test_a_bad_key_is_named(document, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse_config(document)


def test_the_discovery_of_masks_has_the_published_moments():
    # Published in steps, of which an epoch of 69731 frames in batches of 16 has 4358.
    config = load_config(CONFIGS[0].parent / "cityscapes_unsupervised.yaml")
    ground, slots, epoch = config.ground, config.slots, 69731 // 16
    assert slots.length(epoch) == 174_320
    assert ground.length(epoch) == 87_160
    moments = {
        ground.thirds_from: 17_500,
        ground.thirds_full_from: 22_500,
        ground.label_until: 45_000,
        ground.label_floor_from: 50_000,
        slots.emptiness_from: 20_000,
        slots.emptiness_full_from: 120_000,
        slots.halve_every: 34_864,
    }
    for when, step in moments.items():
        assert ground.in_steps(when, epoch) == step
    assert slots.warmup == round(0.02 * 174_320)


def test_assignments_lie_over_the_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("scene: {epochs: 3, lr: 2e-4}\n")
    config = load_config(
        path, ["scene.steps=7", "data.root=/elsewhere", "scene.clip=1e-2", "backend={fuse_depth: reference}"]
    )
    assert (config.scene.steps, config.scene.epochs, config.scene.lr) == (7, None, 2e-4)
    assert config.data.root == Path("/elsewhere")
    assert config.scene.clip == 0.01
    assert config.backend == {"fuse_depth": "reference"}


@pytest.mark.parametrize("assignment", ["scene.lr", "=3", "seed.deep=3", "scene.lr=[1"])
def test_a_bad_assignment_is_refused(tmp_path, assignment):
    path = tmp_path / "mine.yaml"
    path.write_text("seed: 1\n")
    with pytest.raises(ConfigError, match="--set"):
        load_config(path, [assignment])


@pytest.mark.parametrize(
    ("text", "message"), [(None, "does not exist"), ("[1, 2]", "mapping"), ("a: [", "cannot be read")]
)
def test_an_unreadable_file_is_named(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(path)


def test_the_digest_sees_what_decides_the_result_and_nothing_else():
    base = parse_config({"scene": {"steps": 5}})
    assert base.digest() == parse_config({"scene": {"steps": 5}, "run": "other", "log_every": 3}).digest()
    assert base.digest() != parse_config({"scene": {"steps": 6}}).digest()


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"stages": ["scene", "slots"]}, "stage 'slots' needs the stage 'predictions'"),
        ({"stages": ["scene", "predictions", "slots", "detector"]}, "stage 'detector' needs the stage 'ground'"),
        ({"stages": ["scene", "predictions", "ground", "detector"]}, "stage 'detector' needs the stage 'slots'"),
        ({"stages": ["predictions", "scene"]}, "'stages' should be each once, in this order: scene, predictions"),
        ({"stages": ["scene", "scene"]}, "'stages' should be each once"),
        (
            {"stages": ["scene", "predictions", "ground"], "data": {"size": [64, 1024]}},
            r"'ground.distance', 11 at a width of 512, wants images of at least 67 pixels each way, not 64x1024",
        ),
        ({"ground": {"steps": 9, "hide_depth": 1}}, "'ground.hide_depth'"),
        ({"detector": {"epochs": 1, "views": True}}, "'detector.views'"),
        ({"detector": {"steps": 0, "init": "a"}}, r"there is one round: 'scores' should be one number"),
        ({"ground": {"steps": 0}}, "'steps' is 0, and there is no 'init'"),
        ({"scene": {"steps": 0}, "init": "a"}, "'steps' should not be 0; a stage that is not to train is left out"),
    ],
)
def test_what_cannot_work_is_said_before_anything_runs(document, message):
    with pytest.raises(ConfigError, match=message):
        parse_config({"store": "sqlite"} | document)


def test_a_trained_detector_needs_no_slots():
    detector = {"steps": 0, "init": "released", "scores": [0.7], "filter_after": [0]}
    stages = ["predictions", "ground", "detector"]
    config = parse_config({"store": "sqlite", "stages": stages, "detector": detector})
    assert config.detector.steps == 0


def test_help_knows_every_section():
    names = {name for name, _, _ in known_keys()}
    assert {"seed", "data.synthetic.frames", "scene.motion_from", "final.pseudo_weight", "evaluation.crop"} <= names


def test_epochs_become_steps():
    schedule = parse_config({"scene": {"epochs": 2, "motion_from": 0.5}}).scene
    assert schedule.length(100) == 200
    assert schedule.in_steps(0.5, 100) == 50
    assert parse_config({"scene": {"epochs": 0.001}}).scene.length(100) == 1


@pytest.mark.parametrize(
    ("document", "key"),
    [
        ({"seed": 2**64}, "'seed'"),
        ({"seed": -(2**63) - 1}, "'seed'"),
        ({"threads": 10**6}, "'threads'"),
        ({"data": {"size": [10**6, 64]}}, "'data.size.0'"),
        ({"scene": {"steps": 10**30}}, "'scene.steps'"),
        ({"scene": {"epochs": float("inf")}}, "'scene.epochs'"),
        ({"scene": {"steps": 1, "lr": float("nan")}}, "'scene.lr'"),
        ({"scene": {"steps": 9, "drops": [[3, -1]]}}, "'scene.drops.0.1'"),
        ({"scene": {"steps": 9, "motion_from": 9}}, "'motion_from', 9, must lie before the end of the stage, 9"),
        ({"scene": {"steps": 9, "motion_from": 1, "joint_from": 20}}, "'joint_from', 20, must lie before the end"),
        ({"augment": {"brightness": [1.2, 0.8]}}, "'augment.brightness'"),
        ({"augment": {"brightness": [-1, 1]}}, "'augment.brightness.0'"),
        ({"augment": {"hue": [-0.6, 0.1]}}, "'augment.hue.0'"),
        ({"evaluation": {"min_depth": 9, "max_depth": 3}}, "'min_depth', 9, must lie below 'max_depth', 3"),
        ({"evaluation": {"crop": [0.5, 0.5, 0, 1]}}, "'crop' is top, bottom, left, right"),
        ({"evaluation": {"keep_rows": 0}}, "'keep_rows' must not be 0"),
        ({"data": {"fov": 180}}, "'data.fov'"),
        ({"data": {"fov": 1e-9}}, "'data.fov'"),
        ({"data": {"intrinsics": [1e-9, 9, 1, 1]}}, "'data.intrinsics"),
        ({"data": {"intrinsics": [9, 9, 1e300, 1]}}, "'data.intrinsics"),
        ({"data": {"distortion": [1e300, 0, 0, 0, 0]}}, "'data.distortion.0'"),
        ({"final": {"steps": 1, "pseudo_weight": -1}}, "'final.pseudo_weight'"),
    ],
)
def test_numbers_that_nothing_can_be_done_with_are_refused(document, key):
    with pytest.raises(ConfigError, match=re.escape(key)):
        parse_config(document)


def test_nets_of_stages_to_come_and_what_they_need_are_checked_at_once():
    with pytest.raises(ConfigError, match="'nets.scale': no scale net 'foo'"):
        check_nets(parse_config({"nets": {"scale": "foo"}, "stages": ["scene", "scale"]}))
    with pytest.raises(ConfigError, match=r"'scene.motion_from' is not set, and stage 'instances' reads"):
        check_motion(parse_config({"stages": ["scene", "instances"]}))
