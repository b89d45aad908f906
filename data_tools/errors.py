"""The error that corpus tools raise for bad input; everything else is a bug."""


class DataError(Exception):
    """A corpus, a text file or a vocabulary breaks a rule.

    The message names the file (and line), the rule that is broken and what to change.
    """


class PathError(DataError):
    """A name leads elsewhere: a symbolic link or no plain file where the tools write, or a name that is a path.

    Nothing has been written, removed or followed.
    """
