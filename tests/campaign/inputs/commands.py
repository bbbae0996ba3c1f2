"""Options, and places to write to."""

from __future__ import annotations

import json
import os
from pathlib import Path
from random import Random

from campaign.case import Case
from campaign.inputs.common import ODD_NAMES, damage, damage_values, replace_by_special
from campaign.material import ON_DATA, give
from campaign.mutate import HOSTILE, short, words
from fsanet.errors import escaped

_ARGUMENTS = [
    *words("0 -1 1 3 1000000 99999999999999999999 1e9 1e308 nan inf -inf 0.5 0.0001 true false"),
    *words("null none [] {} [1,2] [0,0] 1,2 1:2 -3:4 4:2 : all low a=b * *=4 x.y ../x /dev/null"),
    *words("cpu gpu cuda cuda:99 meta mps tpu cpu:0 auto float16 16-mixed deepspeed fsdp ddp"),
    *words("test val train dot softmax -- - --out @x 32 64 os.system builtins.eval {a:1}"),
    *words("fsanet.data.FolderData CityscapesData SegformerFsa $(id) é"),
    *("", " ", "7 8", "\udcff", "a\nb", "\x1b[31m", "x" * 10_000),
]
_ON_DATA = " ".join(ON_DATA)
_TESTING = (
    "--split --resize --window --stride --window-batch --scales --flip --boundary "
    "--boundary-ratio --trimap --precision --progress --accelerator"
)
#: For each command the options that are given odd values.
_OPTIONS = {
    "predict images/a.png --model net --out out": (
        "--window --stride --scales --flip --batch-size --alpha --score --device --dtype "
        "--accelerator --strategy --offload --confidence --resume --recursive --overlay --legend "
        "--model --cityscapes-export"
    ),
    f"eval net {_ON_DATA} --json scores.json": (
        f"{_TESTING} --data --data.root --data.classes --data.workers --data.batch_size"
    ),
    "train --config recipe.yaml --out out": (
        "--steps --val-every --seed --log-every --global-batch --gradient-clip --accelerator "
        "--strategy --precision --deterministic --sync-batchnorm --task --task.lr --task.loss "
        "--task.optimizer --task.momentum --task.power --task.weight_decay --task.class_weights "
        "--task.warmup_steps --task.ohem_threshold --task.ohem_min_kept --task.freeze_batchnorm "
        "--model --model.k --model.encoder --model.recurrence --model.similarity --model.mean "
        "--model.head_channels --model.dropout --model.output_stride --model.in_channels "
        "--model.decoder --model.decoder_channels "
        "--model.encoder_options --model.pretrained --model.encoder_weights --data --data.crop "
        "--data.scale --data.batch_size --data.steps_per_epoch --data.classes --data.root "
        "--data.class_ratio --data.fill --data.resize --data.accumulate --data.ignore_index "
        "--data.palette --data.cache --test.window --test.scales --config --resume --overwrite"
    ),
    "convert dense --out out --size 64": (
        "--k --match --similarity --route --grid --calibrate --by --images --calibrate-images "
        "--route-error --eval --size --from --overwrite"
    ),
    f"sweep net {_ON_DATA} --out out --k 1": (
        "--k --bands --cuts --match --steps --seeds --retrain --window --scales --split"
    ),
    "export net --out out.onnx": "--size --fixed --out",
    "data check blocks --workers 0": "--layout --num-classes --show --sbd --quick --subset",
    "bench --layers floor --sizes 8x8 --rounds 1 --seconds 1 --channels 8": (
        "--layers --sizes --channels --baseline --batch --dtype --threads --rounds --image --k "
        "--similarity --recurrence --device --paper"
    ),
    "demo --out out --steps 1": "--minutes --steps --seed",
    "": "--version --help -h train predict",
}


