"""The sums of benchmarks/serving_clients.py asked by the openai client, in an environment with it.

    python benchmarks/ask_openai.py URL KEY MODEL TASKS

TASKS: a file with {"questions": [...], "texts": [[...], ...], "max_tokens": ...}. Prints one JSON
object: "chat" and "streamed", the answers to the questions; "written", what follows the first part
of each text in a line; "choice", the logprob of each text's end after that part.
"""

import json
import sys
from pathlib import Path
from typing import Any

import openai


def main(url: str, key: str, model: str, tasks_file: str) -> None:
    tasks = json.loads(Path(tasks_file).read_text(encoding="utf-8"))
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=key)
    limit = tasks["max_tokens"]
    told: dict[str, list[Any]] = {"chat": [], "streamed": [], "written": [], "choice": []}
    for question in tasks["questions"]:
        messages = [{"role": "user", "content": question}]
        shared: dict[str, Any] = {
            "model": model,
            "messages": messages,
            "max_tokens": limit,
            "temperature": 0,
        }
        reply = client.chat.completions.create(**shared)
        told["chat"].append(reply.choices[0].message.content)
        chunks = client.chat.completions.create(**shared, stream=True)
        told["streamed"].append("".join(c.choices[0].delta.content or "" for c in chunks))
    for prompt, *endings in tasks["texts"]:
        reply = client.completions.create(
            model=model, prompt=prompt, max_tokens=limit, temperature=0, stop="\n"
        )
        told["written"].append(reply.choices[0].text)
        scored = client.completions.create(
            model=model,
            prompt=[prompt + ending for ending in endings],
            max_tokens=0,
            echo=True,
            logprobs=0,
        )
        told["choice"].append([ending_logprob(c.logprobs, len(prompt)) for c in scored.choices])
    print(json.dumps(told))


def ending_logprob(logprobs: Any, start: int) -> float:
    """Of the tokens from that character on."""
    pairs = zip(logprobs.text_offset, logprobs.token_logprobs, strict=True)
    return sum(logprob for offset, logprob in pairs if offset >= start)


if __name__ == "__main__":
    main(*sys.argv[1:])
