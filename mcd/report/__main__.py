"""``python -m mcd.report``: draw a run's report again."""

import sys

from mcd.report.page import main

sys.exit(main())
