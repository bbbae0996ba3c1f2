import sys
from pathlib import Path

# importlib import mode leaves the test folders off the path; the reference implementations and
# the model contract are shared between test files.
for folder in ("attention", "models"):
    sys.path.append(str(Path(__file__).parent / folder))
