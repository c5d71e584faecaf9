"""Vocabularies: ids, roles, sentinels, fingerprints, and what a broken file says."""

import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_lite.data import vocabularies
from t5x_lite.data.vocabularies import ByteVocabulary, SentencePieceVocabulary, load, train_sentencepiece
from t5x_lite.errors import ConfigError, DataError

T5_MODEL = Path(__file__).parents[1].parent / "shared" / "data" / "vocab" / "t5" / "spiece.model"
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
    # What text is made of never looks like a special token.
    assert not {vocabulary.cls_id, vocabulary.sep_id, vocabulary.mask_id, vocabulary.eos_id} & set(ids.tolist())
    assert not {vocabulary.sentinel(k) for k in range(8)} & set(ids.tolist())


def test_bytes_have_the_layout_of_byt5():
    assert ByteVocabulary().encode(["a"])[0].tolist() == [ord("a") + 3]
    assert [ByteVocabulary().sentinel(k) for k in range(3)] == [258, 257, 256]
    assert (ByteVocabulary(100).size, ByteVocabulary(100).sentinel(0)) == (359, 358)


def test_decoding_ends_at_eos_and_leaves_padding_out(trained):
    for vocabulary in (ByteVocabulary(), trained):
        ids = [*vocabulary.encode(["the fox"])[0], vocabulary.pad_id, vocabulary.eos_id, *vocabulary.encode(["dog"])[0]]
        assert vocabulary.decode(ids) == "the fox"
        assert vocabulary.decode([vocabulary.sentinel(1)]) == "<extra_id_1>"


def test_half_a_surrogate_pair_is_an_error(trained):
    for vocabulary in (ByteVocabulary(), trained):
        with pytest.raises(DataError, match="surrogate"):
            vocabulary.encode(["fine", "bad \ud800"])


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
    """SentencePiece leaves out lines above 4192 bytes without a word."""
    vocabulary = train_sentencepiece(size=310, output=tmp_path / "long.model", texts=[" ".join(TEXTS)])
    assert len(vocabulary.encode(["the fox and the dog"])[0]) < 8


def test_pickling_takes_the_path_along_and_not_the_model(trained):
    trained.encode(["load it"])
    copy = pickle.loads(pickle.dumps(trained))
    assert "_processor" not in copy.__dict__ and copy == trained
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


@pytest.mark.skipif(not T5_MODEL.exists(), reason="T5's own vocabulary is not on this machine")
def test_t5s_own_vocabulary():
    t5 = load(str(T5_MODEL))
    assert (t5.size, t5.sentinel(0), t5.pad_id, t5.eos_id, t5.unk_id) == (32100, 32099, 0, 1, 2)
    assert t5.encode(["Hello world, this is T5."])[0].tolist() == [8774, 296, 6, 48, 19, 332, 9125]
    assert t5.decode([8774, 32099, 296, 1, 5]) == "Hello <extra_id_0> world"
    with pytest.raises(ConfigError, match=r"no \[MASK\].*t5x-lite vocab"):
        _ = t5.mask_id


def test_all_roles_are_named():
    assert vocabularies.CONTROL_SYMBOLS == ("[CLS]", "[SEP]", "[MASK]")
