"""``python -m mcd.evaluate``: depth against ground truth, of runs and checkpoints."""

import sys

from mcd.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
