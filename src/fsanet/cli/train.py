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
        print(
            f"best {result.monitor} {result.best_score:.4f} after {result.best_step} of "
            f"{result.steps} steps, {result.seconds / 60:.1f} min; model in {result.model}"
        )
    return 0
