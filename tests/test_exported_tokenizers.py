"""Exported models read texts as before, although their model_type may imply another tokenizer."""

import json

import pytest
import tokenizers
from test_data_vocabularies import TEXTS
from test_hub import tiny
from tiny_models import random_params
from tokenizers.trainers import UnigramTrainer

import t5x_lite
from t5x_lite.data import vocabularies
from t5x_lite.hub import interchange

TEXT = "The Quick\tbrown fox  jumps"
NAMES = ("bert", "gpt2", "t5", "bart", "albert", "camembert", "deberta-v2", "mbart", "pegasus", "m2m_100", "marian")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """{kind: the file of a vocabulary that no class of transformers describes}"""
    root = tmp_path_factory.mktemp("vocabularies")
    made = vocabularies.train_sentencepiece(texts=TEXTS, output=root / "v.model", size=310)
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    names = ["<pad>", "</s>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(
        [*TEXTS, TEXT], UnigramTrainer(vocab_size=90, unk_token="<unk>", special_tokens=names)
    )
    (root / "other").mkdir()
    tokenizer.save(str(root / "other" / "tokenizer.json"))
    return {"sentencepiece": made.path, "tokenizer.json": root / "other" / "tokenizer.json"}


@pytest.mark.parametrize("kind", ["sentencepiece", "tokenizer.json"])
@pytest.mark.parametrize("name", NAMES)
def test_export_and_import_keep_the_vocabulary_of_a_model_that_was_trained_here(tmp_path, files, kind, name):
    vocabulary, config = vocabularies.load(str(files[kind])), tiny(name, vocab_size=512)
    interchange.export_directory(config, random_params(config), tmp_path / "hf", vocabulary=vocabulary, family=name)
    interchange.import_directory(tmp_path / "hf", tmp_path / "imported")
    for directory in (tmp_path / "hf", tmp_path / "imported"):
        read = t5x_lite.load(directory, special_tokens=False).vocabulary
        assert read.encode([TEXT])[0].tolist() == vocabulary.encode([TEXT])[0].tolist()
    assert (name == "t5" and kind == "sentencepiece") != (tmp_path / "hf" / "tokenizer_config.json").exists()


@pytest.mark.parametrize("name", ["bert", "m2m_100"])
def test_a_vocabulary_of_ours_is_read_beside_a_model_whose_files_name_no_class(tmp_path, files, name):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": name}))
    (tmp_path / "spiece.model").write_bytes(files["sentencepiece"].read_bytes())
    expected = vocabularies.load(str(files["sentencepiece"]))
    assert vocabularies.load(str(tmp_path)).encode([TEXT])[0].tolist() == expected.encode([TEXT])[0].tolist()


def test_a_changed_family_keeps_the_class_that_the_vocabulary_had(tmp_path, files):
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "tokenizer.json").write_bytes(files["tokenizer.json"].read_bytes())
    (tmp_path / "v" / "huggingface.json").write_text('{"model_type": "albert"}')
    vocabulary, config = vocabularies.load(str(tmp_path / "v")), tiny("bert", vocab_size=512)
    interchange.export_directory(config, random_params(config), tmp_path / "hf", vocabulary=vocabulary, family="bert")
    settings = json.loads((tmp_path / "hf" / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "AlbertTokenizer"
    assert vocabularies.load(str(tmp_path / "hf")).fingerprint == vocabulary.fingerprint
