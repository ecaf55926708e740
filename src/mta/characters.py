"""Text that every library can take: no half characters."""

from __future__ import annotations


def whole_characters(text: str) -> str:
    """Replace half surrogate pairs by a visible mark: JSON can carry them, UTF-8 files and tokenizers refuse them."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
