"""`--help` of the commands, read from the source text of the functions that they call.

Nothing is imported for it, so it takes no time; torch alone would take seconds. Each option comes
from a signature and its docstring. ``**options`` leads on to the function that they are passed to.
"""

from __future__ import annotations

import ast
import contextlib
import re
import shutil
import textwrap
from collections.abc import Iterator, Sequence, Set
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import docstring_parser

from fsanet.errors import InputError

__all__ = ["EVALUATION", "FROM_DATA", "Section", "help_page", "requested_help"]

_SOURCES = Path(__file__).resolve().parents[2]
_CLASSES = {
    "model": ("FsaNet", "SegformerFsa", "MaskRcnnFsa"),
    "data": (
        *("CamVidData", "CityscapesData", "Ade20kData", "VocAugData", "FolderData", "SceneData"),
        *("CocoData", "InstanceFolderData", "InstanceSceneData"),
    ),
    "task": ("SemanticSegmentation", "InstanceSegmentation"),
}
#: What networks and tasks take from the data, so that it is no option.
FROM_DATA = {"model", "num_classes", "classes", "palette", "category_ids", "ignore_index"}


class Section(NamedTuple):
    """Options that one function or class declares.

    Attributes:
        where: module and name, ``"fsanet.train.run:evaluate"``.
        title: printed above them.
        skip: parameters that are no options.
        names_only: list the names only.
        note: printed below.
    """

    where: str
    title: str = "options"
    skip: Set[str] = frozenset()
    names_only: bool = False
    note: str = ""


class Option(NamedTuple):
    """A parameter of a function, as its source has it."""

    name: str
    positional: bool
    required: bool
    annotation: str
    default: str
    text: str


EVALUATION = Section(
    "fsanet.train.run:evaluate",
    "how the network is tested, and on which data",
    skip={"model", "data"},
    note="--data CLASS --data.root DIR ...: data of a network that is not in a run folder; "
    "--data.help lists the classes, --data.help CLASS their options, and --plugin FILE adds "
    "classes of your own",
)


def requested_help(
    command: str, arguments: Sequence[str], sections: Sequence[Section]
) -> str | None:
    """The help that arguments ask for; None if they do not."""
    for index, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if name in ("--help", "-h"):
            return help_page(command, sections)
        kind, _, last = name.removeprefix("--").partition(".")
        if last == "help" and kind in _CLASSES:
            following = [text for text in arguments[index + 1 : index + 2] if text[:1] != "-"]
            return _class_page(kind, value or "".join(following))
    return None


def help_page(command: str, sections: Sequence[Section]) -> str:
    """What ``fsanet COMMAND --help`` prints; the first section describes the command."""
    options = [(section, options_of(section.where, section.skip)) for section in sections]
    required = [
        f"{one.name.upper()}{' ...' if one.annotation.startswith('list') else ''}"
        if one.positional
        else f"{_flag(one)} {_value(one)}"
        for section, found in options
        for one in found
        if one.required and (section is sections[0] or not one.positional)
        if not section.names_only and not section.title.startswith("instead")
    ]
    page = [" ".join(["usage: fsanet", command, *required, "[options]"])]
    for section, found in options:
        page += [] if section is sections[0] else ["", f"{section.title}:"]
        if section.where.startswith("fsanet.cli."):
            for part in (_documentation(section.where).description or "").split("\n\n"):
                page += ["", textwrap.fill(_plain(part), _width())]
        page += ["", "options:"] if section is sections[0] else []
        if section.names_only:
            page.append(_indented(", ".join(_flag(one).removeprefix("--") for one in found)))
        else:
            page += [_entry(_flag(one), one) for one in found]
        if section.note:
            page.append(_indented(section.note))
    return "\n".join(page) + "\n"


def _class_page(kind: str, path: str) -> str:
    """The classes that a recipe may name as its data, network or task, and the options of one."""
    name = path.rpartition(".")[2] or ("" if kind == "data" else _CLASSES[kind][0])
    page = []
    if not path:
        page = [f"--{kind}.help CLASS shows the options of:"]
        for one in _CLASSES[kind]:
            page.append(f"  {one:22}{_summary(_find_class(one))}")
    if name:
        where = _find_class(name)
        skip = frozenset() if kind == "data" else FROM_DATA
        page += [f"\n{name}: {_summary(where)}"]
        for option in options_of(where, skip):
            page.append(_entry(f"--{kind}.{_flag(option).removeprefix('--')}", option))
    return "\n".join(page).lstrip() + "\n"


def _find_class(name: str) -> str:
    for folder in ("models", "data", "train"):
        for file in sorted((_SOURCES / "fsanet" / folder).rglob("*.py")):
            module = ".".join(file.relative_to(_SOURCES).with_suffix("").parts)
            if isinstance(_definition(module, name), ast.ClassDef):
                return f"{module}:{name}"
    known = ", ".join(one for names in _CLASSES.values() for one in names)
    raise InputError(f"no class {name!r} in fsanet: {known}")


def options_of(where: str, skip: Set[str] = frozenset()) -> list[Option]:
    """The options that a function or class declares, and those that its ``**options`` lead to."""
    found: dict[str, Option] = {}
    for option in _declared(where):
        found.setdefault(option.name, option)
    return [option for name, option in found.items() if name not in skip]


