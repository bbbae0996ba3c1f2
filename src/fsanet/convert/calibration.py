"""How many frequencies each attention module of a network needs.

Sources: FsaNet (arXiv 2211.15595), section III, for the energy in low frequencies, and section IV
for attention on them without retraining.

Legend: B batch, C channels, H x W grid.
"""

from __future__ import annotations

import copy
import glob
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fsanet.attention.block import AttentionBlock
from fsanet.attention.dct import Band, BandLike, dct_bases
from fsanet.attention.kernels import analyse
from fsanet.convert.conversion import (
    align_columns,
    convert_attention,
    find_attention,
    make_replacement,
    to_json,
)
from fsanet.convert.kinds import ConversionOptions
from fsanet.convert.variants import Variant, evaluate_variants
from fsanet.errors import InputError

__all__ = ["Calibration", "calibrate", "compare_grids", "error_table"]

CANDIDATES = (1, 2, 4, 6, 8, 12, 16, 24, 32)
GRIDS = (2, 4, 8, 16, 32)

Images = Tensor | Iterable[Tensor]


@dataclass(frozen=True)
class Calibration:
    """The frequencies each module needs, and the measurements behind that choice.

    Attributes:
        k: ``{module: k}``, for ``convert_attention(model, k=...)``. Modules for which no candidate
            was good enough are absent, so that they are not converted.
        tolerance: largest relative error, or largest drop of the metric.
        errors: ``{module: {k: relative error}}`` of the module's contribution.
        energy: ``{module: {k: share}}``, 0 to 1, of the energy of the attention's input that lies
            in its k x k lowest frequencies.
        grid_errors: ``{module: {m: relative error}}`` of route "grid" at the chosen k, see
            :func:`compare_grids`; None if no grids were requested.
        metrics: ``{module: {k: metric}}`` of the candidates tried, each with the preceding modules
            converted as chosen; None if chosen by error.
        baseline: metric of the original, or None.
        final: metric with all of ``k``, or None.
    """

    k: dict[str, int]
    tolerance: float
    errors: dict[str, dict[int, float]]
    energy: dict[str, dict[int, float]]
    grid_errors: dict[str, dict[int, float]] | None = None
    metrics: dict[str, dict[int, float]] | None = None
    baseline: float | None = None
    final: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """The attributes as JSON values; numbers that are not finite become null."""
        return to_json(self.__dict__)

    def table(self) -> str:
        """One line per module: k, and the error and energy at this k."""
        rows = [["module", "k", "error", "energy inside"]]
        for name, errors in self.errors.items():
            k = self.k.get(name, max(errors))
            chosen = str(k) if name in self.k else "none"
            inside = f"{100 * self.energy[name][k]:.1f} %"
            rows.append([name or "(the network)", chosen, f"{errors[k]:.1e}", inside])
        lines = align_columns(rows, left=1)
        if len(self.k) < len(self.errors):
            lines.append(
                "none: no candidate is within the tolerance; shown are the values of the largest"
            )
        if self.baseline is not None and self.final is not None:
            lines.append(f"metric {self.baseline:.4f} before, {self.final:.4f} after")
        if self.grid_errors:
            lines += ["", "route grid compared with route tokens, relative error:"]
            lines.append(error_table(self.grid_errors))
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.table()


