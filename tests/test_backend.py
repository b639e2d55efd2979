"""Which backend serves: precedence, nesting, errors; inside and around compiled code."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import mcd
from mcd.backend import table
from mcd.config import load_config
from mcd.ops import backend as backends
from mcd.ops.registry import OPERATORS, Operator
from mcd.train import parse_arguments, set_up

CONFIG = Path(__file__).parents[1] / "configs" / "synthetic.yaml"


def as_reference(x: Tensor) -> Tensor:
    return x + 1


def as_native(x: Tensor) -> Tensor:
    return x + 2


def operator(name: str = "toy", native: Callable | None = as_native) -> Operator:
    return Operator(name, reference=as_reference, native=native, sample_inputs=lambda *_: [])


def served(op: Operator, backend: str | None = None) -> str:
    return op.backend(backend, "cpu")


@pytest.fixture(autouse=True)
def _nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy operator's native function needs no compiled module, and no choice outlives a test."""
    from mcd.ops import native

    monkeypatch.setattr(native, "why_not", lambda device_type: None)
    monkeypatch.setattr(backends, "_environment", "")
    monkeypatch.setattr(backends, "_process", {})


def test_auto_takes_native_before_reference() -> None:
    assert served(operator()) == "native"
    assert served(operator(native=None)) == "reference"


def test_an_argument_beats_a_context_beats_the_process_beats_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_environment", "reference")
    assert served(operator()) == "reference"
    mcd.set_backend("native")
    assert served(operator()) == "native"
    with mcd.use_backend("reference"):
        assert served(operator()) == "reference"
        assert served(operator(), "native") == "native"


def test_auto_as_a_choice_hides_the_choices_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_environment", "reference")
    with mcd.use_backend("auto"):
        assert served(operator()) == "native"
    assert served(operator(), "auto") == "native"


def test_contexts_nest_and_restore_after_exceptions() -> None:
    with mcd.use_backend("reference"):
        with pytest.raises(KeyError), mcd.use_backend("native"):
            assert served(operator()) == "native"
            raise KeyError
        assert served(operator()) == "reference"
    assert served(operator()) == "native"


def test_one_context_object_can_be_entered_twice() -> None:
    reference = mcd.use_backend("reference")
    with reference, reference:
        assert served(operator()) == "reference"
    assert served(operator()) == "native"


def test_a_map_chooses_for_single_operators_and_leaves_the_others_as_they_are() -> None:
    with mcd.use_backend("reference"), mcd.use_backend({"toy": "native"}):
        assert served(operator("toy")) == "native"
        assert served(operator("other")) == "reference"


def test_a_name_for_all_holds_for_the_operators_that_have_it() -> None:
    with mcd.use_backend("native"):
        assert served(operator(native=None)) == "reference"


@pytest.mark.parametrize("ask", ["argument", "map"])
def test_what_is_named_for_one_operator_must_be_served(ask: str) -> None:
    with (
        pytest.raises(mcd.BackendUnavailable, match=r"toy: .*native.* available: reference"),
        mcd.use_backend({"toy": "native"} if ask == "map" else "auto"),
    ):
        served(operator(native=None), "native" if ask == "argument" else None)


def test_the_error_is_a_runtime_error() -> None:
    assert issubclass(mcd.BackendUnavailable, RuntimeError)


def test_unknown_names_are_refused_at_once() -> None:
    for choose in (mcd.use_backend, mcd.set_backend):
        with pytest.raises(mcd.BackendUnavailable, match="'cuda'.*known: auto, native, triton, reference"):
            choose("cuda")
        with pytest.raises(TypeError, match="int"):
            choose(3)
    with pytest.raises(mcd.BackendUnavailable, match="'fast'"):
        served(operator(), "fast")


def test_an_unknown_name_in_the_environment_raises_at_the_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_environment", "fast")
    with pytest.raises(mcd.BackendUnavailable, match="MCD_BACKEND.*'fast'"):
        served(operator())


def test_the_environment_is_read() -> None:
    code = "from mcd.ops.backend import chosen; print(chosen('x'))"
    environment = {"MCD_BACKEND": "reference", "PATH": ""}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "('reference', False)"


def test_a_context_is_of_its_thread_and_the_process_choice_of_all() -> None:
    seen = []
    with mcd.use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(served(operator())))
        thread.start()
        thread.join()
    mcd.set_backend("reference")
    thread = threading.Thread(target=lambda: seen.append(served(operator())))
    thread.start()
    thread.join()
    assert seen == ["native", "reference"]


def test_availability_names_every_backend_and_why_not() -> None:
    state = mcd.available_backends("cpu")
    assert set(state) == {"native", "triton", "reference"}
    assert state["reference"] is None
    if not torch.cuda.is_available():
        assert mcd.available_backends("cuda")["reference"] == "torch sees no CUDA device"


def test_the_table_has_every_operator_and_says_why_a_backend_cannot_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    lines = table("cpu")
    assert [line.split()[0] for line in lines if "reference" in line] == list(OPERATORS)
    assert any(line.strip().startswith("no triton: ") for line in lines)
    if not torch.cuda.is_available():
        assert table("cuda")[-1] == "  no reference: torch sees no CUDA device"


def test_the_command_line_and_the_config_choose() -> None:
    config = load_config(CONFIG, parse_arguments(["--backend", "reference"]).set)
    set_up(config)
    assert served(operator()) == "reference"
    set_up(load_config(CONFIG, ["backend={backward_warp: reference}"]))
    assert [served(operator(name)) for name in ("backward_warp", "other")] == ["reference", "native"]


def test_triton_runs_on_cpu_in_its_interpreter_only(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "TRITON_INTERPRET=1" in (mcd.available_backends("cpu")["triton"] or "")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert mcd.available_backends("cpu")["triton"] is None


def test_auto_passes_over_a_gpu_that_is_older_than_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for capability, serves in (((7, 5), "reference"), ((8, 0), "native")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, capability=capability: capability)
        assert operator().backend(None, "cuda") == serves
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "compute capability 7.5, and there is no kernel image" in (mcd.available_backends("cuda")["native"] or "")
    with pytest.raises(mcd.BackendUnavailable, match=r"toy: .*capability 7\.5.*available: reference"):
        operator().backend("native", "cuda:0")


def test_the_summary_lists_each_operator_once() -> None:
    summary = mcd.ops.backend_summary("cpu")
    assert [summary.count(f" {name}") for name in OPERATORS] == [
        sum(name in other for other in OPERATORS) for name in OPERATORS
    ]


@pytest.mark.compiles
def test_choices_around_compiled_code_compile_it_again() -> None:
    op = operator()

    @torch.compile(fullgraph=True, backend="eager")
    def compiled(x: Tensor) -> Tensor:
        return op.implementation(None, x)(x)

    x = torch.zeros(())
    assert compiled(x) == 2
    with mcd.use_backend("reference"):
        assert compiled(x) == 1
    assert compiled(x) == 2
    mcd.set_backend("reference")
    assert compiled(x) == 1


@pytest.mark.compiles
def test_choices_inside_compiled_code_hold_there() -> None:
    op = operator()

    @torch.compile(fullgraph=True, backend="eager")
    def compiled(x: Tensor) -> tuple[Tensor, Tensor]:
        with mcd.use_backend("reference"):
            inside = op.implementation(None, x)(x)
        return inside, op.implementation(None, x)(x)

    assert compiled(torch.zeros(())) == (1, 2)
    assert served(op) == "native"
