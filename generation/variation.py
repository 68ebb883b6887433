"""People and topics that texts are asked to be about: drawn, because models that are only told to
vary repeat themselves."""

from __future__ import annotations

import random
from typing import NamedTuple

PEOPLE = (
    "a nurse", "a high school student", "a retired teacher", "a farmer", "a software developer",
    "a single parent", "a small shop owner", "a violinist", "a bus driver", "an accountant",
    "a first-year university student", "a chef", "a novelist", "a mechanic", "a physiotherapist",
    "a city council member", "a landlord", "a tenant", "a volunteer firefighter", "a librarian",
    "a sales manager", "a lab technician", "a grandparent", "a football coach", "an architect",
    "a translator", "a pharmacist", "a job seeker", "a wedding planner", "a hobby astronomer",
    "a customer support agent", "a kindergarten teacher", "a carpenter", "a journalist",
    "a new employee", "a data analyst", "a beekeeper", "a tour guide", "a night-shift guard",
    "a graduate student",
)  # fmt: skip
TOPICS = (
    "a family budget", "a garden", "a job application", "a science project", "a car repair",
    "a birthday speech", "a medical check-up", "a spreadsheet", "a history essay", "a long trip",
    "a rental contract", "a training plan", "a recipe", "a small business", "a broken laptop",
    "a school exam", "a difficult colleague", "a charity event", "a short story", "a house sale",
    "a password policy", "a music lesson", "a tax form", "a pet", "a website", "a moving day",
    "a news article", "a chess opening", "a bank loan", "a team meeting", "a home renovation",
    "a language course", "a neighbour", "a public talk", "a diet", "a research paper",
    "a photo collection", "a bicycle", "a town festival", "a weather forecast",
)  # fmt: skip


class Variation(NamedTuple):
    person: str
    topic: str


def draw_variations(count: int, *key: object) -> list[Variation]:
    """`count` of them, the same for the same key; each person and each topic comes once before any
    comes again."""
    rng = random.Random(repr(key))
    return [
        Variation(person, topic)
        for person, topic in zip(_draw(PEOPLE, count, rng), _draw(TOPICS, count, rng), strict=True)
    ]


def _draw(values: tuple[str, ...], count: int, rng: random.Random) -> list[str]:
    drawn: list[str] = []
    while len(drawn) < count:
        drawn += rng.sample(values, len(values))
    return drawn[:count]
