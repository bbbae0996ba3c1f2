"""The one exception the command line turns into a clear line and exit code 2."""


class InputError(ValueError):
    """Something the user gave is wrong.

    The message is one line: what was wrong, where, and what to do.
    """
