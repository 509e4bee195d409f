"""``python -m pocketgem`` is the ``pocketgem`` command."""

import sys

from pocketgem.cli import main

if __name__ == "__main__":
    sys.exit(main())
