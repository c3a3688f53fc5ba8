"""What a limit comes to on one mount: for the controller, which foretells it, and the agent, which does it."""

from nodemem.api.types import SMALLEST_LIMIT_BYTES, Adjust

LARGEST_LIMIT_BYTES = (1 << 63) - (1 << 20)
"""Above, the kernel's own arithmetic overflows."""


def target_bytes(adjust: Adjust, limit_bytes: int, original_bytes: int) -> int:
    """What a limit makes of a mount that had ``original_bytes`` when it was found.

    Of the size found, not of the one now: a cap that is eased lets the mount grow again, up to what it had.
    """
    if adjust == "Shrink":
        return min(limit_bytes, original_bytes)
    return max(limit_bytes, original_bytes) if adjust == "Grow" else limit_bytes


def whole_pages(size_bytes: int, page_size_bytes: int) -> int:
    """Rounded up, as the kernel does. Never 0, never below the smallest limit nor above the largest."""
    size_bytes = min(max(size_bytes, SMALLEST_LIMIT_BYTES), LARGEST_LIMIT_BYTES)
    return -(-size_bytes // page_size_bytes) * page_size_bytes
