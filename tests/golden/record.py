"""Golden values: what users of the command line and of the public names get, recorded.

    python tests/golden/record.py              record all (networks and run folder, then values)
    python tests/golden/record.py --values [ITEM ...]   record values alone, of some items or all
    python tests/golden/record.py --compare    table of what was recorded and what is now

The tree that is measured is the one that `import fsanet` finds; for another one set PYTHONPATH.
The values in values.json, and the folders saved/ and run/, are of the tree before its redesign:
record again only what is meant to be different, and say so.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
VALUES = HERE / "values.json"


def main() -> int:
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path.insert(0, str(HERE.parent))
    from golden import items

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--values", nargs="*", metavar="ITEM", help="record values, no folders")
    group.add_argument("--compare", nargs="*", metavar="ITEM", help="print a table of differences")
    options = parser.parse_args()
    chosen = options.compare if options.compare is not None else options.values
    unknown = set(chosen or ()) - items.ITEMS.keys()
    if unknown:
        parser.error(f"no item {', '.join(sorted(unknown))}; there are {', '.join(items.ITEMS)}")
    names = chosen or list(items.ITEMS)
    if options.compare is not None:
        return compare(names)
    if options.values is None:
        items.write_artefacts()
    record(names)
    return 0


def record(names: list[str]) -> None:
    """Measure and write; items that are not measured stay as they were recorded."""
    from golden import items

    values = json.loads(VALUES.read_text()) if VALUES.is_file() else {}
    values = {name: values.get(name) for name in items.ITEMS}
    for name in names:
        began = time.perf_counter()
        values[name] = items.measured(name, recording=True)
        print(f"{name}: {time.perf_counter() - began:.1f} s", flush=True)
    VALUES.write_text(as_text(values))


def as_text(values: dict) -> str:
    """JSON that a person can read and a diff can show: a line for each second level."""
    parts = []
    for name, item in values.items():
        lines = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in item.items())
        parts.append(f"{json.dumps(name)}: {{\n{lines}\n}}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def compare(names: list[str]) -> int:
    """Print the table; 1 if an item is outside its tolerances."""
    from golden import items
    from golden.compare import compare as compared

    import fsanet

    recorded = json.loads(VALUES.read_text())
    print(f"tree: {Path(fsanet.__file__).parent}\n")
    print("| item | recorded | now | equal / within tolerance |\n| --- | --- | --- | --- |")
    different = 0
    for name in names:
        try:
            outcome = compared(recorded[name], items.measured(name))
            row = (outcome.recorded, outcome.now, outcome.verdict)
            different += bool(outcome.problems)
        except Exception as error:  # the table is to be whole
            different += 1
            line = " ".join(str(error).split())[:160]
            row = ("", "", f"DIFFERENT: {type(error).__name__}: {line}")
        print(f"| {name} | {' | '.join(text.replace('|', '/') for text in row)} |", flush=True)
    print(f"\n{len(names) - different} of {len(names)} items equal or within tolerance")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
