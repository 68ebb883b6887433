"""Samples with vLLM or llama.cpp for benchmarks/sampling.py, as a process in their environment:
nothing of this project is imported here.

The first line of standard input are the settings, each further one a prompt with the number of its
answers; each is answered by a line on standard output: {"ready": what it is}, then the lengths of
the answers, or {"error": why not}. Everything that the libraries print goes to standard error.
"""

import importlib.metadata
import json
import os
import sys
from collections.abc import Callable
from typing import Any

# sample(prompt, number of answers) -> their lengths
Sample = Callable[[list[int], int], list[int]]


def vllm_sampler(settings: dict[str, Any]) -> tuple[str, Sample]:
    import vllm  # pyrefly: ignore[missing-import]

    llm = vllm.LLM(
        model=settings["model"],
        dtype=settings["dtype"],
        max_model_len=settings["prompt_tokens"] + settings["max_tokens"],
        max_num_seqs=settings["max_rows"],
        gpu_memory_utilization=0.5,
        skip_tokenizer_init=True,
        seed=0,
    )

    def sample(prompt: list[int], num_samples: int) -> list[int]:
        # logprobs too, as the engine has them
        params = vllm.SamplingParams(
            n=num_samples,
            max_tokens=settings["max_tokens"],
            temperature=1.0,
            ignore_eos=True,
            logprobs=0,
            detokenize=False,
        )
        (output,) = llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)
        return [len(answer.token_ids) for answer in output.outputs]

    return f"vLLM {vllm.__version__}", sample


def llama_cpp_sampler(settings: dict[str, Any]) -> tuple[str, Sample]:
    import xllamacpp  # pyrefly: ignore[missing-import]

    rows = settings["max_rows"]
    params = xllamacpp.CommonParams()
    params.model.path = settings["gguf"]
    params.n_parallel = rows
    # a slot takes a multiple of 256
    length = settings["prompt_tokens"] + settings["max_tokens"]
    params.n_ctx = rows * (-(-length // 256) * 256)
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings["threads"]
    params.cache_prompt = False
    server = xllamacpp.Server(params)

    def sample(prompt: list[int], num_samples: int) -> list[int]:
        answer = server.handle_completions(
            {
                "prompt": prompt,
                # read once for all of them
                "n": num_samples,
                "n_predict": settings["max_tokens"],
                "ignore_eos": True,
                "temperature": 1.0,
                "samplers": ["temperature"],
                "cache_prompt": False,
            }
        )
        if "error" in answer:
            raise RuntimeError(answer["error"])
        if any(choice["finish_reason"] != "length" for choice in answer["choices"]):
            raise RuntimeError(f"an answer ended early: {answer['choices']}")
        return [answer["usage"]["completion_tokens"]] * len(answer["choices"])

    return f"llama.cpp (xllamacpp {importlib.metadata.version('xllamacpp')})", sample


SAMPLERS = {"vllm": vllm_sampler, "llama.cpp": llama_cpp_sampler}


def main() -> None:
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def tell(**values: Any) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    settings = json.loads(sys.stdin.readline())
    try:
        about, sample = SAMPLERS[settings["rival"]](settings)
    except ImportError as error:
        tell(error=f"it is not installed there ({error})")
        return
    tell(ready=about)
    for line in sys.stdin:
        asked = json.loads(line)
        tell(lengths=sample(asked["prompt"], asked["num_samples"]))


if __name__ == "__main__":
    main()
