"""Which passage a question is about, by the words that they share: BM25 (Robertson & Zaragoza 2009,
The Probabilistic Relevance Framework), with the idf that is never negative."""

import math
from collections import Counter
from collections.abc import Sequence

from training.domains.knowledge.grading import normalised


class Bm25:
    """Over the texts of P passages, their titles included.

    A word that occurs f times in a text of l words adds idf * f (k1 + 1) / (f + k1 (1 - b + b l /
    mean l)) for every time that the query has it; idf = ln(1 + (P - n + 0.5) / (n + 0.5)), where n
    texts have the word.
    """

    def __init__(self, texts_P: Sequence[str], *, k1: float = 1.5, b: float = 0.75) -> None:
        """Raises ValueError without any text."""
        if not texts_P:
            raise ValueError("texts_P is empty; BM25 needs a passage at least")
        counts_P = [Counter(normalised(text)) for text in texts_P]
        lengths_P = [counts.total() for counts in counts_P]
        # 1 where no text has a word, which changes nothing
        mean_length = sum(lengths_P) / len(lengths_P) or 1.0
        num_having = Counter(word for counts in counts_P for word in counts)
        idf = {
            word: math.log1p((len(texts_P) - n + 0.5) / (n + 0.5)) for word, n in num_having.items()
        }
        self._weights_P = [
            {
                word: idf[word] * f * (k1 + 1) / (f + k1 * (1 - b + b * length / mean_length))
                for word, f in counts.items()
            }
            for counts, length in zip(counts_P, lengths_P, strict=True)
        ]

    def scores(self, query: str) -> list[float]:
        """Of each text; 0 where it shares no word with the query."""
        words = normalised(query)
        return [math.fsum(own.get(word, 0.0) for word in words) for own in self._weights_P]

    def best(self, query: str) -> int | None:
        """The index of the text with the highest score, the first of equal ones; None where no text
        shares a word with the query."""
        scores_P = self.scores(query)
        best = max(range(len(scores_P)), key=scores_P.__getitem__)
        return best if scores_P[best] > 0 else None
