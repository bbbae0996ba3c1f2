"""The one exception that the command line reports as a single line with exit code 2."""


class InputError(ValueError):
    """The user's input is wrong.

    The message is a single line that says what was given, what is expected and what to do.
    """


def one_line(error: object) -> str:
    """The message of another library's error on one line, without control characters.

    >>> one_line(ValueError("a\\n  b\\x1b[31m"))
    'a b\\\\x1b[31m'
    """
    return printable(" ".join(str(error).split()), 200) or type(error).__name__


def printable(text: str, length: int = 100) -> str:
    """A name from a file, of at most ``length`` characters, with control characters escaped.

    >>> printable("wall\\n")
    'wall\\\\n'
    """
    text = text if len(text) <= length else text[: length - 3] + "..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
