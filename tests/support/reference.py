"""The layer written as plainly as possible: N x N matrices, SciPy's DCT, loops, in float64.

It shares no code with ``fsanet``; the tests compare against it.
"""

import numpy as np
import scipy.fft
import torch


def dct_rows(size, start, stop):
    """Rows ``start:stop`` of the orthonormal DCT-II matrix of an axis."""
    matrix = scipy.fft.dct(np.eye(size), type=2, norm="ortho", axis=0)
    return torch.from_numpy(matrix[start:stop].copy())


def dense_basis(rows, columns, extended=False):
    """The matrix P (N, K): one column per basis function; the constant last if ``extended``."""
    functions = [torch.outer(r, c).flatten() for r in rows for c in columns]
    n = rows.shape[1] * columns.shape[1]
    if extended:
        functions.append(torch.full((n,), n**-0.5, dtype=torch.float64))
    return torch.stack(functions, 1)


def low_pass(x, band):
    """Map (B, C, H, W) with all frequencies outside ``band`` = (h0, h1, w0, w1) set to zero."""
    h0, h1, w0, w1 = band
    spectrum = scipy.fft.dctn(x.numpy(), type=2, norm="ortho", axes=(-2, -1))
    kept = np.zeros_like(spectrum)
    kept[..., h0:h1, w0:w1] = spectrum[..., h0:h1, w0:w1]
    return torch.from_numpy(scipy.fft.idctn(kept, type=2, norm="ortho", axes=(-2, -1)))


def attention_map(tokens, layer):
    """Attended values (B, e, N) of tokens (B, C, N), with the N x N weights written out."""
    return torch.einsum("bei,bij->bej", project(layer.value, tokens), weights(tokens, layer))


def project(linear, tokens):
    out = torch.einsum("oc,bcn->bon", linear.weight.detach(), tokens)
    return out if linear.bias is None else out + linear.bias.detach()[None, :, None]


def weights(tokens, layer):
    """The weight (B, N, N) of each key (second index) for each query (third)."""
    q, k = project(layer.query, tokens), project(layer.key, tokens)
    n = tokens.shape[-1]
    scale = layer.query.weight.shape[0] ** -0.5
    if layer.similarity == "linear_softmax":
        q, k = unit_length(q), unit_length(k)
    scores = torch.einsum("bdi,bdj->bij", k, q)  # key i, query j
    if layer.similarity == "dot":
        return scores / n
    if layer.similarity == "linear_softmax":
        return (1 + scores) / (1 + scores).sum(1, keepdim=True)
    if layer.similarity == "linear":
        return (1 + scale * scores) / (1 + scale * scores).sum(1, keepdim=True)
    return torch.softmax(scale * scores, dim=1)


def unit_length(tokens):
    """Tokens (B, d, N) divided by their length; 0 where that is rounding alone."""
    length = tokens.norm(dim=1, keepdim=True)
    return torch.where(length > 1e-12 * length.mean(), tokens / length, torch.zeros_like(tokens))


def apply_block(x, layer, band, norm):
    """``x`` (B, C, H, W) after all rounds. ``norm``: a separate BatchNorm2d, or None."""
    for _ in range(layer.recurrence):
        low = x if band is None else low_pass(x, band)
        out = attention_map(low.flatten(2), layer)
        if layer.out is not None:
            out = torch.einsum("oe,ben->bon", layer.out.weight.detach(), out)
        out = out.unflatten(2, x.shape[-2:])
        if norm is not None:
            out = norm(out)
        if layer.bias is not None:
            out = out + layer.bias.detach()[None, :, None, None]
        if layer.gate is not None:
            out = out * layer.gate.detach()
        x = x + out
    return x
