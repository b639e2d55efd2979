"""``python -m mcd.predict``: depth of images, folders and videos."""

import sys

from mcd.cli import main

if __name__ == "__main__":
    sys.exit(main(["predict", *sys.argv[1:]]))
