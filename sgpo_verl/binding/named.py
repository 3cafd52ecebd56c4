"""Whatever verl, or a library that it uses, raises for bad input: as our one line."""

from collections.abc import Iterator
from contextlib import contextmanager

from sgpo_verl.errors import SgpoError


@contextmanager
def named(what: str) -> Iterator[None]:
    """Raises SgpoError: ``what``, and the first words of the reason."""
    try:
        yield
    except SgpoError:
        raise
    except Exception as error:
        cause = error
        while isinstance(cause.__cause__, Exception):  # the first of the chain is the reason
            cause = cause.__cause__
        reason = next((line.strip() for line in str(cause).splitlines() if line.strip()), "no reason given")
        raise SgpoError(f"{what} ({type(cause).__name__}: {reason[:300]})") from error
