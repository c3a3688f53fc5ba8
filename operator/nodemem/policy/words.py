"""Numbers and names as they stand in a sentence."""

from collections.abc import Sequence


def count(number: int, what: str) -> str:
    """``1 node``, ``1,200 nodes``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def some(names: Sequence[str], most: int = 3) -> str:
    """``n1, n2, n3 and 40 more``."""
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most:,} more"
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1]))) if names else "none"


def clip(text: str, most: int) -> str:
    """What is longer than the API server takes ends in an ellipsis."""
    return text if len(text) <= most else f"{text[: most - 3].rstrip()}..."
