"""Vocabularies: ids, roles, sentinels, fingerprints, and errors for broken files."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import ByteLevel

from t5x_lite.data import vocabularies
from t5x_lite.data.convert import TextToText, text_task
from t5x_lite.data.convert_encoder import EncoderOnly
from t5x_lite.data.vocabularies import (
    ByteVocabulary,
    SentencePieceVocabulary,
    TokenizerVocabulary,
    load,
    train_sentencepiece,
)
from t5x_lite.errors import ConfigError, DataError

SHARED = Path(__file__).parents[2] / "shared" / "data"
T5_MODEL = SHARED / "vocab" / "t5" / "spiece.model"
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="the real vocabularies are not on this machine")
SYLLABLES = ["ba", "dri", "fu", "ge", "ka", "lor", "mi", "nu", "po", "sti", "ta", "vel", "wo", "xe", "yan", "zu"]
TEXTS = [
    f"the fox and the dog saw {a}{b} {b}{c}{a} {c}{a}" for a in SYLLABLES for b in SYLLABLES for c in SYLLABLES[:4]
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> SentencePieceVocabulary:
    return train_sentencepiece(size=310, output=tmp_path_factory.mktemp("vocabulary") / "a.model", texts=TEXTS)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_bytes_round_trip(text):
    vocabulary = ByteVocabulary()
    ids = vocabulary.encode([text])[0]
    assert vocabulary.decode(ids) == text
    # These texts never look like a special token.
    assert not {vocabulary.cls_id, vocabulary.sep_id, vocabulary.mask_id, vocabulary.eos_id} & set(ids.tolist())
    assert not {vocabulary.sentinel(k) for k in range(11)} & set(ids.tolist())


@given(st.lists(st.tuples(st.integers(0, 61), st.text(st.characters(exclude_categories=["Cs"])))))
def test_every_byte_sentinel_is_told_from_the_text_about_it(spans):
    """All 62, although bytes encode them, even between characters of several bytes."""
    vocabulary = ByteVocabulary()
    ids = [i for k, text in spans for i in (vocabulary.sentinel(k), *vocabulary.encode([text])[0])]
    assert vocabulary.decode(ids).replace(" ", "") == "".join(f"<extra_id_{k}>{t}" for k, t in spans).replace(" ", "")


def test_byte_sentinels_are_no_roles_and_end():
    vocabulary = ByteVocabulary()
    roles = {getattr(vocabulary, f"{role}_id") for role in ("pad", "eos", "unk", "cls", "sep", "mask")}
    assert not roles & {vocabulary.sentinel(k) for k in range(62)}
    with pytest.raises(DataError, match="more sentinels than the vocabulary's 62"):
        vocabulary.sentinel(62)
    assert vocabulary.decode(vocabulary.encode(["n東"])[0][:3]) == "n"  # part of a character is left out


def test_bytes_have_the_layout_of_byt5():
    assert ByteVocabulary().encode(["a"])[0].tolist() == [ord("a") + 3]
    assert [ByteVocabulary().sentinel(k) for k in range(3)] == [258, 257, 256]
    assert (ByteVocabulary(100).size, ByteVocabulary(100).sentinel(0)) == (359, 358)


def test_decoding_ends_at_eos_and_leaves_padding_out(trained):
    for vocabulary in (ByteVocabulary(), trained):
        ids = [*vocabulary.encode(["the fox"])[0], vocabulary.pad_id, vocabulary.eos_id, *vocabulary.encode(["dog"])[0]]
        assert vocabulary.decode(ids) == "the fox"
        assert vocabulary.decode([vocabulary.sentinel(1)]) == "<extra_id_1>"


@pytest.mark.parametrize("text", ["the fox, the dog.", "ba  dri", " Grüße ½ …日本\tthe", "", " "])
def test_places_are_those_of_the_ids(trained, text):
    tokenizer = load(str(SHARED / "vocab" / "gpt2")) if SHARED.exists() else None
    for vocabulary in filter(None, (ByteVocabulary(), trained, tokenizer)):
        ids, places = vocabulary.places(text)
        assert ids.tolist() == vocabulary.encode([text])[0].tolist() and places.shape == (len(ids), 2)
        assert (np.diff(places, axis=0) >= 0).all() and (places >= 0).all() and (places <= len(text)).all()
        if text.isascii():  # without normalisation, a piece equals its text
            pieces = [vocabulary.decode([i]).strip() for i in ids.tolist()]
            assert pieces == [text[begin:end].strip() for begin, end in places.tolist()]


def test_a_context_s_tokens_are_those_of_the_whole_text(trained):
    """Encodes windows: word by word, SentencePiece would begin every word or mark with a space."""
    context = "the fox, the dog. (ba-dri) fu's"
    encoder = EncoderOnly(16, window_stride=4, heads=("span",))
    task = text_task("encoder_only", ("question", "context"))
    found, windows = encoder.windows([{"question": "the", "context": context}], task, trained)
    ids = trained.encode([context])[0].tolist()
    assert len(windows) > 1 and windows[-1].end == len(ids)
    for row, window in enumerate(windows):
        tokens = found["encoder_input_tokens"][row].tolist()
        assert tokens[window.first : window.first + window.end - window.begin] == ids[window.begin : window.end]


def test_half_a_surrogate_pair_is_an_error(trained):
    for vocabulary in (ByteVocabulary(), trained):
        with pytest.raises(DataError, match="surrogate"):
            vocabulary.encode(["fine", "bad \ud800"])
        with pytest.raises(DataError, match="surrogate"):
            vocabulary.places("bad \ud800")


def test_trained_model_has_the_roles_and_the_sentinels(trained):
    assert (trained.pad_id, trained.eos_id, trained.unk_id) == (0, 1, 2)
    assert len({trained.cls_id, trained.sep_id, trained.mask_id, 0, 1, 2}) == 6
    assert (trained.size, trained.sentinel(0), trained.sentinel(99)) == (410, 409, 310)
    assert trained.cls_id not in trained.encode(["[CLS] the fox"])[0]  # text cannot forge a control symbol
    with pytest.raises(DataError, match="100"):
        trained.sentinel(100)


def test_training_is_deterministic_and_the_fingerprint_follows_the_model(trained, tmp_path):
    again = train_sentencepiece(size=310, output=tmp_path / "again.model", texts=TEXTS)
    other = train_sentencepiece(size=300, output=tmp_path / "other.model", texts=TEXTS)
    assert again.path.read_bytes() == trained.path.read_bytes()
    assert again.fingerprint == trained.fingerprint != other.fingerprint
    assert SentencePieceVocabulary(trained.path, extra_ids=10).fingerprint != trained.fingerprint
    assert [p.name for p in tmp_path.iterdir()] != [] and not list(tmp_path.glob("tmp*"))


def test_training_learns_from_lines_the_trainer_would_skip(tmp_path):
    """SentencePiece silently skips lines above 4192 bytes."""
    vocabulary = train_sentencepiece(size=310, output=tmp_path / "long.model", texts=[" ".join(TEXTS)])
    assert len(vocabulary.encode(["the fox and the dog"])[0]) < 8


def test_pickling_takes_the_path_along_and_not_the_model(trained):
    trained.encode(["load it"])
    copy = pickle.loads(pickle.dumps(trained))
    assert "processor" not in copy.__dict__ and copy == trained
    assert copy.encode(["the fox"])[0].tolist() == trained.encode(["the fox"])[0].tolist()


def test_too_large_a_size_names_the_largest_possible(tmp_path):
    with pytest.raises(ConfigError, match=r"size 50000 is too large.*largest possible is (\d+)") as caught:
        train_sentencepiece(size=50000, output=tmp_path / "x.model", texts=TEXTS)
    largest = int(str(caught.value).split("largest possible is ")[1].split(".")[0])
    assert len(train_sentencepiece(size=largest, output=tmp_path / "x.model", texts=TEXTS).encode(["a"])) == 1


def test_no_text_to_train_on(tmp_path):
    with pytest.raises(DataError):
        train_sentencepiece(size=300, output=tmp_path / "x.model", texts=["", "  \n"])
    assert not list(tmp_path.iterdir())


def test_load_says_what_is_wrong(tmp_path, trained):
    assert load("bytes") == ByteVocabulary()
    with pytest.raises(ConfigError, match=r"'byte'; did you mean 'bytes'"):
        load("byte")
    (tmp_path / "english.model").write_bytes(trained.path.read_bytes())
    with pytest.raises(ConfigError, match=r"did you mean .*english\.model"):
        load(str(tmp_path / "engish.model"))
    for damaged in (b"", b"not a model", trained.path.read_bytes()[:200]):
        (tmp_path / "english.model").write_bytes(damaged)
        with pytest.raises(ConfigError, match=r"english\.model.*is not a SentencePiece model"):
            load(str(tmp_path / "english.model"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("added_tokens_decoder", {"5": {}}),
        ("added_tokens_decoder", {"5": {"content": ["a"]}}),
        ("added_tokens_decoder", {"9" * 5000: {"content": "a"}}),
        ("additional_special_tokens", 5),
        ("extra_special_tokens", "abc"),
        ("extra_ids", "abc"),
        ("extra_ids", -5),
        ("extra_ids", 10**12),
    ],
)
def test_settings_of_another_type_or_size_are_refused(tmp_path, trained, key, value):
    (tmp_path / "spiece.model").write_bytes(trained.path.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", key: value}))
    with pytest.raises(ConfigError, match=rf"tokenizer_config\.json: {key}"):
        load(str(tmp_path))


@needs_shared
def test_t5s_own_vocabulary():
    t5 = load(str(T5_MODEL))
    assert (t5.size, t5.sentinel(0), t5.pad_id, t5.eos_id, t5.unk_id) == (32100, 32099, 0, 1, 2)
    assert t5.encode(["Hello world, this is T5."])[0].tolist() == [8774, 296, 6, 48, 19, 332, 9125]
    assert t5.decode([8774, 32099, 296, 1, 5]) == "Hello <extra_id_0> world"
    assert load(str(T5_MODEL.parent)) == t5
    with pytest.raises(ConfigError, match=r"no \[MASK\].*t5x-lite vocab"):
        _ = t5.mask_id


@needs_shared
def test_t5s_vocabulary_with_the_sentinels_inside():
    t5 = load(str(T5_MODEL.with_name("cc_all.32000.100extra.model")))
    assert (t5.size, t5.sentinel(0), t5.sentinel(99), t5.unk_id) == (32101, 32100, 32001, 3)
    assert t5.encode(["Hello world, this is T5."])[0].tolist() == [8775, 297, 7, 49, 20, 333, 9126]
    assert t5.decode([8775, 32100, 297, 32099, 1]) == "Hello <extra_id_0> world <extra_id_1>"
    with pytest.raises(DataError, match="vocabulary's 100"):
        t5.sentinel(100)


def test_all_roles_are_named():
    assert vocabularies.CONTROL_SYMBOLS == ("[CLS]", "[SEP]", "[MASK]")


# ----------------------------------------------------------------------------------- tokenizers of Hugging Face


def c4_lines() -> list[str]:
    lines = (SHARED / "text" / "c4_en_train.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


@needs_shared
def test_berts_ids_are_those_of_the_reference():
    transformers = pytest.importorskip("transformers", reason="the parity extra is not installed")
    directory = SHARED / "vocab" / "bert-base-uncased"
    ours, reference = load(str(directory / "vocab.txt")), transformers.BertTokenizer(str(directory / "vocab.txt"))
    texts = [*c4_lines(), "naïve façade, 東京 ① \u200b İ ǆ"]
    assert len(texts) > 1000
    assert [ids.tolist() for ids in ours.encode(texts)] == reference(texts, add_special_tokens=False)["input_ids"]
    roles = [ours.pad_id, ours.unk_id, ours.cls_id, ours.sep_id, ours.mask_id, ours.size]
    assert roles == [0, 100, 101, 102, 103, 30522]
    assert (ours.eos_id, ours.bos_id) == (102, 101)  # the tokenizer has none itself
    assert load(str(directory)) == ours


@needs_shared
def test_gpt2s_ids_are_those_of_the_reference():
    transformers = pytest.importorskip("transformers", reason="the parity extra is not installed")
    directory = SHARED / "vocab" / "gpt2"
    files = {"vocab": str(directory / "vocab.json"), "merges": str(directory / "merges.txt")}
    ours, reference = load(str(directory)), transformers.GPT2Tokenizer(**files)
    texts = [*c4_lines(), "naïve façade, 東京 ① \u200b İ ǆ 🙂  \n\t x"]
    found = ours.encode(texts)
    assert [ids.tolist() for ids in found] == reference(texts)["input_ids"]
    assert [ours.decode(ids) for ids in found] == texts
    assert {ours.pad_id, ours.eos_id, ours.bos_id, ours.unk_id, ours.sep_id} == {50256}
    with pytest.raises(ConfigError, match=r"has no token for mask .*tokenizer_config\.json"):
        _ = ours.mask_id
    with pytest.raises(DataError, match="has no sentinels"):
        ours.sentinel(0)


PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "fox", "##es", "dog", "a", "[", "]", "mask"]


def word_piece_file(directory: Path, pieces=PIECES) -> Path:
    (directory / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    return directory / "vocab.txt"


def test_word_pieces(tmp_path):
    vocabulary = load(str(word_piece_file(tmp_path)))
    assert vocabulary.encode(["The foxes", "dog cat"])[0].tolist() == [5, 6, 7]
    assert vocabulary.encode(["dog cat"])[0].tolist() == [8, 1]
    assert vocabulary.encode(["a [MASK]"])[0].tolist() == [9, 10, 12, 11]  # text cannot forge a control symbol
    assert vocabulary.decode([2, 5, 6, 7, 4, 0, 3, 8]) == "the foxes"
    assert vocabulary.show([2, 5, 6, 7, 3, 0]) == "[CLS] the foxes [SEP] [PAD]"
    lower = vocabulary.fingerprint
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    cased = load(str(tmp_path))
    assert cased.encode(["The fox"])[0].tolist() == [1, 6] and cased.fingerprint != lower
    (tmp_path / "tokenizer_config.json").unlink()
    assert load(str(word_piece_file(tmp_path, [*PIECES, "The"]))).encode(["The fox"])[0].tolist() == [13, 6]


def words(vocabulary, text: str) -> list[str]:
    """Joins a text's tokens to words by `word_starts`; the first token always begins a word."""
    out: list[list[int]] = []
    for i in vocabulary.encode([text])[0].tolist():
        if out and not vocabulary.word_starts[i]:
            out[-1].append(i)
        else:
            out.append([i])
    return [vocabulary.decode(word).strip() for word in out]


