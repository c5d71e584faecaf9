"""Special tokens that a text spells: text in training, their own ids in models from Hugging Face."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from test_data_vocabularies import TEXTS
from test_tokenizer_directories import BERT, FAIRSEQ, byte_pairs, t5, word_piece, xlm_roberta
from tiny_models import FAMILIES, random_params

import t5x_lite
from t5x_lite.data import vocabularies
from t5x_lite.data.vocabularies import ByteVocabulary
from t5x_lite.errors import ConfigError
from t5x_lite.hub import interchange

NAMES = {
    "bytes": ["<pad>", "</s>", "<unk>", "<extra_id_0>", "<extra_id_61>"],
    "sentencepiece": ["<pad>", "</s>", "<unk>", "[CLS]", "[SEP]", "[MASK]", "<extra_id_0>", "<extra_id_99>"],
    "word_piece": BERT,
    "byte_pairs": FAIRSEQ,
    "unigram": ["<s>", "</s>", "<pad>", "<mask>"],
    "t5": ["</s>", "<pad>", "<extra_id_0>", "<extra_id_99>"],
}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    """{kind: what a config names}."""
    root = tmp_path_factory.mktemp("special")
    model = vocabularies.train_sentencepiece(texts=TEXTS, output=root / "v.model", size=310)
    out = {"bytes": "bytes", "sentencepiece": str(model.path)}
    makers: dict = {"word_piece": word_piece, "unigram": xlm_roberta, "t5": t5}
    makers["byte_pairs"] = lambda: byte_pairs(FAIRSEQ, True)
    for kind, make in makers.items():
        (root / kind).mkdir()
        tokenizer: tokenizers.Tokenizer = make()
        tokenizer.add_special_tokens(NAMES[kind])
        tokenizer.save(str(root / kind / "tokenizer.json"))
        out[kind] = str(root / kind)
    return out


@pytest.mark.parametrize("kind", NAMES)
@given(data=st.data())
def test_a_name_is_one_id_only_where_special_tokens_are_read(files, kind, data):
    plain, special = (_loaded(files[kind], flag) for flag in (False, True))
    parts = data.draw(st.lists(st.sampled_from([*NAMES[kind], " the", " fox", "ran ", "river", ".", " "]), max_size=6))
    text = "".join(parts)
    names = [part for part in parts if part in NAMES[kind]]
    ids_of = {name: special.encode([name])[0].tolist() for name in NAMES[kind]}
    assert all(len(ids) == 1 for ids in ids_of.values())
    marks = {ids[0] for ids in ids_of.values()} - {special.unk_id}
    assert not marks & set(plain.encode([text])[0].tolist())  # training data cannot forge them
    found = special.encode([text])[0].tolist()
    assert [i for i in found if i in marks] == [ids_of[name][0] for name in names if ids_of[name][0] in marks]
    ids, places = special.places(text)
    assert ids.tolist() == found and all(0 <= begin <= end <= len(text) for begin, end in places.tolist())
    if not names:
        assert found == plain.encode([text])[0].tolist()


_VOCABULARIES: dict = {}


def _loaded(spec: str, special_tokens: bool):
    key = spec, special_tokens
    if key not in _VOCABULARIES:
        _VOCABULARIES[key] = vocabularies.load(spec, special_tokens)
    return _VOCABULARIES[key]


@pytest.mark.parametrize("kind", NAMES)
def test_vocabularies_that_read_differently_are_not_equal(files, kind):
    plain, special = (vocabularies.load(files[kind], flag) for flag in (False, True))
    assert plain != special and plain.fingerprint != special.fingerprint
    assert plain == vocabularies.load(files[kind]) == dataclasses.replace(special, special_tokens=False)  # type: ignore[type-var]


def test_a_model_of_hugging_face_reads_them_unless_told_otherwise(tmp_path, files):
    model = FAMILIES["t5"]
    model = dataclasses.replace(model, vocab_size=512)
    vocabulary = vocabularies.load(files["sentencepiece"])
    interchange.export_directory(model, random_params(model), tmp_path / "hf", vocabulary=vocabulary)
    interchange.import_directory(tmp_path / "hf", tmp_path / "imported")
    text, gap = "the <extra_id_0> ran", vocabulary.sentinel(0)
    for directory in (tmp_path / "hf", tmp_path / "imported"):
        for flag, is_read in ((None, True), (True, True), (False, False)):
            loaded = t5x_lite.load(directory, special_tokens=flag)
            assert (gap in loaded.tokenize([text])["encoder_input_tokens"]) == is_read


def test_the_advice_on_a_vocabulary_s_size_can_be_followed(tmp_path):
    """The sizes in the messages are possible ones, for texts of few words as well."""
    for number, texts in enumerate((["a few words"], ["the cat sat on the mat"] * 3, ["x"], TEXTS)):
        for size in (1, 64, 270, 300, 5000):
            output = tmp_path / f"{number}.model"
            try:
                vocabularies.train_sentencepiece(size=size, output=output, texts=texts)
            except ConfigError as error:
                possible = int(re.findall(r"possible is (\d+)", str(error))[0])
                made = vocabularies.train_sentencepiece(size=possible, output=output, texts=texts)
                assert len(made.processor) == possible


def test_a_run_takes_the_vocabulary_of_the_model_that_it_starts_from(tmp_path, files, monkeypatch):
    from t5x_lite import config, experiment
    from t5x_lite.data import registry

    monkeypatch.setattr(registry, "REGISTRY", dict(registry.REGISTRY))
    model = dataclasses.replace(FAMILIES["t5"], vocab_size=512)
    vocabulary = vocabularies.load(files["sentencepiece"])
    interchange.export_directory(model, random_params(model), tmp_path / "hf", vocabulary=vocabulary)
    interchange.import_directory(tmp_path / "hf", tmp_path / "imported")
    (tmp_path / "rows.csv").write_text("text,label\n" + "the fox,good\nthe river,bad\n" * 20)
    for key, name in (("preset", "t5_tiny"), ("preset", str(tmp_path / "imported"))):
        cfg = config.base()
        cfg.data.files, cfg.data.inputs, cfg.data.targets = str(tmp_path / "rows.csv"), "{text}", "{label}"
        cfg.data.length, cfg.model[key] = 32, name
        cfg.init.checkpoint = str(tmp_path / "imported")
        resolved = experiment.resolve(cfg)
        assert resolved.vocabulary.fingerprint == vocabulary.fingerprint
        assert resolved.cfg.data.vocabulary == str(tmp_path / "imported") and not cfg.data.vocabulary
        assert not resolved.vocabulary.special_tokens  # type: ignore[attr-defined]
    cfg.data.vocabulary = "bytes"
    assert experiment.resolve(cfg).vocabulary == ByteVocabulary()
    cfg.data.vocabulary, cfg.init.checkpoint, cfg.model.preset = "", "", "t5_tiny"
    assert experiment.resolve(cfg).vocabulary == ByteVocabulary()


def test_the_type_of_the_model_stays_beside_a_run_s_vocabulary(tmp_path, monkeypatch):
    """It decides how some tokenizers read: a BERT's lowercases, whatever its tokenizer.json says."""
    from t5x_lite import config, experiment, saved_run
    from t5x_lite.data import registry
    from t5x_lite.data.registry import Task
    from t5x_lite.data.sources import Function

    monkeypatch.setattr(registry, "REGISTRY", dict(registry.REGISTRY))
    directory = Path(tmp_path / "v")
    directory.mkdir()
    word_piece(lowercase=False).save(str(directory / "tokenizer.json"))
    (directory / "config.json").write_text(json.dumps({"model_type": "bert"}))
    registry.add(Task("t", Function(lambda split: [{"inputs": "a", "targets": "yes"}]), labels=("yes", "no")))
    cfg = config.base()
    cfg.model.preset, cfg.data.mixture, cfg.data.length, cfg.data.vocabulary = "bert_tiny", "t", 32, str(directory)
    made = experiment.resolve(cfg)
    (tmp_path / "run").mkdir()
    saved_run.write(made, tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text(config.to_json(cfg))
    again = saved_run.resolve(cfg, tmp_path / "run")
    assert again.vocabulary.fingerprint == made.vocabulary.fingerprint
    for vocabulary in (made.vocabulary, again.vocabulary):
        assert vocabulary.pieces(vocabulary.encode(["Paris"])[0].tolist()) == ["paris"]
