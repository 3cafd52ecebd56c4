"""The one error that users see as a single line: what is wrong, where, and the way out."""


class SgpoError(Exception):
    """Bad input or settings. The message names the offending key, file or row and what to do; no traceback is owed.

    problem: what is wrong. way_out: what to do, where it is not a part of ``problem``; the message is both.
    """

    def __init__(self, problem: str, way_out: str = ""):
        super().__init__(f"{problem}; {way_out}" if way_out else problem)
        self.problem, self.way_out = problem, way_out
