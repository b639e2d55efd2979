"""A process forked from one whose operators ran on several threads, which do not come with it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from mcd.ops import native

WORK = """
import multiprocessing
import sys

import torch
from torch.utils.data import DataLoader, Dataset

from mcd import ops

torch.set_num_threads(2)
image, depth = torch.rand(2, 3, 128, 512), 1 + torch.rand(2, 1, 128, 512)
K, T = torch.eye(3).expand(2, 3, 3), torch.eye(4).expand(2, 4, 4)


def warped():
    return ops.backward_warp(image, depth, K, T, backend="native")[1, 2, 64, 300].item()


class Warps(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return warped()


expected = warped()
fork = multiprocessing.get_context("fork")
if sys.argv[1] == "process":
    results = fork.SimpleQueue()
    child = fork.Process(target=lambda: results.put(warped()))
    child.start()
    child.join(60)
    if child.is_alive():
        child.kill()
        sys.exit("the forked process waits for ever")
    assert results.get() == expected
else:
    loader = DataLoader(Warps(), batch_size=2, num_workers=2, multiprocessing_context="fork", timeout=60)
    assert [batch.tolist() for batch in loader] == [[expected, expected]] * 2
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.skipif(native.why_not("cpu") is not None, reason="there is no compiled module")
@pytest.mark.parametrize("kind", ["process", "loader"])
def test_a_forked_process_computes_after_its_parent_did_on_two_threads(kind: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", WORK, kind]
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert found.returncode == 0, found.stderr
