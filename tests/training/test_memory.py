"""Memory that a process keeps is not cleared page by page again."""

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from mcd.training.memory import keep_freed_memory
if sys.argv[1] == "kept" and not keep_freed_memory():
    sys.exit(77)
def step():
    one = torch.ones(16 << 20)
    two = one + 1
    return float((one * two)[0])
for _ in range(8):  # until pieces fit
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True)
    if done.returncode == 77:
        pytest.skip("this C library has no mallopt")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_large_tensors_reuse_memory_that_was_freed():
    # Of twelve tensors of 64 MiB, 16,384 pages each; fewer where the kernel hands out huge ones.
    assert 10 * faults("kept") < faults("default")