def _declared(where: str) -> Iterator[Option]:
    module, _, name = where.partition(":")
    node = _definition(module, name)
    assert node is not None
    if isinstance(node, ast.ClassDef):
        own = [one for one in node.body if getattr(one, "name", "") == "__init__"]
        if not own:
            yield from _declared(_resolve(module, ast.unparse(node.bases[0])))
            return
        function = own[0]
    else:
        function = node
    assert isinstance(function, ast.FunctionDef)
    texts = {
        name: one.description or ""
        for one in _documentation(where).params
        for name in one.arg_name.split(", ")
    }
    arguments = function.args
    defaults: list[ast.expr | None] = [None] * (len(arguments.args) - len(arguments.defaults))
    for positional, given, values in (
        (True, arguments.args, defaults + arguments.defaults),
        (False, arguments.kwonlyargs, arguments.kw_defaults),
    ):
        for argument, default in zip(given, values, strict=True):
            if argument.arg == "self":
                continue
            annotation = "" if argument.annotation is None else ast.unparse(argument.annotation)
            yield Option(
                argument.arg,
                positional and node is function,
                default is None,
                _alias(module, annotation),
                "" if default is None else ast.unparse(default),
                _plain(texts.get(argument.arg, "")),
            )
    if arguments.kwarg is not None:
        yield from _passed_on(module, node, function, arguments.kwarg.arg)


def _passed_on(
    module: str, node: ast.stmt, function: ast.FunctionDef, keyword: str
) -> Iterator[Option]:
    """Options of the functions that are called with ``**keyword``."""
    for call in ast.walk(function):
        if not isinstance(call, ast.Call):
            continue
        named = {one.arg for one in call.keywords}
        spread = [one.value for one in call.keywords if one.arg is None]
        if not any(isinstance(value, ast.Name) and value.id == keyword for value in spread):
            continue
        callee = ast.unparse(call.func)
        if callee == "super().__init__":
            assert isinstance(node, ast.ClassDef)
            callee = ast.unparse(node.bases[0])
        target = _resolve(module, callee)
        if target:
            passed = list(_declared(target))
            left_out = [one.name for one in passed][: len(call.args)]
            yield from (one for one in passed if one.name not in named | {*left_out})


def _resolve(module: str, name: str) -> str:
    """Where a name that a module of fsanet uses is defined; "" for one of another package."""
    if _definition(module, name) is not None:
        return f"{module}:{name}"
    for node in ast.walk(_tree(module)):
        if (
            isinstance(node, ast.ImportFrom)
            and (node.module or "").startswith("fsanet.")
            and name in [alias.name for alias in node.names]
        ):
            return f"{node.module}:{name}"
    return ""


def _alias(module: str, annotation: str) -> str:
    """An annotation, with the module's own name for a type replaced by the type."""
    for node in _tree(module).body:
        if (
            isinstance(node, ast.Assign)
            and ast.unparse(node.targets[0]) == annotation.split(" ")[0]
        ):
            return ast.unparse(node.value)
    return annotation


@lru_cache
def _tree(module: str) -> ast.Module:
    file = _SOURCES.joinpath(*module.split(".")).with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8"))


def _definition(module: str, name: str) -> ast.FunctionDef | ast.ClassDef | None:
    found = [
        node
        for node in _tree(module).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name
    ]
    return found[-1] if found else None  # the last: overloads come before


def _documentation(where: str) -> docstring_parser.Docstring:
    module, _, name = where.partition(":")
    node = _definition(module, name)
    assert node is not None
    return docstring_parser.parse(ast.get_docstring(node) or "")


def _summary(where: str) -> str:
    return _plain(_documentation(where).short_description or "")


def _plain(text: str) -> str:
    """Text of a docstring on one line, without its markup."""
    return re.sub(r":class:|`+", "", " ".join(text.split()))


def _flag(option: Option) -> str:
    name = option.name if option.positional else option.name.rstrip("_").replace("_", "-")
    no = "[no-]" if option.default == "True" else ""
    return name if option.positional else f"--{no}{name}"


def _value(option: Option) -> str:
    """What follows an option on the command line."""
    types = option.annotation.replace(" | None", "")
    if types == "bool":
        return ""
    if types.startswith("Literal["):
        return "{" + ",".join(ast.literal_eval(types.removeprefix("Literal"))) + "}"
    name = option.name.rstrip("_").rpartition("_")[2].upper()
    return {
        "int": "N",
        "float": "X",
        "tuple[int, int]": "N N",
        "int | tuple[int, int]": "N [N]",
        "tuple[float, float]": "X X",
    }.get(types, f"{name} ..." if types.startswith(("list", "Sequence")) else name)


def _entry(flag: str, option: Option) -> str:
    """The lines that describe an option."""
    head = flag if option.positional else f"{flag} {_value(option)}".rstrip()
    text = option.text.rstrip(".")
    if option.required and not option.positional:
        text += " (required)"
    elif option.default not in ("", "None", "False", "True", "()") and "default" not in text:
        with contextlib.suppress(ValueError):  # the name of a constant
            default = ast.literal_eval(option.default)
            shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
            text += f" (default: {shown})"
    lines = textwrap.wrap(text, _width() - 26)
    if lines and len(head) < 23:
        head = f"{head:24}{lines.pop(0)}"
    return "\n".join([f"  {head}", *(" " * 26 + line for line in lines)])


def _indented(text: str) -> str:
    return textwrap.fill(text, _width(), initial_indent="  ", subsequent_indent="  ")


def _width() -> int:
    return max(60, min(100, shutil.get_terminal_size().columns - 2))
