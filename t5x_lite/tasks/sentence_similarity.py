"""Defines tasks for embeddings of sentences, from STS-B (Cer et al. 2017), a set of pairs with scores from 0 to 5.

stsb_matches: pairs with a score of at least 4, each the other's match. stsb_similarity: all pairs. The task glue_stsb
has the same pairs, but its encoder reads both sentences of a pair together.
"""

from t5x_lite.data import preprocess, registry
from t5x_lite.data.registry import Example, Task
from t5x_lite.data.targets import Match, Similarity, number_in
from t5x_lite.tasks import glue
from t5x_lite.tasks.metrics import pearson, retrieval, spearman

ALIKE = 4.0  # from this score on, two sentences "are mostly equivalent" (Cer et al. 2017, table 1)


def are_alike(example: Example) -> bool:
    return example["label"] >= ALIKE


def as_match(example: Example) -> Example:
    return {**example, "inputs": example["sentence1"], "targets": example["sentence2"]}


_STSB = glue.TASKS["stsb"]
assert isinstance(_STSB, Task)
registry.add(
    Task(
        "stsb_matches",
        _STSB.source,
        (preprocess.keep(are_alike), as_match),
        target=Match(("targets",)),
        metrics=(retrieval,),
    )
)
registry.add(
    Task(
        "stsb_similarity",
        _STSB.source,
        _STSB.preprocessors,
        target=Similarity(0.0, 5.0, ("sentence2",)),
        segments=("sentence1",),
        metrics=(spearman, pearson),
        postprocess=number_in,
        reference=glue.exact_number,
    )
)
