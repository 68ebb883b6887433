"""What a self-edit may look like: its forms, and the prompts that ask for each of them.

After SEAL (arXiv 2506.10943) are implications in three lengths, rewrite, self-qa, chain-of-thought
and none, which asks for nothing; pairs is after EntiGraph (arXiv 2409.07431). For small models are
qa, statements, cloze and reverse: short lines, worked examples before them, and a grammar
(edit_grammars.py). With form=model the model chooses form and learning rate itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from training.domains.base import Message, Problem, RawPrompt
from training.domains.knowledge.passages import Passage
from utils.config.errors import raise_problems

PromptForm = Literal["raw", "chat"]
# worked examples of a form: passages of no split with an edit of each
ExampleEdits = Callable[[str], Sequence[tuple[Passage, str]]]

MODEL = "model"
# what begins the next example, where a model goes on with one
RAW_STOP = ("\n\nTitle:",)


class Form(NamedTuple):
    """`task` says in the imperative what to write; `header` is what a raw prompt ends with. Where
    there is `counts_after`, what the model writes up to that line is no part of the edit. `line`
    is the regular expression of all that counts in forms of single lines."""

    task: str
    header: str
    counts_after: str | None = None
    line: str | None = None


_QA_LINE = r"Q: \S.*\? A: \S.*"

FORMS: dict[str, Form] = {
    "implications": Form(
        "Note what can be concluded from the text, one conclusion in each line. Some are said "
        "there, others only follow. Each line has to make sense to somebody who has not read it.",
        "Conclusions:",
    ),
    "implications-long": Form(
        "Note at least fifteen conclusions that can be drawn from the text, one in each line. "
        "Go through all of its facts, then through what they mean together. Each line has to make "
        "sense to somebody who has not read it.",
        "Fifteen or more conclusions:",
    ),
    "implications-very-long": Form(
        "Note every conclusion that can be drawn from the text, forty or more, one in each line. "
        "Take each fact by itself, each two facts together, and what both say about causes, order, "
        "amounts and people. Each line has to make sense to somebody who has not read it.",
        "All conclusions, forty or more:",
    ),
    "rewrite": Form(
        "Tell the whole text again, four times, each time in other words and another order, and "
        "with every name, number and date. Each retelling is one line.",
        "Retellings:",
    ),
    "self-qa": Form(
        "Make an exam about the text: numbered questions, each followed by its full answer, in "
        "lines that begin with `Question 1:`, `Answer:`, `Question 2:` and so on. No question may "
        "point to the text itself.",
        "Question 1:",
    ),
    "chain-of-thought": Form(
        "First think about the text: what is new in it, and what might somebody ask? Then write a "
        "line with nothing but `Conclusions:`, and below it what can be concluded from the text, "
        "one conclusion in each line.",
        "Thoughts:",
        counts_after="Conclusions:",
    ),
    "pairs": Form(
        "First list the people, places, things and ideas of the text in one line, with semicolons "
        "between them. Then write a line with nothing but `Relations:`, and below it a line for "
        "each two of them: their names, a colon, and what the text lets us say about both.",
        "Listed:",
        counts_after="Relations:",
    ),
    "none": Form("", ""),
    "qa": Form(
        "Write questions about the text with their answers, each in one line: `Q: ...? A: ...`. "
        "Take the answers word for word from the text. Name what a question is about.",
        "Questions and answers:",
        line=_QA_LINE,
    ),
    "statements": Form(
        "Write each fact of the text as a short sentence of its own, one in each line. Name what "
        "it is about, and end with what the text says of it.",
        "Facts:",
        line=r"\S.*\S[.!?]",
    ),
    "cloze": Form(
        "Write sentences about the text with a gap, `____`, where its most important words stood, "
        "and after each, in the same line, `Answer:` and these words.",
        "Sentences with gaps:",
        line=r"[^_]*_{3,}[^_]* Answer: \S.*",
    ),
    "reverse": Form(
        "Write questions that tell a fact of the text and ask what it belongs to, each with its "
        "answer in one line: `Q: ...? A: ...`.",
        "Which is it?",
        line=_QA_LINE,
    ),
}


@dataclass(frozen=True)
class Choices:
    """What the model may choose from with form=model."""

    forms: tuple[str, ...] = ("qa", "statements", "cloze", "reverse")
    learning_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)

    def __post_init__(self) -> None:
        problems = []
        # "none" asks for nothing that could be told in a list
        if unknown := sorted(set(self.forms) - (FORMS.keys() - {"none"})):
            problems.append(f"model_forms: {unknown} cannot be; allowed are {_known()}")
        if not self.forms or len(set(self.forms)) < len(self.forms):
            problems.append(
                f"model_forms={list(self.forms)}: one or more to choose from, each once"
            )
        rates = self.learning_rates
        if not rates or len(set(rates)) < len(rates) or not all(0 < rate < 1 for rate in rates):
            problems.append(
                f"model_rates={list(rates)}: one or more learning rates to choose from, between 0 "
                "and 1, each once"
            )
        raise_problems(problems)

    def head(self, form: str, learning_rate: float) -> str:
        """The line that such an edit begins with."""
        return json.dumps({"form": form, "learning_rate": learning_rate})


DEFAULT_CHOICES = Choices()


def check_form(form: str) -> None:
    """Raises ConfigError for a form that there is not."""
    if form != MODEL and form not in FORMS:
        raise_problems([f"form={form!r}: there is no such form; allowed are {_known()}, {MODEL}"])


class EditPrompts:
    """The prompts that ask for one form of self-edits, as chats or as raw texts to be continued.

    `example_edit` gives the worked examples that precede the passage. Raises ConfigError for an
    unknown form.
    """

    def __init__(
        self,
        form: str,
        *,
        prompt_form: PromptForm = "chat",
        example_edit: ExampleEdits | None = None,
        choices: Choices = DEFAULT_CHOICES,
    ) -> None:
        check_form(form)
        self.form = form
        self.prompt_form: PromptForm = prompt_form
        self.choices = choices
        self._examples = [] if example_edit is None else _examples(form, example_edit, choices)

    def problem(self, passage: Passage, *, grammar: str | None = None) -> Problem:
        """For a policy; what it holds for its domain is the passage."""
        if self.prompt_form == "chat":
            return Problem(passage.id, self.messages(passage), passage, grammar=grammar)
        raw = self.raw(passage)
        return Problem(
            passage.id, [{"role": "user", "content": raw.text}], passage, raw=raw, grammar=grammar
        )

    def messages(self, passage: Passage) -> list[Message]:
        task, _ = self._task()
        if not task:
            return [{"role": "user", "content": f"{passage.title}\n\n{passage.context}"}]
        # the task stands before the first text alone: it is as long as two of them
        texts = [_text(told) for told in (*(shown for shown, _ in self._examples), passage)]
        texts[0] = f"{task}\n\n{texts[0]}"
        turns: list[Message] = []
        for text, (_, edit) in zip(texts, self._examples, strict=False):
            turns.append({"role": "user", "content": text})
            turns.append({"role": "assistant", "content": edit})
        return [*turns, {"role": "user", "content": texts[-1]}]

    def raw(self, passage: Passage) -> RawPrompt:
        task, header = self._task()
        if not task:
            return RawPrompt(f"{passage.title}\n\n{passage.context}\n\n")
        parts = [task, *(f"{_text(shown)}\n\n{header}\n{edit}" for shown, edit in self._examples)]
        # a tokenizer may join what follows a line break or a blank to it
        end = header if header == FORMS["self-qa"].header else f"{header}\n"
        return RawPrompt("\n\n".join([*parts, f"{_text(passage)}\n\n{end}"]), RAW_STOP)

    def _task(self) -> tuple[str, str]:
        if self.form != MODEL:
            return FORMS[self.form].task, FORMS[self.form].header
        kinds = "\n".join(f"- {form}: {FORMS[form].task}" for form in self.choices.forms)
        rates = ", ".join(json.dumps(rate) for rate in self.choices.learning_rates)
        return (
            "Write notes from which a model can learn the text. First choose their form, and the "
            f"learning rate of the training, one of {rates}. The first line is "
            f"`{self.choices.head('...', self.choices.learning_rates[0])}` with your choice, the "
            f"notes stand below it. The forms:\n{kinds}",
            "Notes:",
        )


def _examples(form: str, example_edit: ExampleEdits, choices: Choices) -> list[tuple[Passage, str]]:
    if form != MODEL:
        return list(example_edit(form))
    # each of another form, so that none is copied, with the rates in turn
    found = []
    for at, (chosen, rate) in enumerate(zip(choices.forms, _cycled(choices), strict=False)):
        examples = example_edit(chosen)
        if at < len(examples):
            shown, edit = examples[at]
            found.append((shown, f"{choices.head(chosen, rate)}\n{edit}"))
    return found


def _cycled(choices: Choices) -> list[float]:
    rates = choices.learning_rates
    return [rates[(len(rates) // 2 + i) % len(rates)] for i in range(len(choices.forms))]


def _text(passage: Passage) -> str:
    return f"Title: {passage.title}\nText: {passage.context}"


def _known() -> str:
    return ", ".join(FORMS)