def calibrate(
    model: nn.Module,
    images: Images,
    *,
    tolerance: float = 0.05,
    metric: Callable[[nn.Module], float] | None = None,
    candidates: Sequence[int] = CANDIDATES,
    grids: Sequence[int] = (),
    **options: Any,
) -> Calibration:
    """Choose k for each attention module: the smallest that is good enough on a few images.

    By error: each module receives the input it has in the original network, and its contribution
    (its output; for a layer with an internal residual, what it adds to its input) may differ from
    the original's by ``tolerance``, relative to its norm. By metric: modules are converted one
    after the other, each with the smallest k that keeps the metric of the network, as converted so
    far, within ``tolerance`` of the original's.

    Args:
        model: the network; it is not changed.
        images: what it takes, already normalised: (B, C, H, W), or several such of any size, or
            single images (C, H, W).
        tolerance: largest relative error, or largest absolute drop of the metric.
        metric: ``metric(network) -> float``, higher is better.
        candidates: the k to try.
        grids: the m for which to report the error of route "grid", see :func:`compare_grids`.
        **options: those of :func:`fsanet.convert_attention`, except k and in_place.

    Raises:
        InputError: no attention, no images, or an invalid option.
    """
    if tolerance < 0:
        raise InputError(f"tolerance={tolerance}: give a number of at least 0")
    ks = sorted(set(candidates))
    if not ks or not all(type(k) is int and k >= 1 for k in ks):
        raise InputError(f"candidates={tuple(candidates)}: give one or more k of at least 1")
    if "k" in options:
        raise InputError("calibrate chooses k itself; give the values to try as candidates")
    batches = [images] if isinstance(images, Tensor) else list(images)
    subject = copy.deepcopy(model).eval()
    wanted = ConversionOptions(**options)
    replacements = {
        name: {k: make_replacement(subject, name, replace(wanted, k=k)) for k in ks}
        for name in find_attention(subject, wanted)
    }
    errors = _relative_errors(subject, replacements, batches)
    energy = _energy_inside(subject, replacements, batches)
    if metric is None:
        good = {name: [k for k in ks if row[k] <= tolerance] for name, row in errors.items()}
        found = Calibration({n: g[0] for n, g in good.items() if g}, tolerance, errors, energy)
    else:
        found = Calibration({}, tolerance, errors, energy)
        found = _choose_by_metric(found, subject, ks, metric, options)
    if not grids or not found.k:
        return found
    k_of = {glob.escape(name): k for name, k in found.k.items()}
    return replace(found, grid_errors=compare_grids(model, batches, k_of, grids, **options))


def _choose_by_metric(
    calibration: Calibration,
    network: nn.Module,
    ks: Sequence[int],
    metric: Callable[[nn.Module], float],
    options: Mapping[str, Any],
) -> Calibration:
    """The calibration with `k` chosen by the metric."""
    chosen: dict[str, int] = {}
    metrics: dict[str, dict[int, float]] = {name: {} for name in calibration.errors}
    baseline = final = float(metric(network))
    for name, row in metrics.items():
        changes = {**options, "match": glob.escape(name)}
        evaluated = evaluate_variants(network, map(Variant.low_pass, ks), metric, **changes)
        for k, (_, value) in zip(ks, evaluated, strict=True):
            row[k] = float(value)
            if baseline - row[k] <= calibration.tolerance:
                chosen[name], final = k, row[k]
                network = convert_attention(network, k, **changes).model
                break
    return replace(calibration, k=chosen, metrics=metrics, baseline=baseline, final=final)


def compare_grids(
    model: nn.Module,
    images: Images,
    k: BandLike | Mapping[str, BandLike] = 8,
    grids: Sequence[int] = GRIDS,
    **options: Any,
) -> dict[str, dict[int, float]]:
    """Relative error of softmax over m x m keys compared with softmax over all keys.

    Both routes receive the input that each module has in the original network.

    Args:
        model: a network with softmax attention; it is not changed.
        images: as for :func:`calibrate`.
        k: low frequencies to keep, as for :func:`fsanet.convert_attention`.
        grids: the m to compare.
        **options: those of :func:`fsanet.convert_attention`, except route and grid.

    Returns:
        ``{module: {m: error}}``: the norm of the difference divided by the norm of what route
        "tokens" contributes.

    Raises:
        InputError: no attention, no images, or a similarity other than softmax.
    """
    subject = copy.deepcopy(model).eval()
    tokens = ConversionOptions(k=k, **options | {"route": "tokens"})
    names = find_attention(subject, tokens)
    exact = {name: make_replacement(subject, name, tokens) for name in names}
    coarse = {m: replace(tokens, route="grid", grid=m) for m in grids}
    replacements = {
        name: {m: make_replacement(subject, name, one) for m, one in coarse.items()}
        for name in names
    }
    batches = [images] if isinstance(images, Tensor) else list(images)
    return _relative_errors(subject, replacements, batches, exact)


