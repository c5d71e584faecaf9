"""Checks the feature converters against their docstrings, one task through all three, and packing's invariants."""

import copy
import re
from collections.abc import Iterable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_lite import batch as batches
from t5x_lite import config, experiment
from t5x_lite.data import denoise, packing, registry
from t5x_lite.data.convert import TEXT, DecoderOnly, TextToText, text_task
from t5x_lite.data.convert_encoder import EncoderOnly
from t5x_lite.data.denoiser import Denoiser
from t5x_lite.data.registry import Feature, Task
from t5x_lite.data.sources import Function
from t5x_lite.data.targets import Number
from t5x_lite.data.vocabularies import ByteVocabulary
from t5x_lite.errors import ConfigError, DataError


class Numbers:
    """A vocabulary for texts made of ids, "7 8 5", with the special ids of the docstrings."""

    pad_id, eos_id, unk_id, cls_id, sep_id, mask_id, size, fingerprint = 0, 1, 2, 3, 4, 6, 200, "numbers"

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.array(text.split(), np.int32) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        return " ".join(map(str, ids))

    show = decode

    def sentinel(self, k: int) -> int:
        return self.size - 1 - k


NUMBERS = Numbers()


def task(**kwargs) -> Task:
    return Task("task", Function(lambda split: []), **kwargs)


def documented(thing) -> dict[str, list[int]]:
    """Returns the aligned columns of a docstring, {array name: values}."""
    rows = re.findall(
        r"^\s+([a-z_]+(?:_tokens|_ids|_positions|_weights|_types|_targets))  +([\d |]+)$", thing.__doc__, re.M
    )
    return {name: [int(v) for v in values.replace("|", " ").split()] for name, values in rows}


def packed(examples, converter) -> dict[str, np.ndarray]:
    """Packs all examples in one row."""
    row_of = np.zeros(packing.count(examples), int)
    batch = packing.fill(examples, row_of, 1, converter.specs(), converter.sizes(pack=True))
    return {name: array[0] for name, array in batch.items()}


def each(converted) -> list[dict[str, np.ndarray]]:
    """Returns the examples that a converter made, one by one."""
    examples = converted[0]
    return [packing.example(examples, i) for i in range(packing.count(examples))]


def corpus(converter, texts, vocabulary, rng) -> list[dict[str, np.ndarray]]:
    """Returns a converter's examples for a window of documents, one by one."""
    examples = converter.corpus(texts, vocabulary, rng)
    return each((converter.denoise(examples, vocabulary, rng) if TEXT in examples else examples, 0))


def test_text_to_text_docstring_is_the_golden_example_of_seqio():
    converter = TextToText(length=10, targets_length=7)
    texts = [{"inputs": "7 8 5", "targets": "3 9"}, {"inputs": "8 4 9 3", "targets": "4"}]
    examples, truncated = converter.supervised(texts, task(), NUMBERS)
    row = packed(examples, converter)
    assert {k: v.tolist() for k, v in row.items()} == documented(TextToText) and not truncated.any()
    assert row["decoder_input_tokens"].tolist() == [0, 3, 9, 0, 4, 0, 0]  # as in seqio's source


def test_decoder_only_docstring():
    converter = DecoderOnly(length=12)
    texts = [{"inputs": "7 8", "targets": "3 9"}, {"inputs": "5", "targets": "4"}]
    examples, _ = converter.supervised(texts, task(), NUMBERS)
    assert {k: v.tolist() for k, v in packed(examples, converter).items()} == documented(DecoderOnly)


def test_encoder_only_docstring():
    converter = EncoderOnly(length=10, heads=("classification",), max_examples_per_row=4)
    texts = [{"a": "7 8", "b": "5", "targets": "z"}, {"a": "9", "b": "", "targets": "x"}]
    pair, single = task(labels=("x", "y", "z"), segments=("a", "b")), task(labels=("x", "y", "z"), segments=("a",))
    parts = converter.supervised(texts[:1], pair, NUMBERS)[0], converter.supervised(texts[1:], single, NUMBERS)[0]
    examples = packing.concatenate(parts)
    assert {k: v.tolist() for k, v in packed(examples, converter).items()} == documented(EncoderOnly)


def test_packing_docstring():
    converter = TextToText(length=10, targets_length=7)
    texts = [{"inputs": "7 8 5", "targets": "3 9"}, {"inputs": "8 4 9 3", "targets": "4"}]
    row = packed(converter.supervised(texts, task(), NUMBERS)[0], converter)
    shown = documented(packing.fill)
    assert len(shown) == 3 and {name: row[name].tolist() for name in shown} == shown


