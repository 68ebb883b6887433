"""Lists of short texts by language models, without repetitions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, create_model

from utils.duplicates import remove_duplicates
from utils.llm.api import Message
from utils.llm.client import LLMClient
from utils.plain_text import continued

logger = logging.getLogger(__name__)

MAX_ROUNDS = 4


async def distinct_items(
    client: LLMClient,
    role: str,
    messages_for: Callable[[int, list[str]], Sequence[Message]],
    *,
    count: int,
    length: tuple[int, int],
    what: str,
    starts: Sequence[str] | None = None,
) -> list[str]:
    """`count` texts, no two of them nearly alike, each of `length` characters at least and at most.

    `messages_for(n, already)` asks for n that differ from those there are already; what repeats is
    asked for again, MAX_ROUNDS times in all. Fewer come back where the model has no more to say,
    and the log tells. `starts` are for models too small to stay with a subject: each text begins
    with one of them and goes on in plain words, for up to `length[1]` characters more. Raises
    LLMError.
    """
    items: list[str] = []
    for round_index in range(MAX_ROUNDS):
        missing = count - len(items)
        model = list_model(missing, length, None if starts is None else tuple(starts[-missing:]))
        answer: Any = await client.structured(
            role, messages_for(missing, items), model, sample_index=round_index
        )
        found = [" ".join(item.split()) for item in _texts(answer)]
        texts = [*items, *(item for item in found if any(map(str.isalnum, item)))]
        items = [texts[i] for i in remove_duplicates(texts).kept][:count]
        if len(items) == count:
            return items
    logger.warning("%s: %d of %d; the rest repeated itself", what, len(items), count)
    return items


@lru_cache(maxsize=256)
def list_model(
    count: int, length: tuple[int, int], starts: tuple[str, ...] | None = None
) -> type[BaseModel]:
    """A model with `count` texts under `items`, or as item_1, item_2, ... with starts of their
    own."""
    low, high = length
    fields: dict[str, Any]
    if starts is None:
        item = Annotated[str, Field(min_length=low, max_length=high)]
        fields = {"items": (list[item], Field(min_length=count, max_length=count))}
    else:
        fields = {
            f"item_{i}": (str, Field(pattern=continued(start, high)))
            for i, start in enumerate(starts, start=1)
        }
    return create_model("Items", __config__=ConfigDict(extra="forbid"), **fields)


def _texts(answer: BaseModel) -> list[str]:
    values = answer.model_dump()
    return values["items"] if "items" in values else list(values.values())
