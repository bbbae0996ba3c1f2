"""Record golden values again, of items that are meant to be different: say so in the change log.

    python tests/golden/record.py ITEM ...       write the values of these items
    python tests/golden/record.py --compare      print how each item compares with what was recorded

The values, networks and the run folder here were written by version 0.1.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

VALUES = Path(__file__).resolve().parent / "values.json"


def main() -> int:
    sys.path.insert(0, str(VALUES.parents[1]))
    from golden import items
    from golden.compare import differences

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("items", nargs="*", choices=[*items.ITEMS, []], metavar="ITEM")
    parser.add_argument("--compare", action="store_true", help="print, write nothing")
    options = parser.parse_args()
    if not options.items and not options.compare:
        parser.error(f"name the items to record: {', '.join(items.ITEMS)}")
    values = json.loads(VALUES.read_text())
    different = 0
    for name in options.items or items.ITEMS:
        now = items.measured(name)
        found = list(differences(values.get(name), now))
        different += bool(found)
        print(f"{name}: {f'DIFFERENT: {found[0]} (of {len(found)})' if found else 'as recorded'}")
        values[name] = now
    if options.compare:
        return 1 if different else 0
    VALUES.write_text(as_text({name: values[name] for name in items.ITEMS}))
    return 0


def as_text(values: dict) -> str:
    """JSON that a person can read and a diff can show: a line for each second level."""
    parts = []
    for name, item in values.items():
        lines = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in item.items())
        parts.append(f"{json.dumps(name)}: {{\n{lines}\n}}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    sys.exit(main())
