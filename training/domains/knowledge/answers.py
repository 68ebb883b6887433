"""What a model answers without the passage before it: prompts with worked examples, greedy answers,
and how likely the right answer and its rivals are."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from training.api import (
    APIFuture,
    Datum,
    ForwardBackwardOutput,
    ModelInput,
    SampleResponse,
    SamplingClient,
    SamplingParams,
    TrainingClient,
)
from training.chat import (
    datum_from_tokens,
    parse_response,
    render_completion,
    render_prompt,
    stop_sequences,
)
from training.control_tokens import encoder_of
from training.domains.base import Message
from training.domains.knowledge.grading import right_choice
from training.domains.knowledge.passages import Passage, Question, Shot

logger = logging.getLogger(__name__)

PromptForm = Literal["raw", "chat"]
INSTRUCTION = "Each question is answered in a few words."


@dataclass(frozen=True, kw_only=True)
class AnswerSettings:
    """`prompt_form` raw is plain text, for base models and small ones; chat the model's template.

    `logprobs` and `choices` ask for the log-probabilities of right answers and of all choices too.
    Choices take as long as half of a short training, since each is read after its question.
    `context` is the model's, in tokens; None where it names no limit.
    """

    prompt_form: PromptForm = "raw"
    max_answer_tokens: int = 24
    logprobs: bool = True
    choices: bool = False
    context: int | None = None


@dataclass(frozen=True)
class Item:
    """One question. `shown` is a text that may be read before it, as the passage itself."""

    passage: Passage
    question: Question
    shown: str = ""


@dataclass(frozen=True)
class Answer:
    """`logprob` is the right answer's, in nats over all of its tokens; `choice` whether it is more
    likely than each of its rivals. None where that was not asked for, or there are no rivals."""

    text: str
    logprob: float | None = None
    choice: bool | None = None


class Answerer:
    """Asks one model's adapters. Requests are made by ask() and score(); read() waits for them."""

    def __init__(self, tokenizer: Any, settings: AnswerSettings, shots: Sequence[Shot]) -> None:
        self._tokenizer = tokenizer
        self._shots = tuple(shots)
        self.settings = settings
        if settings.prompt_form == "chat":
            stop: Any = stop_sequences(tokenizer)
        else:
            stop = ["\n"]
        self.params = SamplingParams(
            max_tokens=settings.max_answer_tokens, temperature=0.0, stop=stop
        )

    def prompt(self, item: Item) -> list[int]:
        """Raises ValueError where prompt and answer do not fit into the context."""
        if self.settings.prompt_form == "chat":
            tokens = render_prompt(self._tokenizer, self._messages(item))
        else:
            tokens = self._continued(item, "?")[0]
        context, room = self.settings.context, self.settings.max_answer_tokens
        if context is not None and len(tokens) + room > context:
            raise ValueError(
                f"question {item.question.id} of {item.passage.title!r}: its prompt has "
                f"{len(tokens)} tokens, and {room} are wanted for the answer; the model's context "
                f"is {context}. Shorter passages, fewer shots or a smaller max_answer_tokens fit"
            )
        return tokens

    def check(self, item: Item) -> None:
        """Raises ValueError where the question does not fit into the context, with an answer of
        the model's or with one that is to be scored."""
        self.prompt(item)
        context = self.settings.context
        if context is None or not (self.settings.logprobs or self.settings.choices):
            return
        longest = max(datum.model_input.length for datum in self._candidates(item))
        if longest > context:
            raise ValueError(
                f"question {item.question.id} of {item.passage.title!r}: its prompt and its right "
                f"answer have {longest} tokens; the model's context is {context}. A shorter answer "
                "or fewer shots fit"
            )

    def check_all(self, items_Q: Sequence[Item]) -> None:
        """As check(), of each; warns of right answers that max_answer_tokens cuts off, which a
        judge by rule never finds."""
        for item in items_Q:
            self.check(item)
        cut = [item for item in items_Q if self._is_cut_off(item)]
        if cut:
            first, allowed = cut[0], self.settings.max_answer_tokens
            logger.warning(
                "%d of %d questions have right answers of more than max_answer_tokens=%d tokens "
                "and cannot be answered in full, as question %s of %r",
                *(len(cut), len(items_Q), allowed, first.question.id, first.passage.title),
            )

    def ask(self, items_Q: Sequence[Item], sampler: SamplingClient) -> list[APIFuture[Any]]:
        """The answers to come, greedy."""
        return [
            sampler.sample(ModelInput.from_ints(self.prompt(item)), 1, self.params)
            for item in items_Q
        ]

    def score(
        self, items_Q: Sequence[Item], trainer: TrainingClient
    ) -> APIFuture[ForwardBackwardOutput] | None:
        """The log-probabilities to come, of a trainer's weights as they are; None where the
        settings do not ask for them, or nothing is asked."""
        if not items_Q or not (self.settings.logprobs or self.settings.choices):
            return None
        datums = [d for item in items_Q for d in self._candidates(item)]
        return trainer.forward(datums, "cross_entropy")

    def read(
        self,
        items_Q: Sequence[Item],
        asked_Q: Sequence[APIFuture[SampleResponse]],
        scored: APIFuture[ForwardBackwardOutput] | None,
    ) -> list[Answer]:
        """Raises RequestFailedError where the model's weights are not numbers any more."""
        texts_Q = [self._text(future.result().sequences[0].tokens) for future in asked_Q]
        if scored is None:
            return [Answer(text) for text in texts_Q]
        outputs = scored.result().loss_fn_outputs
        sums = iter([float(output["logprobs"].to_numpy().sum()) for output in outputs])
        answers = []
        for item, text in zip(items_Q, texts_Q, strict=True):
            question = item.question
            candidates = self._candidate_texts(question)
            logprobs = [next(sums) for _ in candidates]
            gold = logprobs[candidates.index(question.answer)]
            chosen = right_choice(question, logprobs) if len(candidates) > 1 else None
            answers.append(Answer(text, gold, chosen))
        return answers

    # ------------------------------------------------------------------------------------- private

    def _is_cut_off(self, item: Item) -> bool:
        allowed = self.settings.max_answer_tokens
        # a token has a byte at least, as the blank before the answer, so that most need no tokens
        return all(
            len(gold.encode()) >= allowed and len(self._continued(item, gold)[1]) > allowed
            for gold in (item.question.answer, *item.question.aliases)
        )

    def _text(self, tokens: Sequence[int]) -> str:
        """The first line of what was written."""
        return parse_response(self._tokenizer, tokens).lstrip().partition("\n")[0].strip()

    def _messages(self, item: Item) -> list[Message]:
        messages: list[Message] = []
        for shot in self._shots:
            messages.append({"role": "user", "content": _chat_question(shot.title, shot.question)})
            messages.append({"role": "assistant", "content": shot.answer})
        asked = _chat_question(item.passage.title, item.question.text)
        shown = f"{item.shown}\n\n" if item.shown else ""
        return [*messages, {"role": "user", "content": shown + asked}]

    def _raw_prompt(self, item: Item) -> str:
        blocks = [INSTRUCTION]
        for shot in self._shots:
            blocks.append(f"{_raw_question(shot.title, shot.question)} {shot.answer}")
        if item.shown:
            blocks.append(f"Text: {item.shown}")
        blocks.append(_raw_question(item.passage.title, item.question.text))
        return "\n".join(blocks)

    def _continued(self, item: Item, answer: str) -> tuple[list[int], list[int]]:
        """The tokens of the prompt and of the answer behind it."""
        if self.settings.prompt_form == "chat":
            prompt = render_prompt(self._tokenizer, self._messages(item))
            return prompt, encoder_of(self._tokenizer, [answer]).encode(answer)
        # tokenizers look at what stands before a word, so both are encoded at once
        tokens, weights = render_completion(self._tokenizer, self._raw_prompt(item), f" {answer}")
        start = weights.index(1.0)
        end = len(tokens) - (self._tokenizer.eos_token_id is not None)
        return tokens[:start], tokens[start:end]

    def _candidate_texts(self, question: Question) -> tuple[str, ...]:
        """The choices, or where there are none the right answer."""
        return (self.settings.choices and question.choices) or (question.answer,)

    def _candidates(self, item: Item) -> list[Datum]:
        datums = []
        for text in self._candidate_texts(item.question):
            prompt, answer = self._continued(item, text)
            weights = [0.0] * len(prompt) + [1.0] * len(answer)
            datums.append(datum_from_tokens([*prompt, *answer], weights))
        return datums


def _raw_question(title: str, question: str) -> str:
    return f"Topic: {title}\nQuestion: {question}\nAnswer:"


def _chat_question(title: str, question: str) -> str:
    return f"{INSTRUCTION}\nTopic: {title}\n{question}"
