"""Addresses of OpenAI-compatible servers."""

from urllib.parse import urlsplit


def base_url(text: str) -> str:
    """ "http://host:8000", whichever way it was given (with /v1, with a slash). Raises ValueError if it is no such address."""
    try:
        parts = urlsplit(text)
        good = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
    except ValueError:
        good = False
    if not good:
        raise ValueError(f"{text!r} is not an address such as http://host:8000/v1")
    return text.rstrip("/").removesuffix("/v1").rstrip("/")
