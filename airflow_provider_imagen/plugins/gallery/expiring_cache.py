"""A bounded cache that forgets, for coroutines."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable

Result = TypeVar("Result")


class ExpiringCache(Generic[Result]):
    """
    A bounded LRU cache with expiry, in which concurrent callers of one key share one computation.

    Over its limits, it evicts the least recently used result first, but never the newest.

    :param entries: maximum number of results
    :param seconds: time until a result expires; one that took longer to compute is kept three times as long as that, so
        that however often it is requested, the server works on it for a quarter of the time at most
    :param max_bytes: maximum estimated size of all results
    :param size_of: returns the estimated size of a result in bytes
    :param clock: returns the time in seconds
    """

    def __init__(
        self,
        *,
        entries: int,
        seconds: float,
        max_bytes: int,
        size_of: Callable[[Result], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._entries = entries
        self._seconds = seconds
        self._max_bytes = max_bytes
        self._size_of = size_of
        self._clock = clock
        self._bytes = 0
        self._kept: OrderedDict[Hashable, tuple[float, int, Result]] = OrderedDict()  # expiry, size, result
        self._locks: dict[Hashable, tuple[asyncio.Lock, int]] = {}
        self._sweep: asyncio.TimerHandle | None = None

    def knows(self, key: Hashable) -> bool:
        """Return whether a result is cached and has not expired."""
        kept = self._kept.get(key)
        return kept is not None and self._clock() < kept[0]

    async def get(
        self,
        key: Hashable,
        work: Callable[[], Awaitable[Result]],
        *,
        is_current: Callable[[Result], bool] = lambda _: True,
    ) -> Result:
        """
        Return the cached result, or compute and cache it.

        :param is_current: returns whether a cached result may still be used
        """
        lock, waiting = self._locks.get(key) or (asyncio.Lock(), 0)
        self._locks[key] = (lock, waiting + 1)
        try:
            async with lock:
                if self.knows(key) and is_current(self._kept[key][2]):
                    self._kept.move_to_end(key)
                    return self._kept[key][2]
                started = self._clock()
                result = await work()
                self._keep(key, result, seconds=max(self._seconds, 3 * (self._clock() - started)))
                return result
        finally:
            lock, waiting = self._locks[key]
            if waiting == 1:
                del self._locks[key]
            else:
                self._locks[key] = (lock, waiting - 1)

    def _keep(self, key: Hashable, result: Result, *, seconds: float) -> None:
        self._drop(key)
        size = self._size_of(result)
        self._kept[key] = (self._clock() + seconds, size, result)
        self._bytes += size
        while len(self._kept) > 1 and (len(self._kept) > self._entries or self._bytes > self._max_bytes):
            self._drop(next(iter(self._kept)))
        loop = asyncio.get_running_loop()
        if self._sweep is None or self._sweep.when() < loop.time():  # overdue: the loop it was for has ended
            self._sweep = loop.call_later(self._seconds, self._drop_stale)

    def _drop(self, key: Hashable) -> None:
        if (kept := self._kept.pop(key, None)) is not None:
            self._bytes -= kept[1]

    def _drop_stale(self) -> None:
        for key in [key for key in self._kept if not self.knows(key)]:
            self._drop(key)
        loop = asyncio.get_running_loop()
        self._sweep = loop.call_later(self._seconds, self._drop_stale) if self._kept else None
