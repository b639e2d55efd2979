"""``python -m mcd.training.pretrain``: see :mod:`mcd.training.pretrain.command`."""

import sys

from mcd.training.pretrain.command import main

if __name__ == "__main__":
    sys.exit(main())
