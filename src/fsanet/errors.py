"""The one exception that the command line reports as a single line with exit code 2."""


class InputError(ValueError):
    """The user's input is wrong.

    The message is a single line that says what was given, what is expected and what to do.
    """