def test_one_task_feeds_three_architectures():
    bytes_ = ByteVocabulary()
    one = task(labels=("no", "yes"))
    texts = [{"inputs": "ab", "targets": "yes"}]
    a, b, y, e, s = (ord(c) + 3 for c in "abyes")
    (t2t,) = each(TextToText(8, 8).supervised(texts, one, bytes_))
    assert t2t["encoder_input_tokens"].tolist() == [a, b, 1]
    assert t2t["decoder_target_tokens"].tolist() == [y, e, s, 1]
    assert t2t["decoder_input_tokens"].tolist() == [0, y, e, s]
    (lm,) = each(DecoderOnly(16).supervised(texts, one, bytes_))
    assert lm["decoder_target_tokens"].tolist() == [a, b, 1, y, e, s, 1]
    assert lm["decoder_loss_weights"].tolist() == [0, 0, 0, 1, 1, 1, 1]
    (bert,) = each(EncoderOnly(8, ("classification",)).supervised(texts, one, bytes_))
    assert bert["encoder_input_tokens"].tolist() == [bytes_.cls_id, a, b, bytes_.sep_id]
    assert (bert["class_targets"].tolist(), bert["class_weights"].tolist()) == ([1], [1.0])


def test_over_long_text_is_cut_keeps_its_end_and_is_counted():
    texts = [{"inputs": "9 " * 50, "targets": "8 " * 50}, {"inputs": "9", "targets": "8"}]
    converted = TextToText(10, 7).supervised(texts, task(), NUMBERS)
    long, _ = each(converted)
    assert converted[1].tolist() == [True, False]
    assert long["encoder_input_tokens"].tolist() == [9] * 9 + [1]
    assert long["decoder_target_tokens"].tolist() == [8] * 6 + [1]
    converted = DecoderOnly(10).supervised(texts, task(), NUMBERS)
    long, _ = each(converted)
    assert converted[1].tolist() == [True, False] and long["decoder_target_tokens"].tolist() == [9] * 4 + [1] + [
        8
    ] * 4 + [1]
    classify = task(labels=("8",), segments=("inputs", "inputs"))
    converted = EncoderOnly(10, ("classification",)).supervised([texts[0] | {"targets": "8"}], classify, NUMBERS)
    (long,) = each(converted)
    assert converted[1].tolist() == [True] and long["encoder_input_tokens"].tolist() == [3, 9, 9, 9, 4, 9, 9, 9, 9, 4]


def test_short_inputs_leave_their_room_to_long_targets():
    converted = DecoderOnly(10).supervised([{"inputs": "9", "targets": "8 " * 7}], task(), NUMBERS)
    (example,) = each(converted)
    assert not converted[1].any() and example["decoder_target_tokens"].tolist() == [9, 1] + [8] * 7 + [1]


@pytest.mark.parametrize("words", [1, 6, 7, 8, 30])
def test_a_prompt_is_what_training_showed_before_the_targets(words):
    """Even if it is cut: the separator before the targets stays."""
    texts = [{"inputs": "9 " * words, "targets": "8"}]
    prompts, truncated = DecoderOnly(16).prompts(texts, task(), NUMBERS, 8)
    assert truncated.tolist() == [words > 6]  # the start and the separator fill a row of 8
    prompt = packing.example(prompts, 0)
    (example,) = each(DecoderOnly(16).supervised(texts, task(), NUMBERS))
    ids = prompt["decoder_input_tokens"].tolist()
    assert len(ids) <= 8 and ids[-1] == 1
    if len(ids) == words + 2:
        assert ids == example["decoder_input_tokens"].tolist()[: len(ids)]


def test_a_text_to_go_on_from_keeps_its_end():
    """A language model's own texts end without a separator: the continuation depends on their last words."""
    texts = [{"inputs": " ".join(str(n) for n in range(3, 33))}, {"inputs": "9"}]
    prompts, truncated = DecoderOnly(16).prompts(texts, text_task("decoder_only"), NUMBERS, 8)
    assert truncated.tolist() == [True, False]
    long, short = (packing.example(prompts, row)["decoder_input_tokens"].tolist() for row in (0, 1))
    assert long[1:] == list(range(26, 33)) and short[1:] == [9]