def error_table(errors: Mapping[str, Mapping[int, float]]) -> str:
    """The result of :func:`compare_grids` with one line per module and one column per m."""
    grids = sorted({m for row in errors.values() for m in row})
    rows = [["module", *(f"m={m}" for m in grids)]]
    rows += [
        [name or "(the network)", *(f"{row[m]:.1e}" for m in grids)] for name, row in errors.items()
    ]
    return "\n".join(align_columns(rows, left=1))


@torch.no_grad()
def _relative_errors(
    network: nn.Module,
    replacements: Mapping[str, Mapping[int, nn.Module]],
    batches: Sequence[Tensor],
    exact: Mapping[str, nn.Module] | None = None,
) -> dict[str, dict[int, float]]:
    """Norm of each replacement's error divided by the norm of what is contributed without it.

    The error is relative to the module itself, or to ``exact`` if given.
    """
    errors = {name: dict.fromkeys(row, 0.0) for name, row in replacements.items()}
    norms = dict.fromkeys(replacements, 0.0)
    for name, arguments, keywords, output in _calls(network, replacements, batches):
        expected = output if exact is None else exact[name](*arguments, **keywords)
        expected = _tensor(expected).double()
        for key, replacement in replacements[name].items():
            given = _tensor(replacement(*arguments, **keywords)).double()
            errors[name][key] += (given - expected).square().sum().item()
        if isinstance(replacement, AttentionBlock):  # the residual is part of the layer
            expected = expected - arguments[0].double()
        norms[name] += expected.square().sum().item()
    return {
        name: {
            key: (error / norms[name]) ** 0.5 if norms[name] else math.inf if error else 0.0
            for key, error in row.items()
        }
        for name, row in errors.items()
    }


@torch.no_grad()
def _energy_inside(
    network: nn.Module,
    replacements: Mapping[str, Mapping[int, nn.Module]],
    batches: Sequence[Tensor],
) -> dict[str, dict[int, float]]:
    """Share of the energy of each module's input in its k x k lowest frequencies."""
    inside = {name: dict.fromkeys(row, 0.0) for name, row in replacements.items()}
    total = dict.fromkeys(replacements, 0.0)
    for name, arguments, keywords, _ in _calls(network, replacements, batches):
        own = getattr(next(iter(replacements[name].values())), "input_map", None)
        x = arguments[0] if own is None else own(*arguments, **keywords)  # (B, C, H, W)
        rows, columns = dct_bases(x, Band.of(None).clip(x.shape[-2], x.shape[-1]))
        power = analyse(x, rows, columns).double().square().sum((0, 1))  # (H, W)
        total[name] += power.sum().item()
        for k in inside[name]:
            inside[name][k] += power[:k, :k].sum().item()
    return {
        name: {k: value / total[name] if total[name] else 1.0 for k, value in row.items()}
        for name, row in inside.items()
    }


def _calls(
    network: nn.Module, names: Iterable[str], batches: Sequence[Tensor]
) -> Iterator[tuple[str, tuple[Any, ...], dict[str, Any], Any]]:
    """Name, arguments, keyword arguments and output of each call of some modules.

    Raises:
        InputError: there is no image, or a module is not called.
    """
    if not batches:
        raise InputError("no images given: calibration needs at least one")
    calls: list[Any] = []

    def hook_for(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: Any, keywords: Any, output: Any) -> None:
            # Copied, because the network may change its tensors in place afterwards.
            calls.append(copy.deepcopy((name, arguments, keywords, output)))

        return hook

    handles = [
        network.get_submodule(name).register_forward_hook(hook_for(name), with_kwargs=True)
        for name in names
    ]
    unused = dict.fromkeys(names)
    try:
        for batch in batches:
            network(batch.unsqueeze(0) if batch.ndim == 3 else batch)
            for call in calls:
                unused.pop(call[0], None)
                yield call
            calls.clear()
    finally:
        for handle in handles:
            handle.remove()
    if unused:
        raise InputError(
            f"{next(iter(unused))}: not called in the forward pass of the network; exclude it "
            "with match"
        )


def _tensor(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output
