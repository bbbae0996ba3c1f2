"""Reading and checking images and masks imports little."""

import json
import subprocess
import sys

STEPS = """
import json, sys
from fsanet.data import annotations, check, images, masks
print(json.dumps(sorted(name for name in sys.modules if name.count(".") < 2)))
"""


def test_reading_and_checking_import_neither_lightning_nor_torchvision():
    """Both take seconds; torchvision imports torch._dynamo."""
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, check=True)
    slow = {"lightning", "torchmetrics", "torchvision", "torch._dynamo", "scipy", "matplotlib"}
    assert not slow & set(json.loads(done.stdout))
