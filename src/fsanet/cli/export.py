"""`fsanet export`: a trained network as one file for other runtimes."""

from __future__ import annotations

from fsanet.cli.parsing import Parser, quiet


def run(given: list[str]) -> int:
    parser = Parser(
        prog="fsanet export",
        description="Write a trained network as one ONNX or torch.export file: RGB images of 0..1 "
        "in, logits out, any size in multiples of 32. What was written is run once and compared.",
    )
    parser.add_argument("model", metavar="MODEL", help="run folder, model folder, or hub id")
    parser.add_argument("--out", required=True, metavar="FILE", help="ends in .onnx or .pt2")
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        default=(512, 512),
        metavar=("H", "W"),
        help="image to trace with (default: 512 512)",
    )
    parser.add_argument("--fixed", action="store_true", help="that size only")
    options = parser.parse_args(given)
    quiet()

    from fsanet.convert import load_model
    from fsanet.predict.export import export_network

    network = load_model(options.model, task="semantic")
    size = (options.size[0], options.size[1])
    error = export_network(network, options.out, size=size, dynamic=not options.fixed)
    print(f"{options.out}: largest difference of logits {error:.1e} of the largest logit")
    return 0
