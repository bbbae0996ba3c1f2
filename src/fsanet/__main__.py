"""`python -m fsanet`."""

import sys

from fsanet.cli import main

sys.exit(main())
