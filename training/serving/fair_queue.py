"""Whose turn it is: round robin over owners, and over the lanes of each owner."""

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Items wait in lanes (a sampling session, a model), lanes belong to owners. An owner with ten
    thousand items gets every second turn when one other waits, and so do an owner's lanes."""

    def __init__(self) -> None:
        # the next in turn first, at both levels
        self._owners: OrderedDict[str, OrderedDict[Hashable, deque[T]]] = OrderedDict()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[T]:
        for lanes in self._owners.values():
            for items in lanes.values():
                yield from items

    def push(self, owner: str, lane: Hashable, item: T) -> None:
        self._owners.setdefault(owner, OrderedDict()).setdefault(lane, deque()).append(item)
        self._length += 1

    def pop(self, fits: Callable[[T, bool], bool] = lambda *_: True) -> T | None:
        """The next item, first of its lane, for which fits(item, whether it is the first in turn)
        is true."""
        is_first = True
        for owner, lanes in self._owners.items():
            for lane, items in lanes.items():
                if fits(items[0], is_first):
                    return self._take(owner, lane)
                is_first = False
        return None

    def remove(self, unwanted: Callable[[T], bool]) -> list[T]:
        """All items of that kind, which leave the queue."""
        removed = []
        for owner in list(self._owners):
            lanes = self._owners[owner]
            for lane in list(lanes):
                out = [item for item in lanes[lane] if unwanted(item)]
                if out:
                    removed += out
                    kept = [item for item in lanes[lane] if not unwanted(item)]
                    lanes[lane] = deque(kept)
                    if not kept:
                        del lanes[lane]
            if not lanes:
                del self._owners[owner]
        self._length -= len(removed)
        return removed

    def _take(self, owner: str, lane: Hashable) -> T:
        lanes = self._owners[owner]
        item = lanes[lane].popleft()
        lanes.move_to_end(lane)
        if not lanes[lane]:
            del lanes[lane]
        self._owners.move_to_end(owner)
        if not lanes:
            del self._owners[owner]
        self._length -= 1
        return item
