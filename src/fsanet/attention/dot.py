"""Dot-product attention on coefficients, and what every similarity does to them.

Source: FsaNet (arXiv 2211.15595), section III; the identities go past it (docs/method.md).

Legend: B batch, C channels, N = H*W positions, K kept frequencies, K' = K, or K + 1 where the
constant is one more coefficient, d query/key channels, e value channels. Tokens are frequencies.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from fsanet.attention.block import AttentionBlock
from fsanet.attention.norm import Statistics, batch_norm_affine, uses_batch_statistics
from fsanet.attention.spectrum import Spectrum

__all__ = ["dot_rounds", "on_dc", "output_affine", "project"]

Affine = tuple[Tensor | None, Tensor | None]


def dot_rounds(layer: AttentionBlock, spectrum: Spectrum) -> tuple[Tensor, Tensor | None]:
    """All rounds of dot-product attention: ``s <- s + affine(Wo (Wv s) (Wk s)^T (Wq s) / N)``.

    Returns:
        ``(B, K, C)``, the coefficients of what is added to the input, and ``(B, C)``, a value to
        add at every position, or None: the constant part of it where the band lacks the DC term.
    """
    positions = spectrum.positions
    # Biases and batch norm make constants: a band without DC gets it as one more coefficient.
    makes_constants = layer.norm is not None or layer.bias is not None or layer.qkv_bias
    extended = makes_constants and not spectrum.has_dc
    dc = spectrum.size if extended else 0
    edge = (0, 0, 0, 1)
    band = spectrum.tokens
    s = pad(band, edge) if extended else band  # (B, K', C)
    uses_batch = uses_batch_statistics(layer.norm)
    affine: Affine | None = None
    total: Tensor | None = None
    for round_ in range(layer.recurrence):
        q = project(layer.query, s, dc, positions)  # (B, K', d)
        k = project(layer.key, s, dc, positions)
        v = project(layer.value, s, dc, positions)  # (B, K', e)
        d, e, size = q.shape[2], v.shape[2], s.shape[1]
        if size * (d + e) <= 2 * d * e:  # the cheaper bracket; never N x N, even at full band
            out = ((q @ k.mT) / positions) @ v
        else:
            out = q @ ((k.mT @ v) / positions)
        if layer.out is not None:
            out = linear(out, layer.out.weight.to(out.dtype))  # (B, K', C)
        if affine is None or uses_batch:
            scale, constant = output_affine(layer, s, _statistics(out, dc, positions))
            affine = scale, None if constant is None else on_dc(constant, dc, size, positions)
        out = _apply(out, *affine)
        total = out if total is None else total + out
        if round_ + 1 < layer.recurrence:
            band = band + out[:, : spectrum.size]
            s = pad(band, edge) if extended else band
    if not extended or total is None:
        return spectrum.tokens if total is None else total, None
    return total[:, :-1], total[:, -1] / positions**0.5


def output_affine(
    layer: AttentionBlock,
    like: Tensor,
    statistics: Statistics | None = None,
) -> Affine:
    """Batch norm, bias and gate of a block as ``o * scale + constant``, each ``(C,)`` or None.

    Args:
        layer: whose norm, bias and gate.
        like: a tensor of the dtype to compute in.
        statistics: gives mean and energy of ``o``, each (B, C), and N, for a batch norm that
            uses those of the batch; not called otherwise.
    """
    scale = constant = None
    if layer.norm is not None:
        scale, constant = batch_norm_affine(layer.norm, like.dtype, statistics)
    if layer.bias is not None:
        bias = layer.bias.to(like.dtype)
        constant = bias if constant is None else constant + bias
    if layer.gate is not None:
        gate = layer.gate.to(like.dtype)
        scale = gate if scale is None else scale * gate
        constant = None if constant is None else constant * gate
    return scale, constant


def project(layer: nn.Linear, s: Tensor, dc: int, positions: int) -> Tensor:
    """A 1x1 map on coefficients (B, K', C); its bias is a constant, so it sits on DC alone."""
    out = linear(s, layer.weight.to(s.dtype))
    if layer.bias is None:
        return out
    return out + on_dc(layer.bias.to(s.dtype), dc, s.shape[1], positions)


def on_dc(constant: Tensor, dc: int, size: int, positions: int) -> Tensor:
    """Coefficients (1, size, C) of the map that is ``constant`` (C,) at every position."""
    return pad(constant[None, None] * positions**0.5, (0, 0, dc, size - 1 - dc))


def _apply(out: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    if scale is None:
        return out if shift is None else out + shift
    return out * scale if shift is None else torch.addcmul(shift, out, scale)


def _statistics(out: Tensor, dc: int, positions: int) -> Statistics:
    def of_coefficients() -> tuple[Tensor, Tensor, int]:
        mean = out[:, dc] / positions**0.5  # (B, C)
        rest = out[:, 1:] if dc == 0 else out[:, :dc]  # DC comes first or last
        energy = rest.square().sum(1)  # Parseval: all but DC is the spread around the mean
        return mean, energy, positions

    return of_coefficients
