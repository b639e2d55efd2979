"""Benchmarks: every one runs, what they time is right, and docs/benchmarks.md shows what was measured."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from mcd.ops import OPERATORS

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))  # benchmarks/ is not installed

from benchmarks import inputs, report  # noqa: E402
from benchmarks.bars import CPU, verdicts  # noqa: E402
from benchmarks.contest import Contest, assert_agrees  # noqa: E402
from benchmarks.peers import PEERS, Peer  # noqa: E402
from benchmarks.training_step import PHASES, TrainingStep, as_node  # noqa: E402

TINY = (2, 16, 40)
TINY_STEP = (1, 64, 96)
CPU_DEVICE = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_allocator(monkeypatch):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)


@pytest.mark.parametrize("operator", OPERATORS)
def test_backends_and_peers_agree_with_the_reference_in_float64(operator):
    contest = Contest(operator, TINY, CPU_DEVICE, compiled=False, quick=True)
    contest.check()
    assert {"reference", "native"} <= set(contest.contestants)
    needed = {name for name, peer in PEERS.get(operator, {}).items() if peer.package is None}
    assert needed <= set(contest.contestants), contest.absent


def test_a_peer_that_computes_something_else_is_not_timed(monkeypatch):
    right = PEERS["smoothness_loss"]["composition"].run
    wrong = Peer(lambda disparities, images: 1.1 * right(disparities, images))
    monkeypatch.setitem(PEERS["smoothness_loss"], "composition", wrong)
    contest = Contest("smoothness_loss", TINY, CPU_DEVICE, compiled=False, quick=True)
    with pytest.raises(AssertionError, match="smoothness_loss, composition"):
        contest.check()


def test_a_few_flipped_pixels_pass_and_many_do_not():
    truth = torch.rand(10_000)
    flipped = truth.clone()
    flipped[:50] += 1
    assert_agrees("x", [flipped], [truth])
    flipped[:200] += 1
    with pytest.raises(AssertionError, match="2.0%"):
        assert_agrees("x", [flipped], [truth])


def test_contestants_take_their_turn_in_every_round():
    contest = Contest("smoothness_loss", TINY, CPU_DEVICE, compiled=False, quick=True)
    contest.check()
    for _ in range(3):
        contest.round()
    for contestant in contest.contestants.values():
        assert all(len(seconds) == 3 for seconds in contestant.times.values())
        assert set(contestant.times) == {"forward_cold", "both_cold", "forward_warm", "both_warm"}
    row = contest.summary(1e9)
    assert row["contestants"]["native"]["times_native"]["both_warm"] == 1
    assert row["contestants"]["reference"]["peak_bytes"] > row["contestants"]["native"]["peak_bytes"] > 0


def test_every_operator_with_a_bar_has_its_peers():
    for operator, bars in CPU.items():
        assert set(bars) <= {"reference", "compiled reference", *PEERS.get(operator, {})}
    assert set(inputs.MAKE) == set(OPERATORS)


def a_row(operator: str = "align_scale", tunables: str = "x=1", reference: float = 12.0, **changes) -> dict:
    spans = ("forward_cold", "both_cold", "forward_warm", "both_warm")

    def entry(seconds: float, ratio: float, saved: int) -> dict:
        return {
            "seconds": dict.fromkeys(spans, seconds),
            "times_native": dict.fromkeys(spans, ratio),
            "share_of_copy": dict.fromkeys(spans, 0.5),
            "saved_bytes": saved,
            "peak_bytes": 1000,
        }

    contestants = {
        "native": entry(0.0012345, 1.0, 10),
        "reference": entry(0.0012345 * reference, reference, 1000),
        "mask loop": entry(0.5, 400.0, 2000),
    }
    row = {
        "kind": "operator",
        "operator": operator,
        "size": [12, 192, 512],
        "device": "cpu",
        "bytes": {"forward": 10**7, "both": 2 * 10**7},
        "copy_bytes_per_s": 1.6e10,
        "glibc_tunables": tunables,
        "contestants": contestants,
    }
    return row | changes


def some_results(*rows: dict) -> dict:
    machine = {
        "processor": "A Processor",
        "cores": 2,
        "threads": 2,
        "gpu": None,
        "versions": {"torch": "2.11.0"},
        "commit": "abc",
    }
    return {"machine": machine, "rows": list(rows)}


def outcomes(row: dict) -> list[str]:
    return [verdict.outcome for verdict in verdicts(row)]


def test_a_bar_is_met_or_missed_by_the_ratio_within_rounds():
    assert outcomes(a_row(reference=12.0)) == ["met", "met"]
    assert outcomes(a_row(reference=8.0)) == ["missed", "met"]


def test_what_another_run_might_judge_otherwise_is_at_the_bar():
    assert {outcomes(a_row(reference=ratio))[0] for ratio in (9.1, 9.9, 10.0, 10.9)} == {"at the bar"}


def test_bytes_are_judged_exactly():
    row = a_row()
    for kept, outcome in ((50, "met"), (51, "missed"), (0, "met")):
        row["contestants"]["native"]["saved_bytes"] = kept
        assert outcomes(row)[1] == outcome


def test_other_sizes_than_that_of_the_bars_are_not_judged():
    assert verdicts(a_row(size=[2, 16, 40])) == []


@pytest.mark.parametrize(("native", "outcome"), [(0.05, "met"), (0.101, "at the bar"), (0.2, "missed")])
def test_a_training_step_is_judged_by_its_time_outside_the_networks(native, outcome):
    def entry(outside: float) -> dict:
        ratios = {"total": 2.0, "outside networks": outside / native}
        return {"seconds": {"total": 3 + outside, "outside networks": outside}, "times_native": ratios, "peak_bytes": 1}

    row = {"kind": "training step", "phase": "all", "size": [12, 192, 512], "device": "cpu"}
    row["contestants"] = {"reference": entry(1.0), "native": entry(native)}
    assert outcomes(row) == [outcome]
    shown = report.table(some_results(row))
    assert f"| training step, all | outside the networks {100 * native:.1f} %" in shown


def test_bars_are_judged_under_the_tuned_allocator():
    shown = report.table(some_results(a_row(reference=12.0), a_row(tunables="", reference=99.0)))
    assert "12.0 × reference, bar 10 | met" in shown
    assert "| 12 | 400 (mask loop) | 99 |" in shown
    assert "GLIBC_TUNABLES=x=1" in shown


def test_measurements_of_different_commits_are_not_mixed():
    other = some_results(a_row())
    other["machine"] = other["machine"] | {"commit": "def"}
    with pytest.raises(ValueError, match="commits"):
        report.reduce([some_results(a_row()), other])


def test_the_page_shows_each_machine_once():
    page = "before\n<!-- benchmarks begin -->\nold\n<!-- benchmarks end -->\nafter"
    once = report.into_page(page, [some_results(a_row())])
    assert report.into_page(once, [some_results(a_row())]) == once
    assert once.startswith("before") and once.endswith("after") and "old" not in once
    assert "On a GPU: not measured." in once
    with pytest.raises(ValueError, match="no lines"):
        report.into_page("# x", [some_results(a_row())])


@pytest.mark.parametrize("phase", PHASES)
def test_networks_as_nodes_change_no_gradient(phase, tmp_path):
    step = TrainingStep(phase, TINY_STEP, CPU_DEVICE, tmp_path, compiled=False)
    parameters = [parameter for group in step.optimizer.param_groups for parameter in group["params"]]

    def gradients(nets: dict) -> list[torch.Tensor]:
        step.optimizer.zero_grad(set_to_none=True)
        step._gradients(nets, step.stage.loss)
        return [parameter.grad for parameter in parameters]

    plain, timed = gradients(step._nets), gradients(step._timed_nets)
    assert any(gradient is not None and gradient.any() for gradient in plain)
    for expected, actual in zip(plain, timed, strict=True):
        assert (expected is None) == (actual is None)
        assert expected is None or torch.equal(expected, actual)


def test_what_a_network_does_in_both_passes_is_its_own_time():
    class Clock:
        def __init__(self):
            self.seen = []

        def __call__(self, phase):
            self.seen.append(phase)
            return nullcontext()

    clock = Clock()
    x = torch.ones(3, requires_grad=True)
    (as_node(torch.nn.Linear(3, 2), clock)(x * 2) * 3).sum().backward()
    assert clock.seen == ["networks", "networks"]
    assert x.grad is not None


def test_files_that_hold_no_benchmark_are_named_in_one_line(tmp_path, capsys):
    (tmp_path / "empty.json").write_text('{"machine": {}, "rows": []}')
    assert report.main([str(tmp_path / "empty.json")]) == 1
    assert "no benchmark" in capsys.readouterr().err


def test_the_page_shows_the_committed_results():
    section = report.section(report.committed(ROOT))
    assert section in (ROOT / "docs" / "benchmarks.md").read_text(), "python -m benchmarks.report writes it"


def test_every_benchmark_runs_and_reports(tmp_path):
    measured = tmp_path / "measured.json"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "pytest", "benchmarks", "--quick", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, f"--benchmark-json={measured}"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    page = tmp_path / "docs" / "benchmarks.md"
    page.parent.mkdir()
    page.write_text(report.section([]))
    assert report.main([str(measured), "--root", str(tmp_path)]) == 0
    written = list((tmp_path / "benchmarks" / "results").glob("*.json"))
    assert len(written) == 1
    results = json.loads(written[0].read_text())
    assert {row["kind"] for row in results["rows"]} == {"operator", "training step", "data"}
    assert {row["operator"] for row in results["rows"] if row["kind"] == "operator"} == set(OPERATORS)
    assert report.section([results]) == page.read_text()
    assert all(f"| {phase} | 2×64×96 | native |" in page.read_text() for phase in PHASES)
    assert report.table(results).split("\n\n", 1)[1] in done.stdout
    assert list((tmp_path / "docs").glob("speed-*.png"))