def test_words_are_found_from_pieces(tmp_path, trained):
    """Decoded text is not enough: WordPiece drops the space before a full stop or an apostrophe."""
    pieces = [*PIECES, ".", "'", "s", "##s", "-"]
    pairs = load(str(byte_pair_files(tmp_path, ["<|endoftext|>"], ["t h", "Ġ th", "Ġ d"])))
    word_piece = load(str(word_piece_file(tmp_path, pieces)))
    assert words(word_piece, "The fox's a-foxes.") == ["the", "fox", "'", "s", "a", "-", "foxes", "."]
    word_piece.tokenizer.save(str(tmp_path / "tokenizer.json"))  # type: ignore[attr-defined]
    assert (load(str(tmp_path / "tokenizer.json")).word_starts == word_piece.word_starts).all()
    assert words(pairs, "the dog's\n\tthe  end.") == ["the", "dog's", "", "the", "", "end."]
    assert words(trained, "the dog saw baba, fox.") == ["the", "dog", "saw", "baba,", "fox."]
    assert words(ByteVocabulary(), "the dog's é.") == ["the", "dog's", "é."]
    for vocabulary in (word_piece, pairs, trained, ByteVocabulary(5)):
        assert vocabulary.word_starts.shape == (vocabulary.size,)


@needs_shared
def test_words_of_the_real_vocabularies():
    text = "The fox's tail, unbelievably, isn't (quite) end-to-end."
    bert, gpt2, t5 = (load(str(SHARED / "vocab" / name)) for name in ("bert-base-uncased", "gpt2", "t5"))
    assert " ".join(words(bert, text)) == "the fox ' s tail , unbelievably , isn ' t ( quite ) end - to - end ."
    assert words(gpt2, text) == words(t5, text) == text.split()


