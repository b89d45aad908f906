"""The error that corpus tools raise for bad input; everything else is a bug."""


class DataError(Exception):
    """A corpus, a text file or a vocabulary breaks a rule.

    The message names the file (and line), the rule that is broken and what to change.
    """
