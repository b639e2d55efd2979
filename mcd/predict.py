"""``python -m mcd.predict``: depth of images, folders and videos."""

import sys

from mcd.inference.command import main

if __name__ == "__main__":
    sys.exit(main())