def test_a_tokenizer_file_is_used_without_its_truncation_and_padding(tmp_path):
    tokenizer = load(str(word_piece_file(tmp_path))).tokenizer  # type: ignore[attr-defined]
    tokenizer.add_special_tokens(["[MASK]", "<extra_id_0>"])
    tokenizer.enable_truncation(1)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    vocabulary = load(str(tmp_path))
    assert isinstance(vocabulary, TokenizerVocabulary) and vocabulary.path.name == "tokenizer.json"
    assert [ids.tolist() for ids in vocabulary.encode(["the fox", "dog [MASK]"])] == [[5, 6], [8, 10, 12, 11]]
    assert (vocabulary.size, vocabulary.mask_id, vocabulary.sentinel(0)) == (14, 4, 13)
    assert vocabulary.decode([5, 13, 6]) == "the <extra_id_0> fox"
    assert pickle.loads(pickle.dumps(vocabulary)).encode(["the"])[0].tolist() == [5]
    with pytest.raises(DataError, match="surrogate"):
        vocabulary.encode(["fine", "bad \ud800"])


@pytest.mark.parametrize(
    ("said", "file", "extra_ids"),
    [
        ({}, "spiece.model", 100),
        ({"config.json": {"model_type": "t5"}}, "spiece.model", 100),
        ({"huggingface.json": {"model_type": "mt5"}}, "spiece.model", 100),
        ({"tokenizer_config.json": {"tokenizer_class": "T5Tokenizer"}}, "spiece.model", 100),
        ({"special_tokens_map.json": {"additional_special_tokens": ["<extra_id_0>"]}}, "spiece.model", 100),
        (
            {"config.json": {"model_type": "llama"}, "special_tokens_map.json": {"eos_token": "</s>"}},
            "tokenizer.json",
            0,
        ),
        ({"tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast"}}, "tokenizer.json", 0),
        (
            {"config.json": {"model_type": "t5"}, "tokenizer_config.json": {"tokenizer_class": "Fast"}},
            "tokenizer.json",
            100,
        ),
    ],
)
def test_a_directory_s_model_says_which_file_is_read_and_whether_sentinels_stand_behind_it(
    said, file, extra_ids, tmp_path, trained
):
    word_piece = load(str(word_piece_file(tmp_path))).tokenizer  # type: ignore[attr-defined]
    word_piece.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "spiece.model").write_bytes(trained.path.read_bytes())
    for name, content in said.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert load(str(tmp_path)).path.name == file  # type: ignore[attr-defined]
    (tmp_path / "tokenizer.json").unlink()
    found = load(str(tmp_path))
    assert isinstance(found, SentencePieceVocabulary) and found.size == len(found.processor) + extra_ids


