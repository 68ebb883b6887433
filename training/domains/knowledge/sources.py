"""Where passages come from: made worlds, SQuAD, or files of the user's own."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol, get_args

from training.domains.base import Split
from training.domains.knowledge.kinds.registry import KINDS
from training.domains.knowledge.made_edits import (
    TEMPLATE_FORMS,
    TemplateForm,
    shots,
    template_edit,
)
from training.domains.knowledge.own_files import FORMS, read_own
from training.domains.knowledge.passages import Passage, Question, Shot
from training.domains.knowledge.rows import Row
from training.domains.knowledge.squad import HUB_NAME, load_squad, read_squad, subset
from training.domains.knowledge.worlds import World
from utils.config.entrypoint import ConfigError, raise_problems
from utils.runs.files import expanded

logger = logging.getLogger(__name__)

SourceName = Literal["made", "squad", "own"]
SOURCES: tuple[SourceName, ...] = get_args(SourceName)
_MAX_PROBLEMS = 10
_NUM_EXAMPLES = 2
# what the two files of a folder may be called: train, test
_SQUAD_FILES = (
    ("train.json", "test.json"),
    ("squad_train.json", "squad_val.json"),
    ("train-v1.1.json", "dev-v1.1.json"),
)


class TooFewError(ConfigError):
    """A file holds fewer passages than are asked for."""


class Source(Protocol):
    """`has_questions` is False where nothing can be asked, and so nothing be rewarded. `shots` are
    worked examples of the answer prompt, about things of no split, in wordings of training."""

    name: str
    has_questions: bool
    shots: tuple[Shot, ...]

    def passages(self, split: Split) -> list[Passage]: ...

    def template_edit(self, passage: Passage, form: str, seed: int) -> str | None:
        """The edit of the passage's generator, or None where it has none, or not of that form."""
        ...

    def example_edit(self, form: str) -> tuple[tuple[Passage, str], ...]:
        """Worked examples of edits, about things of no split; none for forms that have none."""
        ...


def open_source(
    name: str,
    *,
    data_path: str | None = None,
    seed: int = 0,
    num_train: int,
    num_test: int,
    start: int = 0,
    kinds: Sequence[str] = (),
) -> Source:
    """The source that `name` names.

    - made: the world `seed`, of these `kinds` (none: all); the splits are different things.
    - squad: `data_path` is a file of SQuAD v1.1, a folder with a file for each split, or None for
      the hub (train and validation). Each is shuffled with seed 42, as in SEAL; the test passages
      are those from `start` on. The train passages are so too if they have a file of their own,
      else they are the next ones.
    - own: `data_path` is a file or folder; it is split as one file of SQuAD is.

    Raises ConfigError, with all that is wrong, for an unknown source or kind, files that are not
    what they should be, and more passages than there are (TooFewError of a file); FileNotFoundError
    for a missing file.
    """
    numbers: dict[Split, int] = {"train": num_train, "test": num_test}
    problems = [
        f"num_{split}={number}: a number of passages cannot be negative"
        for split, number in numbers.items()
        if number < 0
    ]
    if start < 0:
        problems.append(f"start={start}: has to be 0 or more")
    if name not in SOURCES:
        problems.append(f"source={name!r}: there is no such source; one of {', '.join(SOURCES)}")
    elif name == "made" and data_path is not None:
        problems.append(
            f"data_path={data_path!r}: source=made reads no file; give source=squad or own"
        )
    elif name == "own" and data_path is None:
        problems.append(f"data_path=None: source=own needs {FORMS}")
    if name != "made" and kinds:
        problems.append(f"kinds={list(kinds)}: only source=made has kinds")
    by_name = {kind.name: kind for kind in KINDS}
    problems += [
        f"kinds: there is no kind {kind!r}; choose from {', '.join(by_name)}"
        for kind in kinds
        if kind not in by_name
    ]
    raise_problems(problems)
    if name == "made":
        chosen = tuple(by_name[kind] for kind in dict.fromkeys(kinds)) or KINDS
        return MadeSource(World(seed, chosen), numbers)
    if name == "squad":
        return FileSource("squad", _squad_rows(data_path, numbers, start))
    assert data_path is not None
    return FileSource("own", _own_rows(expanded(data_path), numbers, start))


class MadeSource:
    name = "made"
    has_questions = True

    def __init__(self, world: World, numbers: dict[Split, int]) -> None:
        """Raises ConfigError for a seed or numbers that no world has."""
        try:
            self._passages = {s: world.passages(s, number) for s, number in numbers.items()}
        except ValueError as error:
            raise ConfigError(str(error)) from error
        things = [t for split, number in numbers.items() for t in world.things(split, number)]
        self._things = {thing.id: thing for thing in things}
        shown = world.things("shown", _NUM_EXAMPLES + 1)
        self._examples = dict(
            zip(world.passages("shown", _NUM_EXAMPLES), shown[:_NUM_EXAMPLES], strict=True)
        )
        # not what the examples of edits are about: a prompt may hold both
        self.shots = shots(shown[-1])

    def passages(self, split: Split) -> list[Passage]:
        return list(self._passages[split])

    def template_edit(self, passage: Passage, form: str, seed: int) -> str | None:
        """Raises KeyError for a passage of another source."""
        known = _template_form(form)
        return None if known is None else template_edit(self._things[passage.id], known, seed)

    def example_edit(self, form: str) -> tuple[tuple[Passage, str], ...]:
        known = _template_form(form)
        if known is None:
            return ()
        return tuple((p, template_edit(thing, known, 0)) for p, thing in self._examples.items())


