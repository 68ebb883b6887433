"""How long OpenMP's threads spin while they wait for each other.

libgomp, which torch's wheels bring on Linux, lets a thread that waits at the end of a parallel
region spin for about 3 ms before it sleeps. Alone that saves a wake-up; where other processes want
the cores too, a thread then burns its share of them waiting for one that was sent off its core, and
the program slows down far more than its share: benchmarks/busy.py measures it, benchmarks/LOG.md
says how the bound was chosen.
"""

import logging
import os
import sys

logger = logging.getLogger(__name__)

SPIN_COUNT = 10_000
# what users may have set themselves; libgomp takes the first over the second
OWN_CHOICES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def bound_spinning() -> None:
    """Bounds the spinning of this process and its children, unless the user has chosen.

    libgomp reads its environment when torch loads it. Where torch is imported already, this process
    keeps spinning as it does (the log says so, once) and only its children are bounded.
    """
    if sys.platform != "linux" or any(name in os.environ for name in OWN_CHOICES):
        return
    os.environ["GOMP_SPINCOUNT"] = str(SPIN_COUNT)
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() > 1 and not torch.cuda.is_available():
        logger.warning(
            "torch was imported before connect(), so its threads spin as long as OpenMP's default "
            "says, which makes this process collapse beside other busy ones; call connect() before "
            "torch is imported, or set GOMP_SPINCOUNT=%d before Python starts",
            SPIN_COUNT,
        )
