"""Makes batches for evaluation, prediction and scoring, in the source's order. Over all hosts, each example occurs
exactly once."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from t5x_lite import batch as batches
from t5x_lite.batch import Batch
from t5x_lite.data import packing
from t5x_lite.data.convert import Converter, DecoderOnly
from t5x_lite.data.fields import text_of
from t5x_lite.data.order import generator
from t5x_lite.data.packing import Examples
from t5x_lite.data.reader import Reader, text_examples
from t5x_lite.data.registry import Example, Task
from t5x_lite.data.vocabulary import Vocabulary
from t5x_lite.data.windows import TEXTS_PER_WINDOW, converted, denoised, groups
from t5x_lite.errors import ConfigError, DataError

EXAMPLES_PER_PACKING_WINDOW = 1024


def eval_batches(
    task: Task,
    converter: Converter,
    vocabulary: Vocabulary,
    *,
    batch_rows: int,
    split: str = "validation",
    pack: bool = False,
    limit: int = 0,
    stride: int = 0,
    shard_index: int = 0,
    shard_count: int = 1,
) -> Iterator[Batch]:
    """Yields batches of a split's examples, with targets and weights as in training. Over all hosts, each example
    occurs exactly once.

    All hosts get the same number of batches. The last batch is filled up with rows of padding, which have weights of 0.
    For a corpus, the random corruption (masks, spans) is the same in every evaluation.
    limit: the most source examples that are used; 0 for all.
    stride: above 0, for a corpus and a DecoderOnly without denoisers: the texts are joined to one stream, and cut into
        rows that overlap (see `overlapping`).
    Raises DataError if the split has no example, ConfigError if `shard_count` does not divide `batch_rows`.
    """
    pack = pack and not stride
    specs, sizes = converter.specs(), converter.sizes(pack)
    share = _rows_of_host(batch_rows, shard_index, shard_count)
    if stride:
        assert isinstance(converter, DecoderOnly)  # experiment.resolve has checked it
        windows = _overlapping(task, converter, vocabulary, split, limit, stride)
    else:
        windows = _windows(task, converter, vocabulary, split, limit, EXAMPLES_PER_PACKING_WINDOW if pack else 1)
    blocks = (packing.pack_rows(examples, specs, sizes, pack)[0] for examples in windows)
    batch = None
    for global_batch in _of_rows(blocks, batch_rows):
        batches.check(global_batch, specs, vocabulary.size)  # of all rows, so that all hosts raise the same error
        batch = {name: array[share] for name, array in global_batch.items()}
        yield batch
    if batch is None:
        raise DataError(
            f"task {task.name!r}: all texts of split {split!r} are empty, so there is nothing to evaluate; check its "
            "source and preprocessors"
        )


def prompt_batches(
    task: Task,
    converter: Converter,
    vocabulary: Vocabulary,
    *,
    batch_rows: int,
    max_new_tokens: int,
    split: str = "validation",
    limit: int = 0,
    shard_index: int = 0,
    shard_count: int = 1,
) -> Iterator[tuple[Batch, list[int], list[Example]]]:
    """Yields (batch, indices, examples). The batch holds the features that a model reads to predict the targets of a
    split, one example per row. The indices are the places of this host's examples in the source.

    max_new_tokens: the number of tokens that a row of a decoder-only model leaves for the prediction.
    limit: the most source examples that are used; 0 for all.
    Raises DataError if the split has no example, ConfigError if `shard_count` does not divide `batch_rows`.
    """
    share = _rows_of_host(batch_rows, shard_index, shard_count)
    for group in groups(_limited(text_examples(task, split), limit), batch_rows):
        numbered = group[share]
        examples = [example for _, example in numbered]
        rows = share.stop - share.start
        batch, _ = prompt_batch(examples, task, converter, vocabulary, batch_rows=rows, max_new_tokens=max_new_tokens)
        yield batch, [index for index, _ in numbered], examples


def prompt_batch(
    examples: Sequence[Mapping],
    task: Task,
    converter: Converter,
    vocabulary: Vocabulary,
    *,
    batch_rows: int,
    max_new_tokens: int,
) -> tuple[Batch, list[bool]]:
    """Returns (batch, which prompts were truncated). The batch holds the prompts of text examples, one prompt per row.

    Rows without an example are padding. Raises DataError if an example has a missing or wrong field.
    """
    prompts, truncated = (
        converter.prompts(examples, task, vocabulary, max_new_tokens) if examples else ({}, np.zeros(0, bool))
    )
    batch = _one_per_row(prompts, converter, vocabulary, batch_rows, converter.prompt_sizes(max_new_tokens))
    return batch, truncated.tolist()


def example_batch(
    examples: Sequence[Mapping], task: Task, converter: Converter, vocabulary: Vocabulary, *, batch_rows: int
) -> Batch:
    """Returns supervised text examples with their targets as one batch, one example per row.

    Raises DataError if an example is longer than a row.
    """
    features, truncated = converter.supervised(examples, task, vocabulary) if examples else ({}, ())
    if any(truncated):
        texts = " and ".join(repr(str(text)[:40]) for text in examples[list(truncated).index(True)].values())
        sizes = " and ".join(map(str, converter.sizes(pack=False).values()))
        raise DataError(f"{texts} do not fit in rows of {sizes} tokens; shorten the texts")
    return _one_per_row(features, converter, vocabulary, batch_rows, converter.sizes(pack=False))


def _one_per_row(
    examples: Examples, converter: Converter, vocabulary: Vocabulary, batch_rows: int, sizes: Mapping[str, int]
) -> Batch:
    specs = converter.specs()
    number = packing.count(examples) if examples else 0
    batch = packing.fill(examples, np.arange(number), batch_rows, specs, sizes)
    batches.check(batch, specs, vocabulary.size)
    return batch


def _windows(
    task: Task, converter: Converter, vocabulary: Vocabulary, split: str, limit: int, fewest: int
) -> Iterator[Examples]:
    """Yields the examples of a split in groups of at least `fewest`; the last may be smaller."""
    ready: list[Examples] = []
    reader = Reader(task, split)
    for window, group in enumerate(groups(_limited(text_examples(task, split), limit), TEXTS_PER_WINDOW)):
        rng = generator(0, task.name, split, "window", window)
        pieces = [converted(group, reader, converter, vocabulary, rng)[0]]
        ready.append(denoised(pieces, converter, vocabulary, rng))
        if sum(map(packing.count, ready)) >= fewest:
            yield packing.concatenate(ready)
            ready = []
    if sum(map(packing.count, ready)):
        yield packing.concatenate(ready)


def _overlapping(
    task: Task, converter: DecoderOnly, vocabulary: Vocabulary, split: str, limit: int, stride: int
) -> Iterator[Examples]:
    """Yields the rows of a corpus that `overlapping` cuts, as examples, in groups."""
    texts = (text_of(example, "text", task) for _, example in _limited(text_examples(task, split), limit))
    tokens = (converter.joined(group, vocabulary) for group in groups(texts, TEXTS_PER_WINDOW))
    for group in groups(overlapping(tokens, converter.length, stride), EXAMPLES_PER_PACKING_WINDOW):
        rows, context = zip(*group, strict=True)
        yield converter.overlapping(rows, context, vocabulary)


def overlapping(pieces: Iterable[np.ndarray], length: int, stride: int) -> Iterator[tuple[np.ndarray, int]]:
    """Cuts a stream of tokens into rows of `length` tokens, each of which begins `stride` tokens after the one before.

    Yields (a row, how many of its first tokens earlier rows have scored). The last row may be shorter. So each token is
    scored once, and after at least length − stride tokens of the stream, or after all if there are fewer. The rows are
    those of "Perplexity of fixed-length models" in Hugging Face's documentation.
    pieces: the stream, as arrays int [tokens].

    >>> [(row.tolist(), scored) for row, scored in overlapping([np.arange(4), np.arange(4, 7)], length=4, stride=2)]
    [([0, 1, 2, 3], 0), ([2, 3, 4, 5], 2), ([4, 5, 6], 2)]
    """
    rest, scored = np.zeros(0, np.int32), 0
    for piece in pieces:
        rest = np.concatenate([rest, piece])
        while len(rest) >= length:
            yield rest[:length], scored
            rest, scored = rest[stride:], length - stride
    if len(rest) > scored:
        yield rest, scored


def _of_rows(blocks: Iterable[Batch], rows: int) -> Iterator[Batch]:
    """Regroups rows into batches of `rows`; the last batch is filled up with padding."""
    rest: Batch = {}
    for block in blocks:
        rest = {name: np.concatenate([rest[name], array]) for name, array in block.items()} if rest else block
        full = len(next(iter(rest.values()))) // rows
        for n in range(full):
            yield {name: array[n * rows : (n + 1) * rows] for name, array in rest.items()}
        rest = {name: array[full * rows :] for name, array in rest.items()}
    if rest and (missing := rows - len(next(iter(rest.values())))) < rows:
        yield {name: np.pad(array, [(0, missing), (0, 0)]) for name, array in rest.items()}


def _rows_of_host(batch_rows: int, shard_index: int, shard_count: int) -> slice:
    if batch_rows % shard_count:
        raise ConfigError(f"eval.batch_rows={batch_rows}: must be a multiple of the {shard_count} processes")
    rows = batch_rows // shard_count
    return slice(shard_index * rows, (shard_index + 1) * rows)


def _limited(items: Iterable, limit: int) -> Iterable:
    return itertools.islice(items, limit) if limit else items
