"""`fsanet train`: train a network into a run folder."""

from __future__ import annotations

import shlex
from pathlib import Path

from fsanet.cli.help import FROM_DATA, Section

HELP = [
    Section("fsanet.cli.recipe:recipe_options"),
    Section(
        "fsanet.train.run:train",
        "training",
        skip={"task", "data", "out", "config", "command", "callbacks"},
    ),
    Section(
        "fsanet.models.fsanet:FsaNet",
        "network: --model.NAME VALUE (--model.help describes these options)",
        skip=FROM_DATA,
        names_only=True,
    ),
    Section(
        "fsanet.data.batches:SegmentationData",
        "data: --data CLASS --data.NAME VALUE (default: FolderData; --data.help CLASS lists more)",
        names_only=True,
    ),
    Section(
        "fsanet.train.semantic:SemanticSegmentation",
        "loss and optimiser: --task.NAME VALUE (--task.help describes these options)",
        skip=FROM_DATA,
        names_only=True,
    ),
    Section(
        "fsanet.train.run:evaluate",
        "kept for fsanet eval: --test.NAME VALUE (fsanet eval --help describes these options)",
        skip={"model", "data", "accelerator", "devices", "num_nodes", "strategy", "progress"}
        | {"deterministic"},
        names_only=True,
    ),
]


def run(arguments: list[str]) -> int:
    from fsanet.imports import import_lightning

    lightning = import_lightning()

    from fsanet.cli.recipe import Recipe
    from fsanet.files import first_process
    from fsanet.train import check_options, train

    recipe = Recipe(arguments)
    out = Path(recipe.options.out or Path("runs", recipe.name))
    if recipe.options.print_config:
        print(recipe.text(out), end="")
        return 0
    options = recipe.train_options()
    check_options(out, **options)  # before data are listed and weights downloaded
    lightning.seed_everything(recipe.options.seed, verbose=False)
    data = recipe.data()
    data.setup("fit")  # finds missing data before any weights are downloaded
    task = recipe.task(data)
    command = shlex.join(["fsanet", "train", *arguments])
    result = train(task, data, out=out, config=recipe.text(out), command=command, **options)
    if first_process():
        score = result.best_score
        best = f"mIoU {score:.4f}" if "miou" in result.monitor else f"mask AP {100 * score:.2f} %"
        print(
            f"best {best} after {result.best_step} of {result.steps} steps, "
            f"{result.seconds / 60:.1f} min; model in {result.model}"
        )
    return 0
