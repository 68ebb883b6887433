"""The 27 tasks of BIG-Bench-Hard (Suzgun et al., arXiv 2210.09261): what each asks and how its
answers look.

Answer formats, lengths and numbers of choices are those of test-time training on BBH (Akyürek et
al., arXiv 2411.07279); the sentences are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from utils.config.entrypoint import ConfigError

AnswerFormat = Literal["letter", "words", "parentheses", "integer", "choice"]

LETTER = "Answer with the letter of the right option alone, such as (A)."
INTEGER = "Answer with a whole number alone."
WORDS = "Answer with the words alone, separated by spaces."
PARENTHESES = "Answer with the missing brackets alone, separated by spaces."


@dataclass(frozen=True)
class BBHTask:
    """`generation_length` is in tokens. `num_choices` is fixed per task, although the options of
    some items are more or fewer; None where an answer is not chosen."""

    name: str
    question: str
    answer_format: AnswerFormat
    hint: str
    generation_length: int
    num_choices: int | None

    @property
    def instruction(self) -> str:
        return f"{self.question} {self.hint}"

    @property
    def chance(self) -> float:
        """Accuracy in percent of guessing among `num_choices`; 0 where there are none."""
        return 100.0 / self.num_choices if self.num_choices else 0.0


def _letter(name: str, num_choices: int, question: str) -> BBHTask:
    return BBHTask(name, question, "letter", LETTER, 3, num_choices)


def _either(name: str, first: str, second: str, question: str) -> BBHTask:
    hint = f"Answer with '{first}' or '{second}' alone."
    return BBHTask(name, question, "choice", hint, 1, 2)


_SHUFFLED = "Several people swap what they hold, one pair after another; find what one of them has "
_DEDUCTION = "Clues fix the order of some objects; find the statement that follows from them."

TASKS = (
    _either(
        *("boolean_expressions", "True", "False"),
        "Work out the value of a Boolean expression.",
    ),
    _either(
        *("causal_judgement", "Yes", "No"),
        "Judge a question about cause and effect as most people would.",
    ),
    _letter("date_understanding", 6, "Find the date that follows from what is said."),
    _letter("disambiguation_qa", 3, "Say whom a pronoun means, or that this cannot be known."),
    BBHTask(
        "dyck_languages",
        "Close the brackets that are still open, in the right order.",
        *("parentheses", PARENTHESES, 3, None),
    ),
    _either(
        *("formal_fallacies", "valid", "invalid"),
        "Decide whether an argument follows from its premises by logic alone.",
    ),
    _letter("geometric_shapes", 11, "Name the shape that an SVG path draws."),
    _letter("hyperbaton", 2, "Choose the sentence whose adjectives stand in the usual order."),
    _letter("logical_deduction_five_objects", 5, _DEDUCTION),
    _letter("logical_deduction_seven_objects", 7, _DEDUCTION),
    _letter("logical_deduction_three_objects", 3, _DEDUCTION),
    _letter("movie_recommendation", 4, "Choose the film that goes best with the films named."),
    BBHTask(
        "multistep_arithmetic_two",
        "Work out an arithmetic expression.",
        *("integer", INTEGER, 3, None),
    ),
    _either(
        *("navigate", "Yes", "No"),
        "Follow the directions and say whether they end where they began.",
    ),
    BBHTask(
        "object_counting", "Count the things that are asked for.", *("integer", INTEGER, 2, None)
    ),
    _letter("penguins_in_a_table", 5, "Answer a question about a table of penguins."),
    _letter(
        "reasoning_about_colored_objects", 18, "Answer a question about coloured things on a table."
    ),
    _letter("ruin_names", 4, "Choose the funny edit of the name of an artist, band or film."),
    _letter(
        "salient_translation_error_detection",
        6,
        "Say what kind of error an English translation of a German sentence has.",
    ),
    _letter("snarks", 2, "Choose the sarcastic one of two sentences."),
    _either(
        *("sports_understanding", "yes", "no"),
        "Say whether a sentence about sports is plausible.",
    ),
    _letter("temporal_sequences", 4, "Find when somebody could have gone to a place."),
    _letter("tracking_shuffled_objects_five_objects", 5, _SHUFFLED + "at the end."),
    _letter("tracking_shuffled_objects_seven_objects", 7, _SHUFFLED + "at the end."),
    _letter("tracking_shuffled_objects_three_objects", 3, _SHUFFLED + "at the end."),
    _either(
        *("web_of_lies", "Yes", "No"),
        "Some people tell the truth and some lie; say whether one of them tells the truth.",
    ),
    BBHTask("word_sorting", "Sort the words alphabetically.", *("words", WORDS, 50, None)),
)
BY_NAME = {task.name: task for task in TASKS}


def choose_tasks(names: list[str], start: int = 0, end: int | None = None) -> list[BBHTask]:
    """The named tasks, or numbers start..end-1 of the table. Raises a ConfigError for unknown names
    and for an empty range."""
    if names:
        unknown = [name for name in names if name not in BY_NAME]
        if unknown:
            raise ConfigError(f"tasks names {unknown}; known are {', '.join(BY_NAME)}")
        if len(set(names)) < len(names):
            raise ConfigError(f"tasks={names}: each name once")
        return [BY_NAME[name] for name in names]
    end_or_all = len(TASKS) if end is None else end
    if not 0 <= start < end_or_all <= len(TASKS):
        raise ConfigError(
            f"task_start={start}, task_end={end}: 0 <= task_start < task_end <= {len(TASKS)}"
        )
    return list(TASKS[start:end_or_all])