def test_byt5_s_directory_has_no_vocabulary_s_file(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
    assert load(str(tmp_path)) == ByteVocabulary()


def byte_pair_files(directory: Path, specials: list[str], merges=("t h", "th e")) -> Path:
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*specials, *alphabet, *(merge.replace(" ", "") for merge in merges)]
    (directory / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}), encoding="utf-8")
    (directory / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    return directory / "vocab.json"


def test_robertas_roles(tmp_path):
    vocabulary = load(str(byte_pair_files(tmp_path, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"])))
    roles = [getattr(vocabulary, f"{role}_id") for role in ("pad", "cls", "sep", "mask", "eos", "unk", "bos")]
    assert roles == [1, 0, 2, 4, 2, 3, 0]
    assert vocabulary.decode([0, *vocabulary.encode(["the ﬁsh\n"])[0], 1, 2, 9]) == "the ﬁsh\n"
    (tmp_path / "special_tokens_map.json").write_text('{"mask_token": {"content": "<unk>"}, "pad_token": null}')
    assert (load(str(tmp_path)).mask_id, load(str(tmp_path)).pad_id) == (3, 1)


def test_fairseq_s_marks_are_those_of_the_reference(tmp_path):
    """RoBERTa's marks around a text and a pair, BART's around inputs and targets."""
    transformers = pytest.importorskip("transformers", reason="the parity extra is not installed")
    vocabulary = load(str(byte_pair_files(tmp_path, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"])))
    files = {"vocab": str(tmp_path / "vocab.json"), "merges": str(tmp_path / "merges.txt")}
    for second in ({}, {"pair": "dog"}):
        task = text_task("encoder_only", ("inputs", *second))
        converter = EncoderOnly(32, ("classification",), fairseq_marks=True)
        prompts, _ = converter.prompts([{"inputs": "the fox", **second}], task, vocabulary, 1)
        found = prompts["encoder_input_tokens"]
        reference = transformers.RobertaTokenizer(**files)
        assert found.values.tolist() == reference("the fox", *second.values())["input_ids"]
    example, task = {"inputs": "the fox", "targets": "dog"}, text_task("text_to_text")
    features, _ = TextToText(32, 32, start_id=2, fairseq_marks=True).supervised([example], task, vocabulary)
    reference = transformers.BartTokenizer(**files)
    for field, name in (("encoder_input_tokens", "inputs"), ("decoder_target_tokens", "targets")):
        assert features[field].values.tolist() == reference(example[name])["input_ids"]


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_byte_pairs_lose_nothing(tmp_path_factory, text):
    directory = tmp_path_factory.getbasetemp() / "byte_pairs"
    if not directory.exists():
        directory.mkdir()
        byte_pair_files(directory, ["<|endoftext|>"])
    vocabulary = TokenizerVocabulary(directory / "vocab.json")
    assert vocabulary.decode(vocabulary.encode([text])[0]) == text


def test_broken_tokenizer_files_say_what_is_wrong(tmp_path):
    def refuses(path: Path, message: str) -> None:
        with pytest.raises(ConfigError, match=message) as caught:
            load(str(path))
        assert str(path.parent if path.suffix else path) in str(caught.value)

    refuses(tmp_path / "tokenizer.json", r"cannot read the vocabulary .*No such file.*hf download")
    refuses(tmp_path, r"has no vocabulary file; it must have a spiece\.model, tokenizer\.json")
    whole = load(str(word_piece_file(tmp_path))).tokenizer.to_str().encode()  # type: ignore[attr-defined]
    for damaged in (
        b"",
        b"{}",
        b"[]",
        b"\xff",
        whole[:-20],
        b"[" * 100_000,
        whole.replace(b'token":"[UNK]"', b'token":"[UNX]"'),
    ):
        (tmp_path / "tokenizer.json").write_bytes(damaged)
        refuses(tmp_path / "tokenizer.json", r"tokenizer\.json")
    (tmp_path / "tokenizer.json").unlink()
    for damaged in (b"", b"no\npieces\n", b"\xff"):
        (tmp_path / "vocab.txt").write_bytes(damaged)
        refuses(tmp_path / "vocab.txt", r"has no line '\[UNK\]'|not UTF-8")
    vocab = byte_pair_files(tmp_path, [])
    (tmp_path / "merges.txt").write_text("t q\n")
    refuses(vocab, r"merge 1, 't q', is not two pieces")
    (tmp_path / "merges.txt").unlink()
    refuses(vocab, r"cannot read the vocabulary .*merges\.txt")
    vocab.write_text('{"a": 0}')
    (tmp_path / "merges.txt").write_text("")
    refuses(vocab, "lacks 255 of the 256 bytes")
    (tmp_path / "a.model").write_bytes(b"")
    (tmp_path / "b.model").write_bytes(b"")
    vocab.unlink()
    (tmp_path / "vocab.txt").unlink()
    refuses(tmp_path, r"has a\.model, b\.model")


BERT_WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "paris",
    "Paris",
    "is",
    "cafe",
    "café",
    "東",
    "京",
    "東京",
    "x",
]
BERT_TEXTS = ["Paris is", "paris IS", "café Café", "東京 is", "<user> is", "covid19 COVID19"]


def bert_directory(directory, tokenizer_json: bool | None, added: bool, **settings):
    """tokenizer_json: whether it lowercases; None for a vocab.txt."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    directory.mkdir()
    (directory / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    if tokenizer_json is None:
        (directory / "vocab.txt").write_text("\n".join(BERT_WORDS) + "\n", encoding="utf-8")
        if added:
            ids = {"<user>": len(BERT_WORDS), "covid19": len(BERT_WORDS) + 1}
            (directory / "added_tokens.json").write_text(json.dumps(ids))
        return
    made = Tokenizer(models.WordPiece({word: i for i, word in enumerate(BERT_WORDS)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=tokenizer_json)
    made.pre_tokenizer, made.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    made.save(str(directory / "tokenizer.json"))


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("lower", [None, False, True])
@pytest.mark.parametrize("more", [{}, {"strip_accents": False}, {"tokenize_chinese_chars": False}], ids=str)
@pytest.mark.parametrize("tokenizer_json", [None, False, True])
def test_the_ids_are_those_of_auto_tokenizer(tmp_path, tokenizer_json, lower, more, added):
    transformers = pytest.importorskip("transformers", reason="the parity extra is not installed")
    if (added and tokenizer_json is not None) or (lower is None and tokenizer_json is None):
        pytest.skip("no such directory, or one whose case we guess from its words")
    settings = {"tokenizer_class": "BertTokenizer"} | more | ({} if lower is None else {"do_lower_case": lower})
    bert_directory(tmp_path / "m", tokenizer_json, added, **settings)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    ours = load(str(tmp_path / "m"))
    for text, ids in zip(BERT_TEXTS, ours.encode(BERT_TEXTS), strict=True):
        assert ids.tolist() == theirs(text, add_special_tokens=False).input_ids, text


def test_a_tokenizer_that_cuts_texts_otherwise_is_refused(tmp_path):
    for number, settings in enumerate(
        (
            {"tokenizer_class": "BertJapaneseTokenizer"},
            {"tokenizer_class": "BertTokenizer", "word_tokenizer_type": "mecab"},
        )
    ):
        bert_directory(tmp_path / str(number), None, False, **settings)
        with pytest.raises(
            ConfigError, match=r"BertJapanese.* cannot be read from a vocab.txt|word_tokenizer_type='mecab'"
        ):
            load(str(tmp_path / str(number)))
    bert_directory(tmp_path / "gap", None, False)
    (tmp_path / "gap" / "added_tokens.json").write_text(json.dumps({"<user>": 99}))
    with pytest.raises(ConfigError, match=r"added_tokens.json gives '<user>' the id 99; it must follow"):
        load(str(tmp_path / "gap"))


@pytest.mark.parametrize("key", ["additional_special_tokens", "extra_special_tokens", "extra_ids", "add_prefix_space"])
@pytest.mark.parametrize("value", [-1, 10**12, 0.5, float("inf"), "abc"])
def test_an_absurd_setting_is_refused_by_name(tmp_path, key, value):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({key: value}))
    with pytest.raises(ConfigError, match=rf"\b{key}="):
        vocabularies.load(str(tmp_path))


def test_a_number_of_sentinels_that_is_null_is_the_usual_one(tmp_path, trained):
    shutil.copy(trained.path, tmp_path / "spiece.model")
    sizes = set()
    for settings in ({}, {"extra_ids": None}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer"} | settings))
        sizes.add(vocabularies.load(str(tmp_path)).size)
    assert len(sizes) == 1


def test_the_place_of_a_word_begins_after_its_space(tmp_path):
    """In byte-level BPE the space belongs to the piece of the word."""
    letters = {letter: i for i, letter in enumerate(sorted(ByteLevel.alphabet()))}
    (tmp_path / "vocab.json").write_text(json.dumps(letters | {"Ġb": 256}))
    (tmp_path / "merges.txt").write_text("Ġ b\n")
    _, places = load(str(tmp_path)).places("a b")
    assert ["a b"[begin:end] for begin, end in places.tolist()] == ["a", "b"]