def test_wrong_labels_and_fields_are_named():
    labelled = task(labels=("no", "yes"))
    encoder = EncoderOnly(16, ("classification",))
    with pytest.raises(DataError, match=r"'task': label 'maybe' is not one of no, yes; .*inputs '5 6'"):
        encoder.supervised([{"inputs": "5 6", "targets": "maybe"}], labelled, NUMBERS)
    with pytest.raises(DataError, match=r"needs the field 'targets'; .* has inputs\. Make 'targets'"):
        TextToText(8, 8).supervised([{"inputs": "5"}], task(), NUMBERS)
    regression = EncoderOnly(16, ("regression",))
    for value in ("high", "nan", "inf"):
        with pytest.raises(DataError, match=f"target '{value}' is not a finite number"):
            regression.supervised([{"inputs": "5", "targets": value}], task(target=Number()), NUMBERS)
    (example,) = each(regression.supervised([{"inputs": "5", "targets": "3.5"}], task(target=Number()), NUMBERS))
    assert example["regression_targets"].tolist() == [3.5]
    with pytest.raises(ConfigError, match="needs the head 'classification'; the encoder has regression"):
        regression.supervised([{"inputs": "5", "targets": "yes"}], labelled, NUMBERS)
    with pytest.raises(ConfigError, match="has free text as targets, and no head of an encoder"):
        encoder.supervised([{"inputs": "5", "targets": "free text"}], task(), NUMBERS)


def test_span_corruption_fills_the_rows_exactly():
    rng = np.random.default_rng(0)
    vocabulary = ByteVocabulary(100)
    examples = corpus(TextToText(128, 29), ["x" * 141 * 3], vocabulary, rng)
    assert [(len(e["encoder_input_tokens"]), len(e["decoder_target_tokens"])) for e in examples] == [(128, 29)] * 3
    assert all(e["encoder_input_tokens"][-1] == e["decoder_target_tokens"][-1] == 1 for e in examples)
    shorter = corpus(TextToText(128, 20), ["x" * 141 * 3], vocabulary, rng)
    assert all(len(e["decoder_target_tokens"]) <= 20 and len(e["encoder_input_tokens"]) <= 128 for e in shorter)


@given(st.lists(st.text("abcdef", max_size=40), min_size=1, max_size=8), st.integers(2, 30))
def test_language_model_reads_documents_end_to_end(texts, length):
    vocabulary = ByteVocabulary()
    examples = corpus(DecoderOnly(length), texts, vocabulary, np.random.default_rng(0))
    text = [i for e in examples for i in e["decoder_target_tokens"].tolist()]
    whole = [i for word in texts if word for i in (*(ord(c) + 3 for c in word), 1)]
    assert text == whole[: len(text)] and len(whole) - len(text) <= 1  # a single last token gets no row
    assert all(e["decoder_input_tokens"].tolist() == [0, *e["decoder_target_tokens"][:-1]] for e in examples)
    assert all((e["decoder_loss_weights"] == 1).all() for e in examples)


def test_masked_language_model_with_next_sentence():
    vocabulary = ByteVocabulary()
    letters = "abcdefghijklmnopqrstuvwxyz"
    texts = [". ".join([c * 9] * 12) + "." for c in letters]  # each document repeats one letter
    converter = EncoderOnly(64, ("mlm", "nsp"))
    examples = [e for seed in range(8) for e in corpus(converter, texts, vocabulary, np.random.default_rng(seed))]
    random_seconds = []
    for e in examples:
        tokens = e["encoder_input_tokens"].copy()
        selected = e["mlm_positions"]
        tokens[selected] = e["mlm_targets"]  # the targets hold the masked tokens
        assert tokens[0] == vocabulary.cls_id and tokens[-1] == vocabulary.sep_id and len(tokens) <= 64
        special = np.isin(tokens, [vocabulary.cls_id, vocabulary.sep_id])
        assert special.sum() == 3 and not special[selected].any()
        assert len(selected) == round(0.15 * (~special).sum())
        second = e["token_type_ids"] == 1
        assert second.sum() and (np.diff(e["token_type_ids"]) >= 0).all()
        kinds = [set(bytes(tokens[part & ~special] - 3).decode()) - set(". ") for part in (~second, second)]
        is_random = kinds[0] != kinds[1]
        assert e["nsp_targets"].tolist() == [int(is_random)] and e["nsp_weights"].tolist() == [1.0]
        random_seconds.append(is_random)
    n = len(random_seconds)
    assert abs(np.mean(random_seconds) - 0.5) < 4 * 0.5 / n**0.5


