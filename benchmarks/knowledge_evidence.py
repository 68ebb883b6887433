"""Does the inner loop of knowledge incorporation teach what it should, and is its reward reliable?

    uv run benchmarks/knowledge_evidence.py part=sweep   # settings of preset=small, few passages
    uv run benchmarks/knowledge_evidence.py part=d1      # question-and-answer edits, controls
    uv run benchmarks/knowledge_evidence.py part=d2      # reliability of the reward
    uv run benchmarks/knowledge_evidence.py part=d3      # two rounds of ReST-EM against chance
    uv run benchmarks/knowledge_evidence.py part=d4      # what is kept with kl_weight

Made passages, edits by their generator (training wordings), questions in evaluation wordings, the
embedded model, rule judge. Every inner run is stored in benchmarks/results/knowledge_evidence.jsonl
as it is done; the same command goes on where it stopped, then prints its table.

sweep: passage only against statements and questions, for settings on each axis. d1: edits of
questions with answers against the passage alone and against another passage's adapter; 24 passages,
3 seeds of edits and adapters. d2: reliability of the reward between forms of edits, and between
edits of one form that cover a half of the facts each, as drafts of one model do. d3
(knowledge_rounds.py): held-out reward before and after rounds that imitate the best edits, and
edits by chance. d4: general questions that the base model answers right (knowledge_probe.py), asked
again of adapters that are held to the base model on other questions, by kl_weight.
"""

import dataclasses
import logging
import random
import time
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any, Literal

import chz
from knowledge_probe import PROBE
from knowledge_rounds import Rounds, carry_out_rounds
from knowledge_runs import (
    ARM_HEADERS,
    BASE,
    OTHER,
    PASSAGE,
    Record,
    Run,
    arm_rows,
    by_passage,
    carry_out,
    setting_name,
    share,
    stored,
)

from evaluation.stats import paired_difference
from training.connect import connect
from training.domains.knowledge.anchors import AnchorKind, anchor_passages
from training.domains.knowledge.grading import RuleJudge
from training.domains.knowledge.inner import (
    InnerLoop,
    InnerOutcome,
    InnerSettings,
    preset,
)
from training.domains.knowledge.passages import Passage
from training.domains.knowledge.reliability import REWARDS, reliability, reward, spearman_brown
from training.domains.knowledge.sources import Source, open_source
from training.models import context_length, load_tokenizer
from utils.runs.tables import text_table
from utils.student_t import student_t
from utils.terminal import print_anything

logger = logging.getLogger(__name__)

# template forms joined by +; "half qa 3" is the fourth draft of half the lines
DRAFTS = 4
D2_FORMS = ("statements", "cloze", "qa", "reverse", "qa+reverse")


@chz.chz(typecheck=True)
class Config:
    part: Literal["sweep", "d1", "d2", "d3", "d4"] = chz.field(default="d1", doc="what is measured")
    passages: int = chz.field(default=24, doc="made passages; sweep takes 6 of them, d2 and d4 8")
    seeds: int = chz.field(default=3, doc="seeds of edits and adapters; repeats of d2")
    edit: str = chz.field(default="qa+reverse", doc="forms of d1's edits")
    kl_weights: list[float] = chz.field(
        default_factory=lambda: [0.0, 0.3, 0.1], doc="of d4; 0 is what others are compared with"
    )
    kl_edit: str = chz.field(default="qa", doc="forms of d4's edits")
    kl_epochs: int | None = chz.field(
        default=None, doc="of d4's adapters that are held; default: as many as the others have"
    )
    kl_anchors: AnchorKind = chz.field(default="lines", doc="of d4, as in the scripts")
    rank: int | None = chz.field(default=None, doc="of the adapter; default: preset=small's")
    learning_rate: float | None = chz.field(default=None, doc="default: preset=small's")
    epochs: int | None = chz.field(default=None, doc="default: preset=small's")
    passage_epochs: int = chz.field(
        default=15, doc="of the passage alone, which makes about as many tokens as d1's edits have"
    )
    passage_rate: float = chz.field(
        default=1e-3, doc="of the passage alone, which higher rates make worse"
    )
    batch_size: int | None = chz.field(default=None, doc="default: preset=small's")
    at_once: int = chz.field(default=6, doc="adapters that train together")
    choices: bool = chz.field(default=False, doc="4-way choices too, which takes longer")
    max_minutes: float = chz.field(default=1e9, doc="stop after this time; run again to go on")
    d3: Rounds = chz.field(default_factory=Rounds, doc="of part=d3")


