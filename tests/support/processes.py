"""Which processes are alive."""

from __future__ import annotations

import contextlib
from pathlib import Path


def alive_in_session(session: int) -> list[int]:
    """Ids of the processes of a session that have not ended (Linux)."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # After the name in parentheses: state, parent, group, session.
            state, _, _, of = entry.read_text().rpartition(")")[2].split()[:4]
            if int(of) == session and state not in "ZX":
                found.append(int(entry.parent.name))
    return found
