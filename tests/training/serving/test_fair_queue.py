"""Turns of owners and of their lanes."""

from training.serving.fair_queue import FairQueue


def drained(queue: FairQueue[str]) -> list[str]:
    found = []
    while (item := queue.pop()) is not None:
        found.append(item)
    assert not len(queue) and not list(queue)
    return found


def test_owners_and_their_lanes_take_turns():
    queue: FairQueue[str] = FairQueue()
    for i in range(4):
        queue.push("ann", "one", f"a1{i}")
    queue.push("ann", "two", "a2")
    for i in range(2):
        queue.push("bob", "one", f"b{i}")
    assert len(queue) == 7 == len(list(queue))
    assert drained(queue) == ["a10", "b0", "a2", "b1", "a11", "a12", "a13"]


def test_an_owner_who_comes_back_waits_for_the_others():
    queue: FairQueue[str] = FairQueue()
    queue.push("ann", 1, "a0")
    queue.push("bob", 1, "b0")
    assert queue.pop() == "a0"
    queue.push("ann", 1, "a1")
    assert drained(queue) == ["b0", "a1"]


def test_what_does_not_fit_keeps_its_place():
    queue: FairQueue[str] = FairQueue()
    for name in ("ann", "bob"):
        for i in range(2):
            queue.push(name, 1, f"{name}{i}")
    seen = []

    def only_bob(item: str, is_first: bool) -> bool:
        seen.append((item, is_first))
        return item.startswith("bob")

    assert queue.pop(only_bob) == "bob0"
    assert seen == [("ann0", True), ("bob0", False)]
    assert queue.pop(lambda *_: False) is None and len(queue) == 3
    assert drained(queue) == ["ann0", "bob1", "ann1"]


def test_removed_items_leave_the_order_of_the_rest():
    queue: FairQueue[str] = FairQueue()
    for i in range(3):
        queue.push("ann", i, f"a{i}")
        queue.push("bob", 0, f"b{i}")
    assert sorted(queue.remove(lambda item: item in ("a0", "b0", "b1", "b2"))) == [
        "a0",
        "b0",
        "b1",
        "b2",
    ]
    assert len(queue) == 2 and drained(queue) == ["a1", "a2"]
