"""Class ids out of the Semantic Boundaries Dataset's ``cls/NAME.mat`` files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fsanet.errors import InputError

__all__ = ["read_sbd", "require_scipy"]


def require_scipy() -> None:
    """Raise `InputError` where SciPy, which reads ``.mat`` files, is not installed."""
    try:
        import scipy.io  # noqa: F401
    except ImportError as error:
        raise InputError(
            "SBD's .mat files need SciPy: pip install 'fsanet[voc]', or put the folder of PNG "
            "files SegmentationClassAug into VOC2012"
        ) from error


def read_sbd(path: str | Path) -> Tensor:
    """Class ids uint8 (H, W), 0..20, of one file: its field ``GTcls.Segmentation``.

    Raises:
        InputError: SciPy is missing, or the file is, or it is damaged or of another kind.
    """
    require_scipy()
    from scipy.io import loadmat

    try:
        with Path(path).open("rb") as stream:
            content = loadmat(stream, variable_names=["GTcls"])
        values = np.asarray(content["GTcls"]["Segmentation"][0, 0])
        if values.ndim != 2 or not values.size or values.dtype.kind not in "ui":
            raise ValueError("not a map of class ids")
        if values.min() < 0 or values.max() > 255:
            raise ValueError("ids beyond 8 bits")
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such label file") from error
    except Exception as error:  # SciPy's reader raises whatever its parsing runs into
        raise InputError(
            f"{path}: labels cannot be read (damaged, or no file of SBD's cls/); unpack "
            "benchmark.tgz again"
        ) from error
    return torch.from_numpy(values.astype(np.uint8))
