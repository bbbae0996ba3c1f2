"""What attention over low-passed tokens has in common, whichever network the tokens belong to.

Source: FsaNet (arXiv 2211.15595), section III and the no-retraining study of section IV: attention
with its trained weights, applied to the low-passed token map. A bias commutes with the low-pass,
as constants do; everything that is not linear works on evaluated tokens.

Legend: B batch, h heads, d channels of a head, H x W grid, N queries, M keys.
"""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor, nn
from torch.nn.functional import dropout as dropout_
from torch.nn.functional import scaled_dot_product_attention

from fsanet.attention.dct import Band, BandLike
from fsanet.attention.similarity import SIMILARITIES, Similarity, attend
from fsanet.convert.token_spectrum import grid_points
from fsanet.errors import InputError

__all__ = ["Route", "TokenAttention", "check_route", "split_heads"]

Route = Literal["tokens", "grid"]


class TokenAttention(nn.Module):
    """Base class of converted token attention: its band, similarity and route.

    Args:
        scale: factor on ``q.k``.
        k: band of frequencies.
        similarity: "softmax", or one of its linear forms, per head.
        route: "tokens": keys and values at the same positions as in the original; "grid": at the
            points of ``grid``, evaluated from coefficients.
        grid: m, or (mh, mw).
    """

    def __init__(
        self,
        scale: float,
        *,
        k: BandLike = 8,
        similarity: Similarity = "softmax",
        route: Route = "tokens",
        grid: int | tuple[int, int] = 16,
    ) -> None:
        super().__init__()
        check_route(route, grid, similarity)
        self.scale = scale
        self.band = Band.of(k)
        self.similarity: Similarity = similarity
        self.route: Route = route
        self.grid = grid

    def key_points(self, height: int, width: int) -> tuple[int, int]:
        """The grid of keys that stands for a ``height x width`` one."""
        return grid_points(self.grid, height, width) if self.route == "grid" else (height, width)

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
        """Attend from queries (B, h, N, d) to keys and values (B, h, M, d): (B, N, h*d)."""
        if self.similarity == "softmax":
            out = scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=causal, dropout_p=dropout, scale=self.scale
            )
        elif mask is not None or causal:
            raise InputError(f"similarity={self.similarity!r} takes no attention mask")
        else:
            flat_q, flat_k, flat_v = (t.flatten(0, 1).mT for t in (q, k, v))  # (B*h, d, .)
            out = attend(flat_q, flat_k, flat_v, self.similarity, self.scale).mT
            out = dropout_(out, dropout).unflatten(0, q.shape[:2])  # (B, h, N, d)
        return out.transpose(1, 2).flatten(2)

    def extra_repr(self) -> str:
        route = f"grid={self.grid}" if self.route == "grid" else "tokens"
        return f"band={self.band}, similarity={self.similarity!r}, route={route}"


def split_heads(tokens: Tensor, count: int) -> Tensor:
    """(B, N, h*d) as (B, h, N, d)."""
    return tokens.unflatten(2, (count, -1)).transpose(1, 2)


def check_route(route: str, grid: object, similarity: str) -> None:
    """Raise an InputError for a route, grid or similarity that is not valid."""
    if similarity not in SIMILARITIES:
        raise InputError(f"similarity={similarity!r}: use one of {', '.join(SIMILARITIES)}")
    if route not in get_args(Route):
        raise InputError(f"route={route!r}: use 'tokens' or 'grid'")
    pair = grid if isinstance(grid, tuple) else (grid, grid)
    if len(pair) != 2 or not all(type(m) is int and m >= 1 for m in pair):
        raise InputError(
            f"grid={grid!r}: give the points per side, at least 1, or a pair (rows, columns)"
        )
    if route == "grid" and similarity != "softmax":
        raise InputError(
            f"route='grid' is for softmax; the cost of similarity={similarity!r} is linear in the "
            "number of keys already: use route='tokens'"
        )
