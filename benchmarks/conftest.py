"""What all benchmarks share: options, sizes, and where their figures go.

pytest-benchmark times rounds, of all contestants together, which is of no interest. The times of each are in its JSON's
`extra_info`, and in the table that is printed at the end.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from benchmarks import machine, report
from benchmarks.bars import COMPILED, CPU
from benchmarks.clocks import copy_bandwidth
from benchmarks.inputs import Size


@dataclass(frozen=True)
class Settings:
    device: torch.device
    quick: bool
    full: bool
    backends_only: bool
    seconds: float
    sizes: tuple[Size, ...]

    def compiled(self, operator: str, size: Size) -> bool:
        """Whether torch.compile takes part: compiling takes most of the time there is, so only where a bar asks."""
        asked = size == self.sizes[0] and COMPILED in CPU.get(operator, {})
        return not (self.quick or self.backends_only) and (self.full or asked)

    def rounds(self, round_seconds: float) -> int:
        """Enough for a median that stays where it is, and as many more as there is time for."""
        return 2 if self.quick else min(max(3, int(self.seconds / round_seconds)), 25)


QUICK: tuple[Size, ...] = ((2, 16, 40),)
USUAL: tuple[Size, ...] = ((12, 192, 512), (2, 192, 640), (2, 320, 1024))
FULL: tuple[Size, ...] = ((12, 192, 512), (12, 192, 640), (12, 320, 1024))


def settings_of(config: pytest.Config) -> Settings:
    quick, full = config.getoption("--quick"), config.getoption("--full")
    sizes = QUICK if quick else FULL if full else USUAL
    seconds = config.getoption("--seconds") or (60 if full else 3)
    device = torch.device(config.getoption("--device"))
    return Settings(device, quick, full, config.getoption("--backends-only"), seconds, sizes)


def size_id(size: Size) -> str:
    return "x".join(map(str, size))


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("mcd benchmarks")
    group.addoption("--quick", action="store_true", help="tiny sizes, two rounds: only shows that everything runs")
    group.addoption("--full", action="store_true", help="every size with batch 12 and torch.compile, more rounds")
    group.addoption("--device", default="cpu", help="cpu (default) or cuda")
    group.addoption("--backends-only", action="store_true", help="neither peers nor torch.compile")
    group.addoption("--seconds", type=float, help="of each benchmark, in which there are 3 to 25 rounds (default 3)")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "size" in metafunc.fixturenames:
        sizes = settings_of(metafunc.config).sizes
        metafunc.parametrize("size", sizes, ids=[size_id(size) for size in sizes])


_measured: list[dict[str, Any]] = []


def record(benchmark: Any, **row: Any) -> None:
    """Keep a row of the results."""
    benchmark.extra_info.update(row)
    _measured.append({"extra_info": row})


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.option.benchmark_quiet = True


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if _measured:
        results = report.reduce([{"mcd": machine.describe(), "benchmarks": _measured}])
        terminalreporter.write_line(f"\n{report.table(results)}\n")


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: Any, output_json: dict[str, Any]) -> None:
    output_json["mcd"] = machine.describe()


def run_rounds(benchmark: Any, settings: Settings, contest: Any) -> None:
    """Let `contest` have its rounds, after a first one that counts for nothing but for how long it takes."""
    begin = time.perf_counter()
    contest.round()
    seconds = time.perf_counter() - begin
    contest.forget()
    benchmark.pedantic(contest.round, rounds=settings.rounds(seconds))


@pytest.fixture(scope="session")
def settings(request: pytest.FixtureRequest) -> Settings:
    return settings_of(request.config)


@pytest.fixture(scope="session")
def copy(settings: Settings) -> float:
    """The bandwidth of a copy on this machine, in bytes a second."""
    return copy_bandwidth(settings.device, settings.quick)
