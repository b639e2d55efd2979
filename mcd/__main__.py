"""``python -m mcd``: the command ``mcd``."""

import sys

from mcd.cli import main

sys.exit(main())
