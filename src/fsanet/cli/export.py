"""`fsanet export`: a trained network as one file for other runtimes."""

from __future__ import annotations

from fsanet.cli.help import Section

HELP = [Section("fsanet.cli.export:export")]


def export(model: str, *, out: str, size: tuple[int, int] = (512, 512), fixed: bool = False) -> int:
    """Write a trained network as one ONNX or torch.export file.

    The file takes RGB images in 0..1 and gives logits, for any height and width that are multiples
    of 32. It is run once and compared with the network.

    Args:
        model: run folder, model folder, or hub id.
        out: file to write; its name ends in .onnx or .pt2.
        size: height and width of the image to trace with.
        fixed: export for that size only.
    """
    from fsanet.predict.export import export_network

    error = export_network(model, out, size=size, dynamic=not fixed)
    print(f"{out}: largest difference of logits {error:.1e} of the largest logit")
    return 0


def run(arguments: list[str]) -> int:
    from fsanet.cli.parsing import call

    return call(export, arguments)
