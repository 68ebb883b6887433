"""Which passages the sequences of continual self-edits are made of."""

from __future__ import annotations

import random
from typing import NamedTuple

from training.domains.knowledge.answers import Answerer, Item
from training.domains.knowledge.config import chosen_source, source_of
from training.domains.knowledge.continual_config import ContinualConfig
from training.domains.knowledge.passages import Passage
from training.domains.knowledge.sources import Source, TooFewError
from utils.config.errors import ConfigError

# SEAL draws its sequences from all of SQuAD's validation set, each with a seed of its own
SQUAD_PASSAGES = 2067
SEAL_SEED = 42


class Drawn(NamedTuple):
    """S sequences of K passages, passages of none, and what all are of."""

    sequences_S_K: list[list[Passage]]
    untouched: list[Passage]
    source: str

    @property
    def learned(self) -> list[Passage]:
        """Each once."""
        return list({p.id: p for passages_K in self.sequences_S_K for p in passages_K}.values())


def check_questions(drawn: Drawn, answerer: Answerer) -> None:
    """Raises ValueError for a question that does not fit into the model's context."""
    passages = (*drawn.learned, *drawn.untouched)
    answerer.check_all([Item(passage, q) for passage in passages for q in passage.questions])


def draw(config: ContinualConfig) -> tuple[Source, Drawn]:
    """Of a made world all passages differ. Of files each sequence is drawn as SEAL draws it, with a
    seed of its own, from all passages in the order of their file, so that some may come twice."""
    k, num_sequences = config.n_passages, config.n_sequences
    needed = k * num_sequences + config.n_untouched
    name = chosen_source(config)
    if name == "made" and config.draw_from is not None:
        raise ConfigError(f"draw_from={config.draw_from}: a made world has what is needed")
    pool_size = needed
    if name != "made":
        pool_size = config.draw_from or (SQUAD_PASSAGES if name == "squad" else needed)
    if pool_size < k + config.n_untouched:
        raise ConfigError(
            f"draw_from={pool_size}: {k} passages for a sequence and {config.n_untouched} that are "
            "never learned are needed"
        )
    try:
        source = source_of(config, num_train=0, num_test=pool_size)
    except TooFewError as error:
        asked = f"draw_from={pool_size}"
        if name != "squad" and config.draw_from is None:
            asked = (
                f"n_passages={k} for each of n_sequences={num_sequences}, and "
                f"n_untouched={config.n_untouched}; with draw_from= sequences may have some in "
                "common"
            )
        raise ConfigError(f"{error} ({asked})") from error
    if not source.has_questions:
        raise ConfigError(
            f"data_path={config.data_path!r}: some of its passages have no questions, so nobody "
            "can tell what is known of them"
        )
    pool = source.passages("test")
    if name == "made":
        sequences = [pool[s * k : (s + 1) * k] for s in range(num_sequences)]
    else:
        pool.sort(key=lambda passage: int(passage.id.rpartition("/")[2]))
        seeds = range(SEAL_SEED + config.seed, SEAL_SEED + config.seed + num_sequences)
        sequences = [random.Random(seed).sample(pool, k) for seed in seeds]
    used = {passage.id for passages_K in sequences for passage in passages_K}
    rest = [passage for passage in pool if passage.id not in used]
    if len(rest) < config.n_untouched:
        raise ConfigError(
            f"n_untouched={config.n_untouched}: {len(rest)} of {len(pool)} passages are in no "
            "sequence; give fewer, or a larger draw_from"
        )
    return source, Drawn(sequences, rest[: config.n_untouched], source.name)