def test_sentence_order_exchanges_half_of_the_pairs():
    vocabulary = ByteVocabulary()
    texts = [". ".join(f"{c}{n}" for n in range(8)) + "." for c in "abcdefghijklmnopqrstuvwxyz"]
    converter = EncoderOnly(64, ("mlm", "nsp"), sentence_order=True)
    exchanged = []
    for seed in range(6):
        for e in corpus(converter, texts, vocabulary, np.random.default_rng(seed)):
            tokens = e["encoder_input_tokens"].copy()
            tokens[e["mlm_positions"]] = e["mlm_targets"]
            special = np.isin(tokens, [vocabulary.cls_id, vocabulary.sep_id])
            first, second = (vocabulary.decode(tokens[(e["token_type_ids"] == k) & ~special].tolist()) for k in (0, 1))
            assert first[0] == second[0]  # from the same document
            exchanged.append(int(first[1]) > int(second[1]))
            assert e["nsp_targets"].tolist() == [exchanged[-1]] and e["nsp_weights"].tolist() == [1.0]
    n = len(exchanged)
    assert abs(np.mean(exchanged) - 0.5) < 4 * 0.5 / n**0.5


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 30), max_size=6), min_size=1, max_size=6),
    st.integers(8, 80),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_pairs_of_any_documents(sentence_lengths, length, sentence_order, whole_words, seed):
    """Draws documents of sentences of any length, with all tokens different. A correct pair is adjacent in its
    document; a wrong pair is swapped, or half of it comes from a different document."""
    ends = np.cumsum([sum(lengths) for lengths in sentence_lengths])
    words = iter(range(10, 10_000))
    texts = [". ".join(" ".join(str(next(words)) for _ in range(n)) for n in lengths) for lengths in sentence_lengths]
    numbers = Numbers()
    numbers.size, numbers.word_starts = 10_000, np.ones(10_000, bool)  # type: ignore[attr-defined]
    texts = [[numbers.encode([s])[0] for s in text.split(". ") if s] for text in texts]
    converter = EncoderOnly(length, ("mlm", "nsp"), whole_words=whole_words, sentence_order=sentence_order)
    seen = []
    for e in corpus(converter, texts, numbers, np.random.default_rng(seed)):
        tokens = e["encoder_input_tokens"].copy()
        tokens[e["mlm_positions"]] = e["mlm_targets"]
        first, second = (tokens[(e["token_type_ids"] == k) & (tokens >= 10)] for k in (0, 1))
        paired, wrong = e["nsp_weights"][0] > 0, e["nsp_targets"][0] == 1
        assert tokens.tolist() == [3, *first, 4, *([*second, 4] if paired else [])] and len(tokens) <= length
        assert len(first) and paired == (len(second) > 0) and len(e["mlm_positions"])
        documents = [set(np.searchsorted(ends, side - 10, side="right").tolist()) for side in (first, second)]
        assert all(len(found) <= 1 for found in documents)
        right = [*second, *first] if sentence_order and wrong else [*first, *second]
        if wrong and not sentence_order:
            assert documents[0] != documents[1]
            right = first
        elif paired:
            assert documents[0] == documents[1]
        assert (np.diff(right) == 1).all()
        seen += list(right)
    if sentence_order:
        assert sorted(seen) == list(range(10, 10 + ends[-1]))


@pytest.mark.parametrize("objective", ["prefix_lm", "span_corruption", "ul2", "deshuffle", "sequential"])
def test_a_decoder_reads_inputs_and_learns_targets(objective):
    """Both fit in one row; the loss covers the targets and their EOS."""
    vocabulary = ByteVocabulary(200)
    both = denoise.denoisers(objective)
    examples = corpus(DecoderOnly(120, both), ["some text to learn " * 60], vocabulary, np.random.default_rng(0))
    assert len(examples) > 5
    for e in examples:
        weights = e["decoder_loss_weights"]
        assert 0 < weights.sum() < len(weights) <= 120 and (np.diff(weights) >= 0).all()
        assert e["decoder_target_tokens"][-1] == vocabulary.eos_id
        assert e["decoder_input_tokens"].tolist() == [0, *e["decoder_target_tokens"][:-1]]


