"""Look at attention modules at work: each call of the original, beside what would stand in for it.

Legend: B batch, C channels, H x W grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fsanet.attention.block import AttentionBlock
from fsanet.errors import InputError

__all__ = ["Call", "input_map", "observe", "relative_error"]

Images = Tensor | Iterable[Tensor]


class Call:
    """One call of one attention module.

    Attributes:
        name: of the module.
        arguments, options: of the call.
        output: what the original gave.
    """

    def __init__(
        self, name: str, arguments: tuple[Any, ...], options: dict[str, Any], output: Any
    ) -> None:
        self.name, self.arguments, self.options, self.output = name, arguments, options, output

    def difference(self, replacement: nn.Module) -> tuple[float, float]:
        """Squared norms of the replacement's error, and of what the original contributes.

        A layer with the residual inside contributes what it adds to its input.
        """
        given = replacement(*self.arguments, **self.options)
        mine, theirs = _tensor(given).double(), _tensor(self.output).double()
        inside = isinstance(replacement, AttentionBlock)
        contribution = theirs - self.arguments[0].double() if inside else theirs
        return (mine - theirs).square().sum().item(), contribution.square().sum().item()


def observe(
    model: nn.Module, names: Iterable[str], images: Images, on_call: Callable[[Call], None]
) -> None:
    """Run the network on images, and call ``on_call`` for each call of the modules ``names``.

    The network is to be in evaluation mode; it sees its own activations all through.

    Args:
        model: called as ``model(images)``.
        names: of modules.
        images: what the network takes (its own normalisation done): (B, C, H, W), or several
            such, or single images (C, H, W).

    Raises:
        InputError: no image, or a module that was not called.
    """
    called = set()

    def hook(name: str) -> Callable[..., None]:
        def look(module: nn.Module, arguments: Any, options: Any, output: Any) -> None:
            called.add(name)
            on_call(Call(name, arguments, options, output))

        return look

    names = list(names)
    handles = [
        model.get_submodule(name).register_forward_hook(hook(name), with_kwargs=True)
        for name in names
    ]
    count = 0
    try:
        with torch.no_grad():
            for batch in [images] if isinstance(images, Tensor) else images:
                count += 1
                model(batch.unsqueeze(0) if batch.ndim == 3 else batch)
    finally:
        for handle in handles:
            handle.remove()
    if not count:
        raise InputError("no images given: calibration needs at least one")
    silent = [name for name in names if name not in called]
    if silent:
        raise InputError(
            f"{silent[0]}: takes no part in the network's forward pass; leave it out with match"
        )


def input_map(replacement: nn.Module, call: Call) -> Tensor:
    """The map (B, C, H, W) that a replacement low-passes."""
    own = getattr(replacement, "input_map", None)
    if own is not None:
        return own(*call.arguments, **call.options)
    return call.arguments[0]


def relative_error(squares: Mapping[Any, list[float]]) -> dict[Any, float]:
    """Norm of the error over norm of the contribution, from sums of squares of both."""
    return {
        key: (error / norm) ** 0.5 if norm else 0.0 if not error else float("inf")
        for key, (error, norm) in squares.items()
    }


def _tensor(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output
