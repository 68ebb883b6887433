"""Saves and deletes checkpoints without end, as a process for test_store_opening.py to kill.

python -P store_driver.py FOLDER: before each change a line has the checkpoints that will be there,
name -> number of the save, and after it the same line comes again.
"""

import json
import sys

from training.api import LoraConfig
from training.serving.names import TinkerPath
from training.serving.store import Store

SIZE = 50_000
NUM_FILES = 4
OWNER = "anne"


def content(number: int) -> bytes:
    return number.to_bytes(4, "big") * (SIZE // 4)


def listed(store: Store) -> dict[str, int]:
    return {r.path.name: int(r.user_metadata["n"]) for r in store.checkpoints.list(OWNER).rows}


def tell(there: dict[str, int]) -> None:
    print(json.dumps(there), flush=True)


def save(store: Store, name: str, number: int) -> None:
    begun = store.checkpoints.begin(
        OWNER,
        TinkerPath("run", "weights", name),
        base_model="m",
        lora=LoraConfig(),
        has_optimizer=True,
        overwrite=True,
        user_metadata={"n": str(number)},
    )
    folder = begun.folder if number % 3 else store.staging / name
    folder.mkdir()
    for part in range(NUM_FILES):
        (folder / f"{part}.bin").write_bytes(content(number))
    store.checkpoints.commit(begun, None if folder == begun.folder else folder)


def main(folder: str) -> None:
    store = Store(folder)
    there = listed(store)
    tell(there)
    number = max(there.values(), default=0)
    while True:
        number += 1
        # every other save overwrites
        name = "rolling" if number % 2 else f"step-{number}"
        there[name] = number
        tell(there)
        save(store, name, number)
        tell(there)
        if len(there) > 3:
            oldest = min(there, key=lambda name: there[name])
            del there[oldest]
            tell(there)
            assert store.checkpoints.delete(OWNER, TinkerPath("run", "weights", oldest))
            tell(there)


if __name__ == "__main__":
    main(*sys.argv[1:])
