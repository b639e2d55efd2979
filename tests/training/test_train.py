"""The loop's parts, and what a user reads when something is wrong."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mcd.config import ConfigError, Schedule, parse_config
from mcd.files import DataError
from mcd.run.checkpoint import save_weights
from mcd.run.folder import Run, RunError
from mcd.run.log import StageLog
from mcd.run.networks import check_nets
from mcd.streets.synthetic import generate
from mcd.train import main, train_run
from mcd.training.nan_guard import NanGuard, TrainingDivergedError
from mcd.training.state import learning_rate
from mcd.training.step import cut_graph
from mcd.training.stop import StopSignal


@pytest.fixture(scope="module")
def streets(tmp_path_factory):
    root = tmp_path_factory.mktemp("streets") / "data"
    generate(root, train=8, val=2, size=(64, 96), seed=0)
    return root


@pytest.fixture
def config(tmp_path, streets):
    path = tmp_path / "small.yaml"
    path.write_text(
        f"data: {{root: {streets}, size: [64, 96], workers: 0}}\n"
        f"runs: {tmp_path / 'runs'}\nthreads: 1\nstages: [scene]\nloss: {{scales: 1}}\n"
        "scene: {steps: 2, batch: 2, validate_batches: 1}\n"
    )
    return path


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 1, 3))


def test_a_cut_graph_gives_the_same_gradients():
    net, image = small_net(), torch.rand(2, 3, 8, 8)
    depth = net(image)
    (depth.square().mean() + depth.mean()).backward()
    whole = [parameter.grad.clone() for parameter in net.parameters()]
    net.zero_grad()
    outputs = {"depths": [net(image)], "constant": torch.ones(1)}
    leaves, pairs = cut_graph(outputs)
    loss = leaves["depths"][0].square().mean() + leaves["depths"][0].mean() + leaves["constant"].sum()
    loss.backward()
    assert len(pairs) == 1
    assert all(parameter.grad is None for parameter in net.parameters())
    torch.autograd.backward([pairs[0][0]], [pairs[0][1].grad])
    for before, parameter in zip(whole, net.parameters(), strict=True):
        assert torch.equal(before, parameter.grad)


def step_with(net: nn.Module, image: torch.Tensor, guard: NanGuard) -> None:
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1, fused=True)
    guard.remember({"depth": net})
    loss = net(image).mean()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(net.parameters(), 10.0)
    bad = guard.check(loss, [norm])
    guard.note(0, ["city/frame_7"], bad)
    optimizer.found_inf = bad
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("action", ["stop", "skip"])
def test_a_nan_never_reaches_the_weights_and_its_batch_is_named(action, capsys):
    net = small_net()
    before = {name: value.clone() for name, value in net.state_dict().items() if value.is_floating_point()}
    guard = NanGuard(action, torch.device("cpu"))
    step_with(net, torch.full((2, 3, 8, 8), torch.nan), guard)
    for name, value in before.items():
        assert torch.equal(net.state_dict()[name], value), name
    if action == "stop":
        with pytest.raises(TrainingDivergedError, match="city/frame_7"):
            guard.report()
    else:
        guard.report()
        assert guard.skipped == 1
        assert "city/frame_7" in capsys.readouterr().out
    step_with(net, torch.rand(2, 3, 8, 8), guard)
    assert not torch.equal(net.state_dict()["0.weight"], before["0.weight"])


def test_the_learning_rate_warms_up_and_drops():
    schedule = Schedule(epochs=4, lr=1.0, warmup=10, drops=((2, 0.5), (3, 0.1)))
    stage = SimpleNamespace(schedule=schedule, steps_per_epoch=100)
    rates = [learning_rate(stage, step) for step in (0, 4, 9, 199, 200, 300)]
    assert rates == pytest.approx([0.1, 0.5, 1.0, 1.0, 0.5, 0.05])


def test_a_signal_becomes_a_flag_and_the_old_handler_returns():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignal() as stop:
        assert not stop()
        signal.raise_signal(signal.SIGTERM)
        assert stop()
    assert signal.getsignal(signal.SIGTERM) is before


def test_settings_of_stages_that_have_not_begun_may_change(tmp_path):
    def opened(**settings):
        return Run(parse_config({"runs": str(tmp_path), "run": "a"} | settings))

    opened(seed=1)
    opened(seed=2)  # nothing has begun
    for name in ("scene", "instances", "object"):
        opened(seed=2).stage(name).mkdir()
    run = opened(seed=2, scale={"steps": 7}, final={"steps": 9})
    assert "steps: 7" in (run.path / "config.yaml").read_text()
    for changed in ({"object": {"steps": 3}}, {"instances": {"min_area": 0.1}}):
        with pytest.raises(RunError, match="delete .*/a/object to make that anew"):
            opened(seed=2, scale={"steps": 7}, final={"steps": 9}, **changed)
    (run.path / "metrics.json").write_text("{}")
    for name in ("instances", "object"):
        (run.path / name).rmdir()
    opened(seed=2, object={"steps": 3}, instances={"min_area": 0.1})
    assert not (run.path / "metrics.json").exists(), "figures of the deleted stages"
    run.stage("control").mkdir()
    with pytest.raises(RunError, match="delete .*/a/control to make that anew"):
        opened(seed=2, object={"steps": 3}, instances={"min_area": 0.1}, final={"steps": 2})


def test_stored_predictions_count_as_begun(tmp_path):
    def opened(**settings):
        stages = {"stages": ["predictions", "instances"], "store": "sqlite", "init": "released"}
        return Run(parse_config({"runs": str(tmp_path), "run": "a"} | stages | settings))

    store = opened().store
    store.write_bytes(b"predictions of the first frames")
    # scene.motion_floor is read without a scene stage, too.
    for changed in (
        {"data": {"size": (64, 96)}},
        {"scene": {"steps": 9, "motion_floor": 1}},
        {"predictions": {"batch": 2}},
    ):
        with pytest.raises(RunError, match=r"delete .*/a/predictions\.sqlite to make that anew"):
            opened(**changed)
    opened(instances={"batch": 2})
    store.unlink()
    opened(data={"size": (64, 96)})


def test_a_net_that_does_not_exist_is_named_before_anything_runs(tmp_path):
    config = parse_config({"runs": str(tmp_path), "nets": {"detector": "yolo"}})
    discovery = {"stages": ["scene", "predictions", "ground", "slots", "detector"], "store": "sqlite"}
    check_nets(config)  # no stage of it has a detector
    for nets, message in (
        ({"detector": "yolo"}, "'nets.detector': no detector 'yolo'"),
        ({"pretrained": True, "depth": "diffnet", "pose": "resnet18"}, "'nets.detector': .*no ImageNet weights"),
    ):
        config = parse_config({"runs": str(tmp_path), "nets": nets} | discovery)
        with pytest.raises(ConfigError, match=message), StopSignal() as stop:
            train_run(config, stop)
    assert not any(tmp_path.iterdir())


def test_a_run_folder_keeps_to_one_config(tmp_path):
    first = parse_config({"runs": str(tmp_path), "run": "a", "scene": {"steps": 5}})
    Run(first)
    (Run(first).stage("scene")).mkdir()
    Run(first.model_copy(update={"log_every": 7}))
    with pytest.raises(RunError, match=r"scene\.lr was 0\.001, is 0\.5"):
        Run(parse_config({"runs": str(tmp_path), "run": "a", "scene": {"steps": 5, "lr": 0.5}}))
    with pytest.raises(RunError, match="seed was 0, is 3.* delete .*/a/scene to make that anew"):
        Run(parse_config({"runs": str(tmp_path), "run": "a", "scene": {"steps": 5}, "seed": 3}))
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        Run(parse_config({"runs": str(tmp_path / "file"), "run": "a"}))
    environment = json.loads((tmp_path / "a" / "env.json").read_text())
    assert torch.__version__.startswith(environment["versions"]["torch"])


def test_a_log_forgets_what_was_not_saved(tmp_path):
    run = Run(parse_config({"runs": str(tmp_path), "run": "a"}))
    log = StageLog(run, "scene", 0)
    log.scalars(1, {"total": 3.0})
    log.scalars(9, {"total": 1.0, "validation": 2.0})
    log.close()
    log = StageLog(run, "scene", 5)
    log.scalars(5, {"validation": 4.0})
    log.close()
    assert (run.path / "log" / "scene.csv").read_text() == "step,total,validation\n1,3,\n5,,4\n"


@pytest.mark.parametrize(
    "content", ["total\n3\n", "step,total\nmany,3\n", "step,total\n,3\n", "\x80\n", "step,step\n1,\0\n\n"]
)
def test_a_log_that_is_none_is_named(tmp_path, content):
    run = Run(parse_config({"runs": str(tmp_path), "run": "a"}))
    (run.path / "log" / "scene.csv").write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=r"log .*/a/log/scene\.csv"):
        StageLog(run, "scene", 0)


def test_a_log_that_cannot_be_written_is_named_and_its_thread_is_quiet(tmp_path, capsys):
    run = Run(parse_config({"runs": str(tmp_path), "run": "a"}))
    log = StageLog(run, "scene", 0)
    events = next((run.path / "log" / "scene").iterdir())
    while not events.is_dir():  # its thread may write between the two
        events.unlink(missing_ok=True)
        with suppress(FileExistsError):
            events.mkdir()
    with pytest.raises(OSError, match="Is a directory"):
        for step in range(10**5):
            log.scalars(step, {"total": 1.0})
    with pytest.raises(OSError, match="Is a directory"):
        log.close()
    assert "Traceback" not in capsys.readouterr().err


def test_a_small_run_ends_with_weights(config):
    assert main([str(config)]) == 0
    assert (config.parent / "runs" / "small" / "scene" / "weights.safetensors").is_file()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["scene.stesp=3"], "did you mean 'scene.steps'"),
        (["data.root=/nowhere"], "/nowhere"),
        (["device=tpu"], "'device': device 'tpu' cannot be used"),
        (["init=/nowhere"], "checkpoint /nowhere does not exist"),
        (["stages=[object]"], "the stage 'instances' comes first"),
        (["scene.batch=99"], "batch of 99"),
    ],
)
def test_bad_input_is_told_in_one_line(config, capsys, settings, message):
    arguments = [part for setting in settings for part in ("--set", setting)]
    assert main([str(config), *arguments]) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert error[0].startswith("mcd.train: ")
    assert message in "\n".join(error)


def test_weights_of_another_net_are_refused(config, tmp_path, capsys):
    save_weights(tmp_path / "other.safetensors", {"depth": small_net()}, {"depth": "resnet18"}, {})
    assert main([str(config), "--set", f"init={tmp_path / 'other.safetensors'}"]) == 1
    assert "'resnet18', but 'light' is configured" in capsys.readouterr().err


def test_a_nan_in_the_data_names_the_frame(config, streets, capsys, tmp_path):
    camera = next((streets / "triplets").glob("*/*_cam.txt"))
    text = camera.read_text()
    try:
        camera.write_text(text.replace(text.split(",")[0], "nan", 1))
        assert main([str(config), "--set", f"runs={tmp_path / 'nan'}", "--set", "scene.steps=4"]) == 1
    finally:
        camera.write_text(text)
    assert camera.name in capsys.readouterr().err


@pytest.mark.parametrize(
    ("size", "nets", "message"),
    [
        ((63, 96), {}, "'data.size' is 63x96, which nets.depth does not take: .*multiples of 32"),
        ((32, 96), {}, "'data.size' is 32x96, which nets.depth does not take: .*at least 64"),
        ((32, 32), {"depth": "diffnet", "pose": "resnet18"}, None),
    ],
)
def test_a_size_that_a_net_refuses_is_named_before_anything_runs(tmp_path, size, nets, message):
    config = parse_config({"runs": str(tmp_path), "nets": nets, "data": {"size": size}})
    if message is None:
        check_nets(config)
        return
    with pytest.raises(ConfigError, match=message), StopSignal() as stop:
        train_run(config, stop)
    assert not any(tmp_path.iterdir())


def test_a_bad_environment_variable_is_said_though_the_config_beats_it(tmp_path):
    command = [sys.executable, "-m", "mcd.train", "--set", f"runs={tmp_path}"]
    done = subprocess.run(command, env=os.environ | {"MCD_BACKEND": "foo"}, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "mcd.train: MCD_BACKEND: unknown backend 'foo'; known: auto, native, triton, reference"
    )
    assert not any(tmp_path.iterdir())
