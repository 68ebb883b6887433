"""A program that holds engines, for tests that end it: prints their process ids, and waits.

python tests/pool_driver.py CHECKPOINT_DIR [MODEL]
"""

import sys
import time

from training.api import Datum, ModelInput
from training.connect import connect


def main(folder: str, model: str | None = None) -> None:
    service = connect("processes", num_engines=2, checkpoint_dir=folder, device="cpu")
    pids = [lane.link.pid for lane in service.pool.lanes]  # pyrefly: ignore[missing-attribute]
    if model is not None:
        client = service.create_lora_training_client(model, rank=4, seed=0)
        weights = {"target_tokens": [4] * 4, "weights": [1.0] * 4}
        client.forward_backward([Datum(ModelInput.from_ints([3] * 4), weights)], "cross_entropy")
    print(*pids, flush=True)
    try:
        time.sleep(600)
    finally:
        service.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
