"""One ranking out of two: by vector and by words.

Relative scores, not ranks: fusing by reciprocal rank was measured to harm, because the ranking by
words is noise below its first few.
"""

from collections.abc import Mapping

from perdure.memorizer.memory import VECTOR_WEIGHT, Scores


def fuse(
    cosines: Mapping[int, float], text_scores: Mapping[int, float], k: int
) -> list[tuple[int, float, Scores]]:
    """The `k` best by cosine and by words, each in relation to the best one of the search.

    `VECTOR_WEIGHT` is the vector's share. Keys name memories; a later memory has a larger key and
    goes first among equals. Text scores are larger for better matches (BM25).

    >>> [(key, round(score, 2)) for key, score, _ in fuse({1: 0.5, 2: 0.4}, {2: 7.0}, 2)]
    [(2, 0.85), (1, 0.75)]
    """
    best_cosine = max(cosines.values(), default=0.0)
    best_text = max(text_scores.values(), default=0.0)
    fused = []
    for key in cosines.keys() | text_scores.keys():
        cosine = cosines.get(key, 0.0)
        vector = max(cosine, 0.0) / best_cosine if best_cosine > 0 else 0.0
        text = max(text_scores.get(key, 0.0), 0.0) / best_text if best_text > 0 else 0.0
        score = VECTOR_WEIGHT * vector + (1 - VECTOR_WEIGHT) * text
        fused.append((key, score, Scores(vector=vector, text=text, cosine=cosine)))
    fused.sort(key=lambda hit: (-hit[1], -hit[0]))
    return fused[:k]