class FileSource:
    """Passages of files; their worked examples are about things of a made world."""

    def __init__(self, name: str, passages_by_split: dict[Split, list[Passage]]) -> None:
        self.name = name
        self._passages = passages_by_split
        passages = [passage for split in passages_by_split.values() for passage in split]
        self.has_questions = all(passage.questions for passage in passages)
        self._made = _made_examples()
        self.shots = self._made.shots

    def passages(self, split: Split) -> list[Passage]:
        return list(self._passages[split])

    def template_edit(self, passage: Passage, form: str, seed: int) -> str | None:
        return None

    def example_edit(self, form: str) -> tuple[tuple[Passage, str], ...]:
        return self._made.example_edit(form)


@functools.cache
def _made_examples() -> MadeSource:
    return MadeSource(World(), {"train": 0, "test": 0})


def _template_form(form: str) -> TemplateForm | None:
    return next((known for known in TEMPLATE_FORMS if known == form), None)


def _squad_rows(
    data_path: str | None, numbers: dict[Split, int], start: int
) -> dict[Split, list[Passage]]:
    if data_path is None:
        wanted = [split for split, number in numbers.items() if number]
        parts = {split: (HUB_NAME, load_squad(split)) for split in wanted}
        return _apart(parts, numbers, start)
    path = expanded(data_path)
    problems: list[str] = []
    if path.is_dir():
        files = _squad_files(path)
        parts = {
            split: (str(file), read_squad(file, problems))
            for split, file in files.items()
            if numbers[split]
        }
        raise_problems(problems, at_most=_MAX_PROBLEMS)
        return _apart(parts, numbers, start)
    _require(path, "a file of SQuAD v1.1 or a folder with one for each split")
    rows = read_squad(path, problems)
    raise_problems(problems, at_most=_MAX_PROBLEMS)
    return _together("squad", str(path), rows, numbers, start)


def _own_rows(path: Path, numbers: dict[Split, int], start: int) -> dict[Split, list[Passage]]:
    _require(path, FORMS)
    problems: list[str] = []
    rows = read_own(path, problems)
    raise_problems(problems, at_most=_MAX_PROBLEMS)
    return _together("own", str(path), rows, numbers, start)


def _apart(
    parts: dict[Split, tuple[str, list[Row]]], numbers: dict[Split, int], start: int
) -> dict[Split, list[Passage]]:
    """Each split from rows of its own."""
    made: dict[Split, list[Passage]] = {"train": [], "test": []}
    for split, (place, rows) in parts.items():
        chosen = _subset(place, _passages(f"squad/{split}", rows, "squad"), start, numbers[split])
        _log("squad", split, chosen, place)
        made[split] = chosen
    return made


def _together(
    name: str, place: str, rows: list[Row], numbers: dict[Split, int], start: int
) -> dict[Split, list[Passage]]:
    """Both splits from the same rows, the test passages first."""
    chosen = _subset(place, _passages(name, rows, name), start, sum(numbers.values()))
    made: dict[Split, list[Passage]] = {
        "test": chosen[: numbers["test"]],
        "train": chosen[numbers["test"] :],
    }
    for split, passages in made.items():
        _log(name, split, passages, place)
    return made


def _subset(place: str, passages: list[Passage], start: int, number: int) -> list[Passage]:
    try:
        return subset(passages, start, number)
    except ValueError as error:
        raise TooFewError(f"{place}: {error}") from error


def _passages(prefix: str, rows: list[Row], name: str) -> list[Passage]:
    """Called by their place, as titles may occur many times."""
    passages = []
    for i, row in enumerate(rows):
        passage_id = f"{prefix}/{i}"
        questions = tuple(
            Question(f"{passage_id}/{j}", text, answer)
            for j, (text, answer) in enumerate(row.questions)
        )
        cluster = row.title if name == "squad" else passage_id
        passages.append(Passage(passage_id, row.title, row.context, questions, cluster))
    return passages


def _squad_files(folder: Path) -> dict[Split, Path]:
    for train, test in _SQUAD_FILES:
        if (folder / train).is_file() and (folder / test).is_file():
            return {"train": folder / train, "test": folder / test}
    pairs = "; ".join(f"{train} and {test}" for train, test in _SQUAD_FILES)
    raise FileNotFoundError(
        f"data_path={str(folder)!r}: a folder holds both files of one of these pairs: {pairs}"
    )


def _require(path: Path, wanted: str) -> None:
    if not path.exists():
        raise FileNotFoundError(f"data_path={str(path)!r}: no such file; give {wanted}")


def _log(name: str, split: str, passages: list[Passage], place: str) -> None:
    logger.info(
        "%s %s: %d passages with %d questions from %s",
        name,
        split,
        len(passages),
        sum(len(passage.questions) for passage in passages),
        place,
    )