def options(rng: Random, root: Path, folder: Path) -> Case:
    """Odd values of options, or options that do not fit together."""
    give(root, folder, "net", "dense", "images", "blocks", "recipe.yaml")
    base = rng.choice(list(_OPTIONS))
    more: list[str] = []
    for option in rng.choices(_OPTIONS[base].split(), k=rng.choice((1, 1, 1, 2))):
        more += [option, *(_argument(rng) for _ in range(rng.choice((1, 1, 1, 2, 0))))]
    # The option, or its name in Python or a recipe, or what was given, unless any message has that.
    bare = [text.strip("-").replace("-", "_") for text in more if text.startswith("--")]
    names = [*more, *map(escaped, more), *bare, *(text.rpartition(".")[2] for text in bare)]
    # A short value is too likely to occur by chance, but not where a message quotes or lists it.
    quoted = [form for text in more for form in (f"'{text}'", f": {text}", f" {text}: ")]
    quoted += [f'"{text}"' for text in bare]
    nameless = not base or any(not text.strip() for text in more)
    return Case(
        folder,
        [*base.split(), *more],
        " ".join(map(short, more)),
        names=()
        if nameless
        else (*(name[:40] for name in names if len(name) > 2 or name == "k"), *quoted),
        outputs=("out", "out.onnx", "scores.json"),
    )


def _argument(rng: Random) -> str:
    if rng.random() < 0.7:
        return rng.choice(_ARGUMENTS)
    value = rng.choice(HOSTILE)
    text = value if isinstance(value, str) else json.dumps(value)
    return text.replace("\0", "").replace("\ud800", "\udc80")


_WRITERS = {
    "predict": "predict images --model net --device cpu --out OUT",
    "train": "train --config recipe.yaml --out OUT",
    "convert": "convert dense --size 64 --out OUT",
    "eval": f"eval net {_ON_DATA} --json OUT",
    "eval tables": f"eval net {_ON_DATA} --out OUT",
    "data": "data check blocks --workers 0 --json OUT",
    "sweep": f"sweep net {_ON_DATA} --k 1 --out OUT",
    "zip": "predict images --model net --device cpu --cityscapes-export OUT",
}
_RESULTS = words("summary.json config.yaml model checkpoints sweep.json scores.json metrics.csv")


def outputs(rng: Random, root: Path, folder: Path) -> Case:
    """Something odd where results are to be written, or old results that are damaged."""
    give(root, folder, "net", "images", "blocks", "recipe.yaml", "dense")
    name = rng.choice(list(_WRITERS))
    out, target = "out", folder / "out"
    what = rng.choice(words("special special file below long old old name used"))
    match what:
        case "special":
            what = replace_by_special(rng, target)
            if what == "self":
                out = "out/below"
        case "file":
            target.write_text("a file\n")
        case "below":
            target.write_text("a file\n")
            out = "out/below"
        case "long":
            out = f"out/{rng.choice(('x' * 300, '/'.join(['y' * 200] * 30)))}"
        case "name":
            out = f"out/{rng.choice(ODD_NAMES).removesuffix('.png')}"
        case "used":
            target.mkdir()
            for one in rng.sample(_RESULTS, 4):
                replace_by_special(rng, target / one)
        case _:
            name = rng.choice(("predict", "sweep"))
            give(root, folder, f"old/{name}")
            os.rename(folder / "old" / name, target)
            os.rmdir(folder / "old")
            file = rng.choice(sorted(path for path in target.rglob("*") if path.is_file()))
            what = f"{file.name}: {_damaged_result(rng, file)}"
    command = [out if text == "OUT" else text for text in _WRITERS[name].split()]
    if name == "predict" and rng.random() < 0.7:
        command.append("--resume")
    return Case(
        folder,
        command,
        f"{name} into {what}",
        names=("out/", "out:", "nowhere", "sweep.json", "--cityscapes-export"),
        outputs=("out", "nowhere", "below"),  # where links point
    )


def _damaged_result(rng: Random, file: Path) -> str:
    if file.suffix == ".json" and rng.random() < 0.6:
        return damage_values(rng, file)
    return damage(rng, file)