def test_the_objective_of_a_config_reaches_its_converter(monkeypatch):
    monkeypatch.setitem(registry.REGISTRY, "task", task(features={"text": Feature()}))
    cfg = config.base()
    cfg.data.mixture, cfg.data.vocabulary, cfg.data.length = "task", "bytes", 128

    def converter(preset, **data):
        changed = copy.deepcopy(cfg)
        changed.model.preset = preset
        changed.data.update(data)
        config.validate(changed)
        return experiment.resolve(changed).converter

    noise = {"noise_density": 0.3, "random_roll": True, "final_sentinel": True}
    assert converter("t5_tiny", **noise).denoisers == (Denoiser(**noise),)
    assert converter("t5_tiny", objective="ul2").denoisers == denoise.UL2
    assert converter("gpt2_tiny").denoisers == () == converter("gpt2_tiny", objective="full_lm").denoisers
    assert converter("gpt2_tiny", objective="prefix_lm").denoisers == (Denoiser("prefix_lm"),)
    bert = converter("bert_tiny", objective="mlm_sentence_order", mlm_whole_words=True, mlm_longest_ngram=3)
    assert bert.sentence_order and bert.whole_words and bert.longest_ngram == 3
    with pytest.raises(ConfigError, match=r"unknown data.objective 'span_coruption'; did you mean 'span_corruption'"):
        converter("t5_tiny", objective="span_coruption")
    with pytest.raises(ConfigError, match=r"encoder_only models: unknown data.objective 'mass'.*allowed: mlm"):
        converter("bert_tiny", objective="mass")


def test_config_and_denoisers_know_the_same_objectives():
    named = {name for architecture in ("text_to_text", "decoder_only") for name in config.OBJECTIVES[architecture]}
    assert named == {*denoise.KINDS, "ul2"}


# ------------------------------------------------------------------------------------------------------- packing


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 9)), min_size=1, max_size=60))
def test_assign_puts_every_example_in_one_row_and_overflows_none(lengths):
    capacity = np.array([20, 9])
    row_of = packing.assign(np.array(lengths), capacity)
    assert len(row_of) == len(lengths)
    rows = [np.flatnonzero(row_of == n) for n in range(row_of.max() + 1)]
    totals = np.array([np.array(lengths)[row].sum(axis=0) for row in rows])
    assert (totals <= capacity).all()
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)
    for i in range(len(rows)):  # best fit: no two rows fit into one
        for j in range(i):
            assert (totals[i] + totals[j] > capacity).any()


@given(st.lists(st.integers(1, 512), min_size=1, max_size=200))
def test_assign_needs_few_more_rows_than_there_must_be(lengths):
    """Best fit, longest first, takes at most 11/9 of the optimum plus 6/9 rows (Dósa et al. 2013)."""
    rows = packing.assign(np.array(lengths)[:, None], np.array([512])).max() + 1
    halves = sum(n > 256 for n in lengths)
    bound = max(-(-sum(lengths) // 512), halves)
    optimum_at_most = len(_first_fit(lengths))
    assert bound <= rows <= 11 / 9 * optimum_at_most + 6 / 9


def _first_fit(lengths: list[int]) -> list[int]:
    rooms: list[int] = []
    for n in lengths:
        at = next((i for i, room in enumerate(rooms) if room >= n), None)
        if at is None:
            rooms.append(512 - n)
        else:
            rooms[at] -= n
    return rooms


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(1, 6)), min_size=1, max_size=30),
    st.sampled_from(["text_to_text", "decoder_only", "encoder_only"]),
    st.integers(0, 9),
)
def test_packed_rows_hold_every_token_once(lengths, architecture, seed):
    rng = np.random.default_rng(seed)
    say = lambda n: " ".join(map(str, rng.integers(10, 190, n)))  # noqa: E731
    texts = [{"inputs": say(i), "targets": say(t) if architecture != "encoder_only" else "y"} for i, t in lengths]
    converter = {
        "text_to_text": TextToText(16, 8),
        "decoder_only": DecoderOnly(24),
        "encoder_only": EncoderOnly(16, ("mlm", "classification"), max_examples_per_row=3),
    }[architecture]
    labels = ("x", "y") if architecture == "encoder_only" else ()
    examples, truncated = converter.supervised(texts, task(labels=labels), NUMBERS)
    specs, sizes = converter.specs(), converter.sizes(pack=True)
    letters = "".join(sizes)
    lengths = packing.lengths_of(examples, specs, letters)
    row_of = packing.assign(lengths, np.array([sizes[c] for c in letters]))
    batch = packing.fill(examples, row_of, row_of.max() + 2, specs, sizes)
    batches.check(batch, specs, NUMBERS.size)
    side, letter = ("encoder", "S") if "encoder_segment_ids" in batch else ("decoder", "L")
    for r in range(row_of.max() + 1):
        for number, index in enumerate(np.flatnonzero(row_of == r), 1):
            for name, values in packing.example(examples, index).items():
                if specs[name].dims[1] in "SL":
                    other = "encoder" if specs[name].dims[1] == "S" else "decoder"
                    where = batch[f"{other}_segment_ids"][r] == number
                    assert batch[name][r][where].tolist() == values.tolist()
                    assert batch[f"{other}_positions"][r][where].tolist() == list(range(len(values)))
            if architecture == "encoder_only":
                at = batch["pooled_positions"][r][number - 1]
                assert batch["encoder_input_tokens"][r][at] == NUMBERS.cls_id
                assert batch["encoder_segment_ids"][r][at] == number and batch["class_weights"][r][number - 1] == 1
    padding = batch[f"{side}_segment_ids"] == 0
    assert padding[-1].all() and (~padding).sum() == examples[f"{side}_input_tokens"].values.size
    for name, spec in specs.items():
        if spec.dims == f"B{letter}":
            assert not batch[name][padding].any()
    assert not truncated.any()


