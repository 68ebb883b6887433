"""What there is to know: passages, and the questions that show whether a model knows them."""

from dataclasses import dataclass
from typing import Literal

# plain: of a data set; the others are those of made worlds
QuestionKind = Literal["plain", "direct", "reverse", "derived"]


@dataclass(frozen=True)
class Question:
    """One question with its gold answer. `choices`, where there are any, hold the answer among
    others of its kind; `aliases` are other texts that are as right as `answer`."""

    id: str
    text: str
    answer: str
    kind: QuestionKind = "plain"
    choices: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Passage:
    """A text to be learned, and its questions, which are never trained on.

    `cluster` names what passages share that makes their scores depend on each other: the title
    in SQuAD, the passage itself in made worlds. Intervals are clustered by it.
    """

    id: str
    title: str
    context: str
    questions: tuple[Question, ...]
    cluster: str


@dataclass(frozen=True)
class Shot:
    """A worked example of the answer prompt: a question about something of no split."""

    title: str
    question: str
    answer: str
