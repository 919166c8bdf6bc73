"""
Keep glibc's memory allocator from holding on to freed memory: two calls that do nothing with other allocators.

By default, glibc gives each thread an arena of its own, and an arena keeps what is freed in it. With two dozen threads
that each handle megabytes at a time, that is most of a task's memory.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

_M_ARENA_MAX: Final = -8  # from malloc.h
_MAX_ARENAS: Final = 2


def limit_arenas() -> None:
    """Let this process's threads share two arenas, as the environment variable ``MALLOC_ARENA_MAX=2`` does."""
    _call("mallopt", _M_ARENA_MAX, _MAX_ARENAS)


def return_freed_memory() -> None:
    """Return freed memory to the system; glibc would otherwise keep up to a gigabyte after a huge image."""
    _call("malloc_trim", 0)


def _call(function: str, *arguments: int) -> None:
    import ctypes

    with suppress(AttributeError, OSError, TypeError):  # only glibc has these functions
        getattr(ctypes.CDLL(None), function)(*arguments)