def settings_of(
    config: Config,
    *,
    rank: int | None = None,
    learning_rate: float | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
) -> InnerSettings:
    """preset=small with what a sweep and the command change."""
    small = preset("small", base_model="embedded", context=context_length("embedded"))
    lora = {**small.adapt.lora, "rank": rank or config.rank or small.adapt.lora["rank"]}
    return dataclasses.replace(
        small,
        choices=config.choices,
        adapt=dataclasses.replace(
            small.adapt,
            lora=lora,
            batch_size=batch_size or config.batch_size or small.adapt.batch_size,
            max_parallel=config.at_once,
        ),
        learning_rate=learning_rate or config.learning_rate or small.learning_rate,
        num_epochs=epochs or config.epochs or small.num_epochs,
    )


def edit_text(source: Source, passage: Passage, forms: str, seed: int) -> str:
    edits = [source.template_edit(passage, form, seed) for form in forms.split("+")]
    assert None not in edits, f"the source has no template of {forms}"
    return "\n".join(edit for edit in edits if edit is not None)


def half(edit: str, draft: int) -> str:
    """Half of an edit's lines, drawn by the number of the draft."""
    lines = edit.splitlines()
    return "\n".join(random.Random(f"{edit}/{draft}").sample(lines, len(lines) // 2))


def sweep_runs(config: Config, source: Source) -> Iterator[tuple[InnerSettings, list[Run]]]:
    passages = source.passages("test")[:6]
    yield settings_of(config), [Run(BASE, passage, None, 0) for passage in passages]
    for epochs in (10, 20, 40):
        yield (
            settings_of(config, epochs=epochs, learning_rate=config.passage_rate),
            [Run(PASSAGE, passage, "", 0) for passage in passages],
        )
    axes: list[dict[str, Any]] = [{}]
    axes += [{"epochs": n} for n in (2, 6)]
    axes += [{"learning_rate": rate} for rate in (1e-3, 2e-3, 5e-3)]
    axes += [{"rank": rank} for rank in (4, 64)]
    axes += [{"batch_size": size} for size in (2, 8)]
    for changes in axes:
        runs = []
        for forms in ("statements", "qa", "qa+reverse"):
            runs += [Run(forms, p, edit_text(source, p, forms, 0), 0) for p in passages]
        yield settings_of(config, **changes), runs


def d1_runs(config: Config, source: Source) -> Iterator[tuple[InnerSettings, list[Run]]]:
    passages = source.passages("test")[: config.passages]
    runs = [Run(BASE, passage, None, 0) for passage in passages]
    for seed in range(config.seeds):
        for i, passage in enumerate(passages):
            # of the same kind, so that its questions are answered in the same way
            other = passages[(i + 6) % len(passages)]
            edit = edit_text(source, passage, config.edit, seed)
            runs.append(Run(config.edit, passage, edit, seed, asked_too=other))
    yield settings_of(config), runs
    yield (
        settings_of(config, epochs=config.passage_epochs, learning_rate=config.passage_rate),
        [Run(PASSAGE, p, "", seed) for seed in range(config.seeds) for p in passages],
    )


def d2_runs(config: Config, source: Source) -> Iterator[tuple[InnerSettings, list[Run]]]:
    passages = source.passages("test")[:8]
    runs = [Run(BASE, passage, None, 0) for passage in passages]
    for seed in range(config.seeds):
        for passage in passages:
            runs += [Run(f, passage, edit_text(source, passage, f, 0), seed) for f in D2_FORMS]
            whole = edit_text(source, passage, config.edit, 0)
            for draft in range(DRAFTS):
                arm = f"half {config.edit} {draft}"
                runs.append(Run(arm, passage, half(whole, draft), seed))
    yield settings_of(config), runs


def d4_runs(config: Config, source: Source) -> Iterator[tuple[InnerSettings, list[Run]]]:
    passages = source.passages("test")[:8]
    yield settings_of(config), [Run(BASE, passage, None, 0) for passage in (PROBE, *passages)]
    anchors = anchor_passages(config.kl_anchors, source)
    for weight in config.kl_weights:
        settings = settings_of(config, epochs=config.kl_epochs if weight else None)
        yield (
            dataclasses.replace(
                settings,
                adapt=dataclasses.replace(settings.adapt, anchor_weight=weight),
                anchors=anchors,
                anchors_as_lines=config.kl_anchors == "lines",
            ),
            [
                Run(
                    *(config.kl_edit, p, edit_text(source, p, config.kl_edit, 0), 0),
                    asked_too=PROBE,
                    others_arm=_probed(config),
                )
                for p in passages
            ],
        )


def _probed(config: Config) -> str:
    """The arm of what d4's adapters say to the general questions."""
    return OTHER if config.kl_edit == "qa" else f"{OTHER}, {config.kl_edit}"


PARTS = {"sweep": sweep_runs, "d1": d1_runs, "d2": d2_runs, "d4": d4_runs}


def d1_report(records: Sequence[Record], config: Config) -> str:
    rows = []
    for first, second in ((PASSAGE, config.edit), (BASE, config.edit), (BASE, OTHER)):
        for kind in (None, "direct"):
            base, tuned = (by_passage(records, arm, kind) for arm in (first, second))
            both = [passage for passage in base if passage in tuned]
            found = paired_difference([base[p] for p in both], [tuned[p] for p in both], both)
            low, high = found.interval or (None, None)
            rows.append(
                (
                    *(f"{second} - {first}", kind or "all", len(both)),
                    *(found.difference, low, high, found.p),
                )
            )
    headers = ("difference", "questions", "passages", "points", "from", "to", "p")
    return text_table(headers, rows)


def d2_report(records: Sequence[Record], config: Config) -> str:
    outcomes = {
        (record["arm"], record["passage"], record["seed"]): InnerOutcome(
            **{f.name: record[f.name] for f in dataclasses.fields(InnerOutcome) if f.name in record}
        )
        for record in records
    }
    groups = {
        "between forms": D2_FORMS,
        "between drafts": tuple(f"half {config.edit} {draft}" for draft in range(DRAFTS)),
    }
    passages = list(dict.fromkeys(record["passage"] for record in records))
    rows = []
    for group, arms in groups.items():
        for kind in REWARDS:
            rewards_P_K_R = [
                [
                    [
                        reward(kind, outcomes[arm, p, seed], outcomes[BASE, p, 0])
                        for seed in range(config.seeds)
                    ]
                    for arm in arms
                ]
                for p in passages
            ]
            rewards = [[[r for r in row if r is not None] for row in k] for k in rewards_P_K_R]
            found = reliability(rewards)
            rows.append(
                (
                    *(group, kind, len(passages), config.seeds, found.icc),
                    None if found.icc is None else spearman_brown(found.icc, 2),
                    *(found.best.apparent, found.best.honest, found.best.error),
                )
            )
    headers = (
        *("edits", "reward", "passages", "repeats", "ICC", "of 2 repeats"),
        *("best of k", "cross-validated", "+-"),
    )
    return text_table(headers, rows)


def d4_report(records: Sequence[Record], config: Config) -> str:
    """Gain and what is kept, by setting, paired by passage with the first setting."""
    known = next(r["correct_Q"] for r in records if (r["arm"], r["passage"]) == (BASE, PROBE.id))
    before = {r["passage"]: fmean(r["logprobs_Q"]) for r in records if r["arm"] == BASE}
    found: dict[str, dict[str, dict[str, float]]] = {}
    for record in records:
        of_setting = found.setdefault(record["setting"], {"right": {}, "nats": {}, "kept": {}})
        passage = record["trained_on"]
        if record["arm"] == config.kl_edit:
            of_setting["right"][passage] = share([record])
            of_setting["nats"][passage] = fmean(record["logprobs_Q"]) - before[passage]
        elif record["arm"] == _probed(config):
            asked = zip(known, record["correct_Q"], strict=True)
            of_setting["kept"][passage] = 100 * fmean(right for was, right in asked if was)
    first = next(iter(found.values()))
    rows = []
    for setting, measures in found.items():
        for measure, values in measures.items():
            passages = [passage for passage in first[measure] if passage in values]
            if len(passages) < 2:
                continue
            here = student_t([values[p] for p in passages])
            row = [setting, measure, len(passages), here.mean, *here.interval]
            if values is not first[measure]:
                base, tuned = ([of[p] for p in passages] for of in (first[measure], values))
                against = paired_difference(base, tuned, passages)
                row += [against.difference, *(against.interval or (None, None)), against.p]
            rows.append(row + [None] * (10 - len(row)))
    headers = ("setting", "measure", "passages", "mean", "from", "to")
    headers += ("against the first", "from", "to", "p")
    table = text_table(headers, rows)
    return f"{sum(known)} of {len(known)} general questions are right before.\n{table}"


def main(config: Config) -> None:
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    print_anything()
    if config.part == "d3":
        carry_out_rounds(config.d3, connect())
        return
    deadline = time.monotonic() + 60 * config.max_minutes
    source = open_source("made", num_train=0, num_test=config.passages)
    service, tokenizer = connect(), load_tokenizer("embedded")
    rows, records = [], []
    for settings, runs in PARTS[config.part](config, source):
        loop = InnerLoop(service, tokenizer, settings, RuleJudge(), source.shots)
        carry_out(loop, runs, at_once=config.at_once, deadline=deadline)
        done, name = stored(), setting_name(settings)
        found = [done[key] for run in runs for key in run.keys(name) if key in done]
        rows += arm_rows(found)
        records += found
    print(text_table(ARM_HEADERS, rows))
    if config.part == "d1":
        print(f"\n{d1_report(records, config)}")
    elif config.part == "d2":
        print(f"\n{d2_report(records, config)}")
    elif config.part == "d4":
        print(f"\n{d4_report(records, config)}")


if __name__ == "__main__":
    chz.nested_entrypoint(main)
