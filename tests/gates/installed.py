"""What an installed mcd must do where there is torch alone: ``PYTHON installed.py [SNIPPETS…]``, from any folder.

Every operator runs natively on the CPU, forward and backward, and agrees with its reference; no package of an extra
is imported; ``import mcd`` costs little above ``import torch``; the Python snippets of the given Markdown files run.
Prints what it found, one line each. It is run by the interpreter that is looked at, so it imports nothing of the tests.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

MOST_SECONDS = 0.15
"""Of ``import mcd`` above ``import torch``, in the processor's time: what else runs there does not count."""
TIMED = """
import time, torch
begin = time.process_time()
import mcd
print(time.process_time() - begin)
"""
EXTRAS = {
    "PIL",
    "av",
    "jinja2",
    "matplotlib",
    "nvtx",
    "onnx",
    "pydantic",
    "rich",
    "safetensors",
    "scipy",
    "tensorboard",
}
EXTRAS |= {"timm", "torchvision", "tqdm", "yaml"}


def operators() -> list[str]:
    """Names of the operators, each run natively and by its reference on its own samples, in float64."""
    import torch
    from torch.utils._pytree import tree_leaves

    from mcd import ops
    from mcd.ops.registry import OPERATORS

    for name, operator in OPERATORS.items():
        for sample in operator.sample_inputs(torch.device("cpu"), torch.float64, torch.Generator().manual_seed(3)):
            found = {}
            leaves = [leaf for leaf in tree_leaves((sample.args, sample.kwargs)) if isinstance(leaf, torch.Tensor)]
            inputs = [leaf.requires_grad_() for leaf in leaves if leaf.is_floating_point()]
            for backend in ("native", "reference"):
                results = tree_leaves(getattr(ops, name)(*sample.args, **sample.kwargs, backend=backend))
                results = [result for result in results if isinstance(result, torch.Tensor)]
                smooth = [result.sum() for result in results if result.requires_grad]
                slopes = torch.autograd.grad(sum(smooth), inputs, allow_unused=True) if smooth else ()
                found[backend] = [*results, *(slope for slope in slopes if slope is not None)]
            for one, other in zip(found["native"], found["reference"], strict=True):
                torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9, equal_nan=True)
    return list(OPERATORS)


def import_seconds(runs: int = 7) -> float:
    """Median time of ``import mcd`` in a process that has torch."""
    command = [sys.executable, *(["-S"] if sys.flags.no_site else []), "-c", TIMED]
    return statistics.median(
        float(subprocess.run(command, check=True, capture_output=True, text=True).stdout) for _ in range(runs)
    )


def snippets(path: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)


def main() -> int:
    import torch

    import mcd

    names = operators()
    imported = sorted(EXTRAS & set(sys.modules))
    if imported:
        print(f"imported without need: {', '.join(imported)}")
    texts = [(path, text) for path in map(Path, sys.argv[1:]) for text in snippets(path)]
    for path, text in texts:
        exec(compile(text, str(path), "exec"), {"__name__": "snippet"})
    seconds = import_seconds()
    if seconds > MOST_SECONDS:
        print(f"import mcd takes {seconds:.3f} s above import torch, the limit is {MOST_SECONDS} s")
    facts = {"mcd": mcd.__file__, "version": mcd.__version__, "python": sys.version.split()[0]}
    facts |= {"torch": torch.__version__, "operators": len(names), "snippets": len(texts)}
    print(json.dumps(facts | {"import_seconds": round(seconds, 3), "cuda": mcd.available_backends("cuda")["native"]}))
    return bool(imported) or seconds > MOST_SECONDS


if __name__ == "__main__":
    sys.exit(main())
