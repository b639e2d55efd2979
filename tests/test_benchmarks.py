"""Benchmarks: every one runs, what they time is right, and the README shows what was measured."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mcd.ops import OPERATORS

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # benchmarks/ is not installed

from benchmarks import inputs, report  # noqa: E402
from benchmarks.bars import CPU, verdicts  # noqa: E402
from benchmarks.contest import Contest, assert_agrees  # noqa: E402
from benchmarks.peers import PEERS, Peer  # noqa: E402

TINY = (2, 16, 40)
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


def test_a_bar_is_met_or_missed_by_the_ratio_within_rounds():
    assert [verdict.met for verdict in verdicts(a_row(reference=12.0))] == [True, True]
    assert [verdict.met for verdict in verdicts(a_row(reference=9.9))] == [False, True]


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


def test_the_readme_shows_each_machine_once():
    readme = "before\n<!-- benchmarks begin -->\nold\n<!-- benchmarks end -->\nafter"
    once = report.into_readme(readme, [some_results(a_row())])
    assert report.into_readme(once, [some_results(a_row())]) == once
    assert once.startswith("before") and once.endswith("after") and "old" not in once
    assert "On a GPU: not measured." in once
    with pytest.raises(ValueError, match="no lines"):
        report.into_readme("# x", [some_results(a_row())])


def test_files_that_hold_no_benchmark_are_named_in_one_line(tmp_path, capsys):
    (tmp_path / "empty.json").write_text('{"machine": {}, "rows": []}')
    assert report.main([str(tmp_path / "empty.json")]) == 1
    assert "no benchmark" in capsys.readouterr().err


def test_the_readme_shows_the_committed_results():
    section = report.section(report.committed(ROOT))
    assert section in (ROOT / "README.md").read_text(), "python -m benchmarks.report writes it"


def test_every_benchmark_runs_and_reports(tmp_path):
    measured = tmp_path / "measured.json"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "pytest", "benchmarks", "--quick", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, f"--benchmark-json={measured}"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (tmp_path / "README.md").write_text(report.section([]))
    assert report.main([str(measured), "--root", str(tmp_path)]) == 0
    written = list((tmp_path / "benchmarks" / "results").glob("*.json"))
    assert len(written) == 1
    results = json.loads(written[0].read_text())
    assert {row["kind"] for row in results["rows"]} == {"operator", "training step", "data"}
    assert {row["operator"] for row in results["rows"] if row["kind"] == "operator"} == set(OPERATORS)
    readme = (tmp_path / "README.md").read_text()
    assert report.section([results]) == readme
    assert "training step, 2×64×96" in readme
    assert list((tmp_path / "docs").glob("speed-*.png"))
