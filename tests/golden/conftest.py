"""The modules here are imported as `golden.…`, also where pytest looks for doctests in them."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
