"""`python -m lilota_async`."""

import sys

from lilota_async.cli import main

if __name__ == "__main__":
    sys.exit(main())