def test_masked_positions_move_with_their_example():
    vocabulary = ByteVocabulary()
    converter = EncoderOnly(128, ("mlm",))
    examples = converter.corpus(["one two three.", "four five six."], vocabulary, np.random.default_rng(0))
    row = packed(examples, converter)
    wanted = examples["mlm_targets"].values.tolist()
    used = row["mlm_weights"] == 1
    assert row["mlm_targets"][used].tolist() == wanted
    segments = row["encoder_segment_ids"][row["mlm_positions"][used]]
    assert segments.tolist() == np.repeat([1, 2], examples["mlm_positions"].lengths).tolist()


def test_packing_wastes_little():
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(5.5, 1.0, 2000).astype(int), 1, 512)[:, None]  # like C4's documents, cut at 512
    for window in np.split(lengths, 10):  # as many as training packs: about 64 rows
        row_of = packing.assign(window, np.array([512]))
        assert window.sum() / (512 * (row_of.max() + 1)) > 0.98


def test_no_row_is_checked_against_another_vocabulary():
    converter = TextToText(8, 8)
    examples, _ = converter.supervised([{"inputs": "150", "targets": "5"}], task(), NUMBERS)
    batch = {name: row[None] for name, row in packed(examples, converter).items()}
    with pytest.raises(DataError, match="token id 150; allowed 0 to 99"):
        batches.check(batch, converter.specs(), 100)


def test_a_feature_without_eos():
    no_eos = task(features={"inputs": Feature(add_eos=False), "targets": Feature()})
    (example,) = each(TextToText(8, 8).supervised([{"inputs": "5 6", "targets": "7"}], no_eos, NUMBERS))
    assert example["encoder_input_tokens"].tolist() == [5, 6]


def test_fairseq_s_marks_fit_in_their_rows():
    """Rows of 8, 4 and 5 tokens with texts of any length keep the marks and lose tokens of the texts."""
    words = [" ".join(map(str, range(7, 7 + n))) for n in range(1, 6)]
    pairs = [{"inputs": text, "targets": text} for text in words]

    def rows(tokens) -> list[list[int]]:
        return [tokens.values[begin:end].tolist() for begin, end in zip(tokens.starts, tokens.ends, strict=True)]

    found, cut = EncoderOnly(8, ("classification",), fairseq_marks=True).supervised(
        [{"a": text, "b": text, "targets": "x"} for text in words],
        task(labels=("x", "y"), segments=("a", "b")),
        NUMBERS,
    )
    tokens, types = rows(found["encoder_input_tokens"]), rows(found["token_type_ids"])
    assert tokens[1] == [3, 7, 8, 4, 4, 7, 8, 4] and types[1] == [0] * 8  # as RoBERTa's tokenizer has them
    assert tokens[2:] == tokens[1:2] * 3 and cut.tolist() == [False, False, True, True, True]
    found, cut = TextToText(4, 5, fairseq_marks=True).supervised(pairs, task(), NUMBERS)
    inputs, targets = rows(found["encoder_input_tokens"]), rows(found["decoder_target_tokens"])
    assert inputs[1:] == [[3, 7, 8, 1]] * 4 and targets[2:] == [[3, 7, 8, 9, 1]] * 3
    assert cut.tolist() == [False, False, True, True, True]
