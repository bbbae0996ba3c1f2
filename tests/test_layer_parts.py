"""benchmarks/layer_parts.py: each layer has all parts, none of them counted twice."""

import sys

import pytest
from support.scripts import load_benchmark

from fsanet.attention import frequency


def test_every_layer_has_all_parts(monkeypatch, capsys):
    script = load_benchmark("layer_parts")
    monkeypatch.setattr(script, "reuse_freed_memory", lambda: None)
    for names in script.PARTS.values():
        for name in names:  # the script replaces them: put back at the end
            monkeypatch.setattr(frequency, name, getattr(frequency, name))
    arguments = ["--sizes", "12x16", "--channels", "16", "--rounds", "1"]
    arguments += ["--dtypes", "float32", "bfloat16"]
    monkeypatch.setattr(sys, "argv", ["layer_parts.py", *arguments])
    script.main()
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "12x16 |" in line]
    floor, names = ("x.sum()", "x + x"), ("x.sum()", "x + x", *script.LAYERS)
    assert [row[1] for row in rows] == [f"{name}, float32" for name in names] + [
        f"{name}, bfloat16" for name in names
    ]
    for row in rows:
        if row[1].startswith(floor):
            assert row[3:] == ["", "", ""]
            continue
        whole, *parts = (float(cell.split()[0].replace(",", "")) for cell in row[2:])
        assert all(part > 0 for part in parts)
        assert sum(parts) == pytest.approx(whole, rel=0.02)  # each is rounded
