"""``python -m mcd.report``: draw a run's report again."""

import sys

from mcd.cli import main

sys.exit(main(["report", *sys.argv[1:]]))
