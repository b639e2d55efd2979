"""The instruction sets that csrc/ is compiled for give the same numbers, and threads share the work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from compare import assert_close_in_float64
from harness import mapped, results, samples

from mcd.ops import native
from mcd.ops.registry import OPERATORS, Operator

pytestmark = pytest.mark.skipif(native.why_not("cpu") is not None, reason="the compiled module is missing")


@pytest.mark.parametrize("target", native.cpu_targets())
@pytest.mark.parametrize("operator", [pytest.param(operator, id=name) for name, operator in OPERATORS.items()])
def test_every_instruction_set_agrees_with_the_reference(
    operator: Operator, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "_cpu", getattr(native._C, target))
    for exact in samples(operator):
        truth = results(operator, exact, "reference")
        assert_close_in_float64(results(operator, exact, "native"), truth, f"{target}, {exact.label}")
        single = mapped(exact, lambda leaf: leaf.float() if leaf.is_floating_point() else leaf)
        double = mapped(single, lambda leaf: leaf.double() if leaf.is_floating_point() else leaf)
        truth = results(operator, double, "reference")
        # test_operators.py asks the target that is used how exact it is. One without fused multiply-add rounds more
        # often, which the dozen numbers of a camera's gradient, differences of large sums, show.
        assert_close_in_float64(results(operator, single, "native"), truth, f"{target}, {exact.label}", 1e-4)


# Runs in a process of its own: there threads that have nothing to do sleep, so that their CPU time tells who worked.
WORK = """
import json, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
from cases import CASES, Case
from harness import RegisteredCalls, results
from mcd.ops.registry import OPERATORS

def seconds():
    tasks = Path("/proc/self/task").iterdir()
    return {task.name: int((task / "schedstat").read_text().split()[0]) / 1e9 for task in tasks}

torch.set_num_threads(2)
shares = {}
for name, make in CASES.items():
    numbers = {"dtype": torch.float32, "image_dtype": torch.float32}
    case = Case(torch.Generator().manual_seed(0), batch=4, height=192, width=256, motion=2, scales=3, **numbers)
    with RegisteredCalls() as recorded:
        results(OPERATORS[name], make(case), "native")
    for function, args in recorded.calls:
        before, begin = seconds(), time.process_time()
        while time.process_time() - begin < 0.1:
            function(*args)
        spent = sorted(total - before.get(task, 0) for task, total in seconds().items())
        shares[str(function)] = spent[-2] / sum(spent)
print(json.dumps(shares))
"""


@pytest.mark.skipif(not Path("/proc/self/schedstat").is_file(), reason="this system does not tell threads' CPU time")
def test_two_threads_share_the_work() -> None:
    environment = os.environ | {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0", "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", WORK, str(Path(__file__).parents[1])]
    found = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    shares = json.loads(found.stdout.splitlines()[-1])
    assert len(shares) >= len(OPERATORS)
    # Half would be the ideal; the first thread has Python and what torch does around the call, too.
    idle = {name: round(share, 3) for name, share in shares.items() if share < 0.1}
    assert not idle, "the second thread hardly worked"
