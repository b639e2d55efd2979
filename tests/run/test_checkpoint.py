"""Weights, states and files that survive a kill."""

import os
import re
import resource

import pytest
import torch
from safetensors.torch import save
from torch import nn

from mcd.files import atomic_path, remove_partial, write_text
from mcd.run.checkpoint import CheckpointError, find_weights, load_state, load_weights, save_state, save_weights


def small_net(width: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, width, 1), nn.BatchNorm2d(width))


def test_weights_come_back_bit_for_bit(tmp_path):
    net, other = small_net(), small_net()
    nn.init.zeros_(other[0].weight)
    save_weights(tmp_path / "w.safetensors", {"depth": net}, {"depth": "small"}, {"size": (64, 192), "stage": "scene"})
    weights = load_weights(tmp_path / "w.safetensors")
    assert weights.nets == {"depth": "small"}
    assert weights.size == (64, 192)
    weights.load_into("depth", other, "small")
    for key, value in net.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


def test_another_net_is_refused_by_name(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, {"depth": small_net()}, {"depth": "small"}, {})
    weights = load_weights(path)
    with pytest.raises(CheckpointError, match="'small', but 'large' is configured"):
        weights.load_into("depth", small_net(), "large")
    with pytest.raises(CheckpointError, match=r"0\.weight is \[3, 3, 1, 1\], should be \[4, 3, 1, 1\]"):
        weights.load_into("depth", small_net(4), "small")
    with pytest.raises(CheckpointError, match=r"missing 2\.weight"):
        weights.load_into("depth", nn.Sequential(*small_net(), nn.Conv2d(3, 1, 1)), "small")
    with pytest.raises(CheckpointError, match="holds no pose net"):
        weights.load_into("pose", small_net(), "small")


@pytest.mark.parametrize("damage", ["missing", "truncated", "foreign"])
def test_a_broken_weights_file_is_named(tmp_path, damage):
    path = tmp_path / "w.safetensors"
    save_weights(path, {"depth": small_net()}, {"depth": "small"}, {})
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-5])
    else:
        path.write_bytes(b"not a safetensors file at all")
    with pytest.raises(CheckpointError, match=str(path)):
        load_weights(path)


def test_a_run_a_stage_and_a_file_name_the_same_weights(tmp_path):
    run = tmp_path / "run"
    for stage in ("scene", "final"):
        save_weights(run / stage / "weights.safetensors", {"depth": small_net()}, {"depth": "small"}, {})
    file = run / "scene" / "weights.safetensors"
    assert find_weights(file) == find_weights(run / "scene") == find_weights(run, "scene") == file
    assert find_weights(run) == run / "final" / "weights.safetensors"
    with pytest.raises(CheckpointError, match="looked for"):
        find_weights(run, "object")
    with pytest.raises(CheckpointError, match="does not exist"):
        find_weights(tmp_path / "nowhere")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with pytest.raises(AttributeError), atomic_path(path) as temporary:
        temporary.write_text("new").fails_here  # noqa: B018
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.txt"]


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("w.safetensors", lambda path: save_weights(path, {"depth": small_net()}, {"depth": "small"}, {})),
        # torch's zip writer has an error of its own for this.
        ("state.pt", lambda path: save_state(path, {"nets": small_net().state_dict(), "more": torch.zeros(9999)})),
        ("metrics.json", lambda path: write_text(path, "1" * 999)),
    ],
)
def test_a_full_disk_leaves_the_old_file_and_is_named(tmp_path, name, write):
    # A file-size limit fails a write in the middle, as a full disk does.
    path = tmp_path / name
    write(path)
    before = path.read_bytes()
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            write(path)
        except OSError as error:
            os._exit(7 if str(error).endswith(f"File too large: '{path}'") else 8)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_what_a_killed_process_left_half_written_is_taken_away(tmp_path):
    (tmp_path / "last").mkdir()
    for name in ("state.pt", ".state.pt.x1y2z3.pt"):
        (tmp_path / "last" / name).write_text("")
    remove_partial(tmp_path)
    assert [entry.name for entry in (tmp_path / "last").iterdir()] == ["state.pt"]
    remove_partial(tmp_path / "nowhere")


def test_a_state_comes_back_and_a_broken_one_is_named(tmp_path):
    path = tmp_path / "last" / "state.pt"
    assert load_state(path) is None
    save_state(path, {"step": 3, "nets": {"depth": small_net().state_dict()}})
    assert load_state(path)["step"] == 3
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"state\.pt cannot be read"):
        load_state(path)


class Touching:
    """An object whose unpickling writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (type(self.path).touch, (self.path,))


def test_a_state_that_would_run_code_is_refused_before_it_does(tmp_path):
    torch.save({"step": 1, "nets": Touching(tmp_path / "ran")}, tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match=r"state\.pt cannot be read"):
        load_state(tmp_path / "state.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ("[1]", "metadata 'mcd' say nothing usable of its nets: Input should be an object"),
        ("{", "say nothing usable of its nets: Invalid JSON"),
        ('{"nets": ["depth"]}', "of its nets, nets: Input should be an object"),
        ('{"nets": {"depth": 3}}', "of its nets, nets.depth: Input should be a valid string"),
        ('{"nets": {}, "size": [64]}', "of its nets, size.1: "),
        ('{"nets": {}, "size": "64x96"}', "of its nets, size: "),
        ('{"nets": {}, "size": [0, 96]}', "of its nets, size.0: "),
        ('{"nets": {}, "camera": [1, 2]}', "of its nets, camera.2: "),
    ],
)
def test_metadata_that_describe_no_nets_are_refused(tmp_path, described, message):
    path = tmp_path / "w.safetensors"
    path.write_bytes(save({"depth.weight": torch.zeros(2)}, {"mcd": described}))
    with pytest.raises(CheckpointError, match=re.escape(message)) as refused:
        load_weights(path)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e39])
def test_weights_that_are_not_finite_are_refused_by_net(tmp_path, number):
    net = small_net().double()
    with torch.no_grad():
        net[0].weight[1, 2] = number
    save_weights(tmp_path / "w.safetensors", {"depth": net}, {"depth": "small"}, {})
    weights = load_weights(tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=r"w\.safetensors: of the depth net 'small' 0\.weight is not finite"):
        weights.load_into("depth", small_net(), "small")


@pytest.mark.parametrize("content", [b"", b"junk", b"[]"])
def test_a_state_of_another_kind_is_named(tmp_path, content):
    (tmp_path / "state.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"state\.pt cannot be read .*delete it"):
        load_state(tmp_path / "state.pt")
    torch.save([1, 2], tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match=r"state\.pt cannot be read \(it holds list\); delete it"):
        load_state(tmp_path / "state.pt")
