"""`python -m blobtee.cli`."""

import sys

from blobtee.cli import main

if __name__ == "__main__":
    sys.exit(main())
