"""Ranges: what a profiler sees of a run, and that it costs nothing while none looks."""

import json
import sys
from types import SimpleNamespace

import harness
import pytest
import torch
from compare import assert_same

from mcd import ops
from mcd.ops import OPERATORS
from mcd.ops import ranges as profiling
from mcd.streets.synthetic import generate
from mcd.train import main
from mcd.training.profiling import PHASES, ProfileWindow, StepTimer


@pytest.fixture
def seen(monkeypatch):
    """The ranges that began and ended, in their order: "name" and "/name"."""
    events: list[str] = []

    def sink(name):
        events.append(name)
        return lambda: events.append(f"/{name}")

    monkeypatch.setattr(profiling, "sinks", [sink])
    return events


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize("operator", OPERATORS.values(), ids=list(OPERATORS))
def test_both_passes_of_every_operator_are_ranges(operator, backend, seen):
    if operator.why_not(backend, "cpu"):
        pytest.skip(operator.why_not(backend, "cpu"))
    sample = harness.samples(operator)[0]
    outputs = harness.call(operator, sample, backend)
    name = operator.name
    assert seen == [f"{name}.forward", f"/{name}.forward"]
    seen.clear()
    harness.gradients(sample, outputs)
    assert seen == [f"{name}.backward", f"/{name}.backward"]


def test_ranges_change_no_bit_of_a_result(monkeypatch):
    for operator in OPERATORS.values():
        sample = harness.samples(operator)[0]
        monkeypatch.setattr(profiling, "sinks", [])
        plain = harness.results(operator, sample, "reference")
        monkeypatch.setattr(profiling, "sinks", [lambda name: lambda: None])
        assert_same(harness.results(operator, sample, "reference"), plain, operator.name)


def test_without_a_profiler_operators_run_unwrapped(monkeypatch):
    monkeypatch.setattr(profiling, "sinks", [])
    operator = OPERATORS["backward_warp"]
    assert operator.implementation("reference", torch.zeros(1)) is operator.reference


def test_an_operator_without_gradients_has_no_backward_range(seen):
    with torch.no_grad():
        ops.motion_sparsity(torch.ones(1, 3, 4, 5, requires_grad=True), backend="reference")
    assert seen == ["motion_sparsity.forward", "/motion_sparsity.forward"]


def test_a_range_ends_when_what_it_holds_fails(seen):
    with pytest.raises(ZeroDivisionError), profiling.range_of("forward"):
        raise ZeroDivisionError
    assert seen == ["forward", "/forward"]


def test_phases_of_a_step_are_ranges(seen):
    timer = StepTimer(torch.device("cpu"))
    for phase in PHASES:
        with timer(phase):
            pass
    assert seen == [event for phase in PHASES for event in (phase, f"/{phase}")]


def test_nvtx_sees_ranges_in_the_domain_mcd(monkeypatch):
    calls = []
    fake = SimpleNamespace(
        start_range=lambda name, domain: calls.append((name, domain)) or len(calls), end_range=calls.append
    )
    monkeypatch.setitem(sys.modules, "nvtx", fake)
    end = profiling.nvtx_range("backward_warp.forward")
    end()
    assert calls == [("backward_warp.forward", "mcd"), 1]


def test_the_installed_nvtx_takes_these_calls():
    pytest.importorskip("nvtx")
    profiling.nvtx_range("forward")()


def test_a_window_beyond_the_last_step_is_closed_with_training(tmp_path, monkeypatch):
    monkeypatch.setattr(profiling, "sinks", [])
    window = ProfileWindow((1, 9), tmp_path)
    for _ in range(3):
        window.step()
    assert profiling.sinks
    window.close()
    assert not profiling.sinks
    assert (tmp_path / "profile.json").is_file()


def test_a_window_that_never_opens_says_so(tmp_path, capsys):
    window = ProfileWindow((2, 9), tmp_path)
    for _ in range(2):
        window.step()
    window.close()
    assert capsys.readouterr().out == "profile: none; the window begins with step 2, and 2 steps were trained\n"
    ProfileWindow(None, tmp_path).close()
    assert not capsys.readouterr().out


def test_training_writes_a_trace_of_the_steps_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(profiling, "sinks", [])
    monkeypatch.delenv("NSYS_PROFILING_SESSION_ID", raising=False)
    generate(tmp_path / "data", train=4, val=2, size=(64, 96), seed=0)
    config = tmp_path / "small.yaml"
    config.write_text(
        f"data: {{root: {tmp_path / 'data'}, size: [64, 96], workers: 0}}\n"
        f"runs: {tmp_path / 'runs'}\nthreads: 1\nstages: [scene]\nloss: {{scales: 1}}\n"
        "scene: {steps: 3, batch: 2, validate_batches: 1}\n"
    )
    assert main([str(config), "--profile", "1:2"]) == 0
    trace = json.loads((tmp_path / "runs" / "small" / "profile.json").read_text())
    names = [event.get("name") for event in trace["traceEvents"] if event.get("cat") == "user_annotation"]
    assert names.count("loss") == 1, "one step was asked for"
    for expected in (*PHASES, "view_synthesis_loss.forward", "view_synthesis_loss.backward"):
        assert expected in names


@pytest.mark.parametrize("text", ["5", "7:7", "9:3", "a:b", "-1:4"])
def test_a_window_that_is_none_is_named(text, capsys):
    with pytest.raises(SystemExit):
        main(["--profile", text])
    assert "START:STOP" in capsys.readouterr().err
