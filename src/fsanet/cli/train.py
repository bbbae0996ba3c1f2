"""`fsanet train`: a run folder from a YAML file and options."""

from __future__ import annotations

from pathlib import Path

from fsanet.cli.parsing import has, quiet, switches, value_of


def run(given: list[str]) -> int:
    quiet()
    import lightning

    from fsanet.cli import options
    from fsanet.files import first_process
    from fsanet.train import train

    if "--resume" in given and not has(given, "--config"):
        config = Path(value_of(given, "--out") or "") / "config.yaml"
        if config.is_file():  # a run knows its own options
            given = ["--config", str(config), *given]
    kind = options.kind_of(given)
    parser = options.train_parser(named_model=options.names_model(given), kind=kind)
    # `--resume` alone, as well as `--resume true`
    given = switches(given, ("--resume", "--overwrite"))
    parsed = options.parse(parser, given, kind=kind)
    out = options.run_folder(parsed, given)
    lightning.seed_everything(parsed.seed, verbose=False)
    data = options.make_data(parser, parsed)
    data.setup("fit")  # a data set that is missing is told of before weights are downloaded
    task = options.make_task(parsed, data, kind=kind)
    result = train(
        task,
        data,
        out=out,
        config=options.record(parser, parsed, out),
        **options.train_arguments(parsed),
    )
    if first_process():
        print(
            f"best {result.monitor} {result.best_score:.4f} after {result.best_step} of "
            f"{result.steps} steps, {result.seconds / 60:.1f} min; model in {result.model}"
        )
    return 0
