"""What frequency attention over tokens does, whatever network the tokens are of.

Source: FsaNet (arXiv 2211.15595), section III and the no-retraining study of section IV: the
attention a network was trained with, given the low-passed token map. A bias commutes with the
low-pass, as constants do; everything that is not linear works on evaluated tokens.

Legend: B batch, h heads, d channels of a head, N queries, M keys.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from fsanet.attention.dct import Band, BandLike
from fsanet.attention.similarity import SIMILARITIES, Similarity, attend
from fsanet.errors import InputError

__all__ = ["Route", "TokenAttention", "check_route", "heads"]

Route = Literal["tokens", "grid"]


class TokenAttention(nn.Module):
    """Base of the token kinds: the band, the similarity, and the route of softmax.

    Args:
        k: band of frequencies.
        similarity: "softmax", or a linear form of it, per head.
        scale: factor on ``q.k``.
        route: "tokens": keys and values at every position they had before. "grid": at ``grid``
            points, evaluated from coefficients.
        grid: m, or (mh, mw).
    """

    def __init__(
        self,
        *,
        k: BandLike,
        similarity: Similarity,
        scale: float,
        route: Route,
        grid: int | tuple[int, int],
    ) -> None:
        super().__init__()
        check_route(route, grid, similarity)
        self.band = Band.of(k)
        self.similarity: Similarity = similarity
        self.scale = scale
        self.route: Route = route
        self.grid = grid

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        mask: Tensor | None = None,
        causal: bool = False,
        dropout: float = 0.0,
    ) -> Tensor:
        """(B, h, N, d) over (B, h, M, d): (B, N, h*d)."""
        if self.similarity == "softmax":
            out = scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=causal, dropout_p=dropout, scale=self.scale
            )
        elif mask is not None or causal:
            raise InputError(f"similarity={self.similarity!r} takes no attention mask")
        else:
            flat_q, flat_k, flat_v = (t.flatten(0, 1).mT for t in (q, k, v))  # (B*h, d, .)
            out = attend(flat_q, flat_k, flat_v, self.similarity, self.scale).mT
            out = nn.functional.dropout(out, dropout).unflatten(0, q.shape[:2])  # (B, h, N, d)
        return out.transpose(1, 2).flatten(2)

    def extra_repr(self) -> str:
        route = f"grid={self.grid}" if self.route == "grid" else "tokens"
        return f"band={self.band}, similarity={self.similarity!r}, route={route}"


def heads(tokens: Tensor, count: int) -> Tensor:
    """(B, N, h*d) as (B, h, N, d), the channels innermost."""
    return tokens.unflatten(2, (count, -1)).transpose(1, 2)


def check_route(route: str, grid: object, similarity: str) -> None:
    """Raise an InputError for a route, grid or similarity that makes no sense."""
    if similarity not in SIMILARITIES:
        raise InputError(f"similarity={similarity!r}: use one of {', '.join(SIMILARITIES)}")
    if route not in get_args(Route):
        raise InputError(f"route={route!r}: use 'tokens' or 'grid'")
    pair = grid if isinstance(grid, tuple) else (grid, grid)
    if len(pair) != 2 or not all(type(m) is int and m >= 1 for m in pair):
        raise InputError(
            f"grid={grid!r}: give the points of a side, at least 1, or (rows, columns)"
        )
    if route == "grid" and similarity != "softmax":
        raise InputError(
            f"route='grid' is for softmax; similarity={similarity!r} needs no fewer keys, "
            "its cost is linear in them: use route='tokens'"
        )


def compute_dtype(tokens: Tensor) -> torch.dtype:
    """The dtype evaluated tokens go on in: that of autocast where it is on."""
    kind = tokens.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return tokens.dtype
