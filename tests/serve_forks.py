"""Starts scripts/serve.py again and again, by forking: everything is imported once.

    python tests/serve_forks.py SETTINGS...

Reads lines: "start" starts one, whose output comes after a line with its process id; "wait" is
answered with "ended" when it has.
"""

import os
import sys
import traceback
from pathlib import Path

# before this folder, whose folders have the names of packages
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import serve
import torch
import transformers.models.llama.modeling_llama  # noqa: F401
import uvicorn.lifespan.on
import uvicorn.loops.auto
import uvicorn.protocols.http.auto  # noqa: F401

import training.backends.local.service
import training.connect
import training.serving.app  # noqa: F401
from utils.config.entrypoint import config_entrypoint


def child(settings: list[str]) -> None:
    code = 1
    try:
        config_entrypoint(serve.main, settings)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def main(settings: list[str]) -> None:
    torch.set_num_threads(1)
    last = 0
    for line in sys.stdin:
        if line == "wait\n":
            os.waitpid(last, 0)
            print("ended", flush=True)
            continue
        last = os.fork()
        if last == 0:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            child(settings)
        print(f"pid {last}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
