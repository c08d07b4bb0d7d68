"""`python -m diffdistill`, the same as the command `diffdistill`."""

import sys

from diffdistill.cli import main

if __name__ == "__main__":
    sys.exit(main())
