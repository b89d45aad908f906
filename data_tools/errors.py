"""The errors that corpus tools raise for bad input; everything else is a bug."""


class DataError(Exception):
    """A corpus, a text file or a vocabulary breaks a rule.

    The message names the file (and line), the rule that is broken and what to change.
    """


class Refusal(Exception):
    """What is asked for is refused before anything is done: a retry fails until the command or a setting changes.

    The exit status is then 2, in both programs.
    """


class RefusedError(Refusal, DataError):
    """An output that may not be replaced, or an input that cannot be meant."""


class PathError(DataError):
    """A name leads elsewhere: a symbolic link or no plain file where the tools write, or a name that is a path.

    Nothing has been written, removed or followed.
    """
