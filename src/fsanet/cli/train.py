"""`fsanet train`: train a network into a run folder."""

from __future__ import annotations

from pathlib import Path


def run(arguments: list[str]) -> int:
    import lightning

    from fsanet.cli.recipe import Recipe
    from fsanet.files import first_process
    from fsanet.train import train

    recipe = Recipe(arguments)
    out = Path(recipe.options.out or Path("runs", recipe.name))
    lightning.seed_everything(recipe.options.seed, verbose=False)
    data = recipe.data()
    data.setup("fit")  # finds missing data before any weights are downloaded
    task = recipe.task(data)
    result = train(task, data, out=out, config=recipe.text(out), **recipe.train_options())
    if first_process():
        score = result.best_score
        best = f"mIoU {score:.4f}" if "miou" in result.monitor else f"mask AP {100 * score:.2f} %"
        print(
            f"best {best} after {result.best_step} of {result.steps} steps, "
            f"{result.seconds / 60:.1f} min; model in {result.model}"
        )
    return 0
