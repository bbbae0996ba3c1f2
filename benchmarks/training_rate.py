"""Images a second of `fsanet train` against a bare loop of the same network on random tensors.

    python benchmarks/training_rate.py --config camvid_full --config experiments/camvid_files.yaml
    python benchmarks/training_rate.py --steps 12 --config camvid_full --task.channels_last true

It trains as `fsanet train` does, with the options that are given, in a temporary folder. After each
step of the training, the bare loops take one, too: forward, loss, backward and optimiser in
float32 and bfloat16, contiguous and channels-last. What is compared ran within the same seconds. A
loop that is too slow for `--seconds` takes part in every second, fourth, ... round. One validation
and the last checkpoint are timed at the end.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console

from fsanet.bench.tables import Grid, significant, spread
from fsanet.bench.training import make_training_step
from fsanet.cli.main import reuse_freed_memory, user_errors
from fsanet.cli.recipe import Recipe
from fsanet.cost import Quartiles, ratios
from fsanet.cost.timing import strides
from fsanet.errors import InputError
from fsanet.files import environment, write_json
from fsanet.train import SemanticSegmentation, train

WARM_UP = 2  # steps


@dataclass(frozen=True)
class TrainingRate:
    """What was measured.

    Attributes:
        options: those of the training.
        same: the bare loop with the precision and memory format of the training.
        images: of a step.
        training: seconds of each step of the training, by round.
        bare: seconds of each step of the bare loops, by name and round.
        validation: seconds of a validation.
        ending: seconds from the last step to the end of the training without that validation.
        share: of the time of the whole training that its validations take, 0..1.
    """

    options: list[str]
    same: str
    images: int
    training: dict[int, float]
    bare: dict[str, dict[int, float]]
    validation: float
    ending: float
    share: float


class Interleaved(Callback):
    """Times the steps of a training and, between them, those of other loops.

    Args:
        loops: take one step each.
        rounds: how many steps the training takes after the warm-up.
        seconds: for all steps of the loops.
        clock: reads the time in seconds.
    """

    def __init__(
        self,
        loops: Mapping[str, Callable[[], None]],
        *,
        rounds: int,
        seconds: float,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.loops, self.clock = loops, clock
        self.training: dict[int, float] = {}
        self.taken: dict[str, dict[int, float]] = {name: {} for name in loops}
        self.validation = 0.0
        for loop in loops.values():
            loop()
        costs = {name: self._time(loop) for name, loop in loops.items()}
        self.strides = strides(costs, rounds, seconds)
        self.step = -WARM_UP
        self.mark = 0.0

    def _time(self, loop: Callable[[], None]) -> float:
        start = self.clock()
        loop()
        return self.clock() - start

    def on_train_epoch_start(self, *_: Any) -> None:
        self.mark = self.clock()  # after validation and checkpoint of the epoch before

    def on_train_batch_end(self, *_: Any) -> None:
        # From the end of the last round on: loading, step, logging and all other callbacks.
        if self.step >= 0:
            self.training[self.step] = self.clock() - self.mark
            names = list(self.loops)
            first = self.step % len(names)
            for name in names[first:] + names[:first]:
                if self.step % self.strides[name] == 0:
                    self.taken[name][self.step] = self._time(self.loops[name])
        self.step += 1
        self.mark = self.clock()

    def on_validation_start(self, *_: Any) -> None:
        self.validation -= self.clock()

    def on_validation_end(self, *_: Any) -> None:
        self.validation += self.clock()


def measure(arguments: list[str], *, steps: int, seconds: float) -> TrainingRate:
    """Train for some steps after a warm-up, and interleave the bare loops.

    Args:
        arguments: options of `fsanet train`.
        steps: of the training that are timed.
        seconds: for all steps of the bare loops.

    Raises:
        InputError: the recipe is not one of semantic segmentation on one process that loads its
            own data, or wrong in itself.
    """
    recipe = Recipe([*arguments, f"--steps={steps + WARM_UP}", "--task.warmup_steps=0"])
    options = recipe.train_options()
    precisions = {"32-true": "float32", "bf16-mixed": "bfloat16"}
    if options["precision"] not in precisions or str(options["devices"]) != "1":
        raise InputError("give --precision 32-true or bf16-mixed, and one device")
    lightning.seed_everything(recipe.options.seed, verbose=False)
    data = recipe.data()
    if data.workers:
        raise InputError(f"workers={data.workers}: would load during other loops; give 0")
    task = recipe.task(data)
    if not isinstance(task, SemanticSegmentation):
        raise InputError("give a recipe of semantic segmentation")
    data.setup("fit")
    images, _ = next(iter(data.train_dataloader()))  # (B, 3, H, W)
    cuda = torch.cuda.is_available() and options["accelerator"] != "cpu"

    def loop(dtype: str, channels_last: bool) -> Callable[[], None]:
        own = copy.deepcopy(task).train()  # with what is frozen
        return make_training_step(
            own.model,
            tuple(images.shape),
            num_classes=data.num_classes,
            loss=own.loss.to("cuda" if cuda else "cpu"),
            auxiliary_weight=own.auxiliary_weight,
            device="cuda" if cuda else "cpu",
            bfloat16=dtype == "bfloat16",
            channels_last=channels_last,
        )

    def name(dtype: str, channels_last: bool) -> str:
        return f"{dtype}, channels-last" if channels_last else dtype

    kinds = list(product(precisions.values(), (False, True)))
    between = Interleaved(
        {name(*kind): loop(*kind) for kind in kinds}, rounds=steps, seconds=seconds
    )
    options |= {"progress": False, "overwrite": True, "resume": False}
    with tempfile.TemporaryDirectory() as out:
        train(task, data, out=Path(out, "run"), callbacks=[between], **options)
    ending = between.clock() - between.mark
    cycle = Quartiles.of(list(between.training.values())).median * data.steps_per_epoch
    cycle *= options["val_every"]
    return TrainingRate(
        options=arguments,
        same=name(precisions[options["precision"]], recipe.options.task.channels_last),
        images=len(images),
        training=between.training,
        bare=between.taken,
        validation=between.validation,
        ending=ending - between.validation,
        share=between.validation / (between.validation + cycle),
    )


def tables(found: TrainingRate) -> list[Grid]:
    """Rates and their ratios; what comes between the steps."""

    def row(name: str, seconds: Mapping[int, float]) -> tuple[str, ...]:
        taken = Quartiles.of([value / found.images for value in seconds.values()])
        rate = Quartiles(1 / taken.high, 1 / taken.median, 1 / taken.low, taken.count)
        over = [found.bare[found.same], found.bare["float32"]]
        gains = (spread(Quartiles.of(ratios(one, seconds))) for one in over)
        return name, spread(rate), *gains, str(len(seconds))

    heading = ("loop", "images/s", f"times bare {found.same}", "times bare float32", "rounds")
    rows = [row("fsanet train", found.training)]
    rows += [row(f"bare, {name}", seconds) for name, seconds in found.bare.items()]
    rest = [
        ("a validation", significant(found.validation)),
        ("saving and ending, once", significant(found.ending)),
    ]
    title = f"Training, {found.images} images a step"
    return [
        Grid(title, heading, rows, frozenset({0})),
        Grid(
            f"Validation takes {100 * found.share:.1f} % of the whole training",
            ("beside the steps", "seconds"),
            rest,
        ),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--steps", type=int, default=24, help="steps to time")
    parser.add_argument("--seconds", type=float, default=300.0, help="time for the bare loops")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", help="write all numbers to this file")
    given, options = parser.parse_known_args()
    torch.set_num_threads(given.threads)
    reuse_freed_memory()  # as `fsanet train` does
    with user_errors(parser.prog):
        if given.steps < 1:
            raise InputError(f"--steps {given.steps}: give at least 1")
        found = measure(options, steps=given.steps, seconds=given.seconds)
        if given.json:
            write_json(given.json, asdict(found) | {"versions": environment()})
    console = Console(width=180, highlight=False, markup=False)
    for grid in tables(found):
        console.print(grid.markdown(), soft_wrap=True)
    console.print(", ".join(f"{key} {value}" for key, value in environment().items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
