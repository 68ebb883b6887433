"""Runs scripts/generate.py once for each line of arguments (JSON) on stdin, and prints the process
id when it starts and the exit code at its end.

A program of its own, so that it can import everything once and fork before any thread exists.
"""

import json
import os
import sys
import traceback
from pathlib import Path

# before this folder, whose folders have the names of packages
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import generate

import training.endpoints  # noqa: F401
import utils.llm.openai_endpoint  # noqa: F401
from utils.config.entrypoint import config_entrypoint


def run(arguments: list[str]) -> int:
    """The exit code, and all output in log.txt."""
    descriptor = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    try:
        config_entrypoint(generate.main, arguments, layers=("config_file", "params_file"))
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


for line in sys.stdin:
    child = os.fork()
    if child == 0:
        code = run(json.loads(line))
        sys.stdout.flush()
        os._exit(code)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
