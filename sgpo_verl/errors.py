"""The one error that users see as a single line: what is wrong, where, and the way out."""


class SgpoError(Exception):
    """Bad input or settings. The message names the offending key, file or row and what to do; no traceback is owed."""
