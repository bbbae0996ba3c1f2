"""`python -m fsanet`."""

import sys

from fsanet.cli.main import main

sys.exit(main())
