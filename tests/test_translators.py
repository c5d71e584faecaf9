"""Translators: tokenizers, languages and translations equal those of transformers."""

import json
import random
import re

import numpy as np
import pytest
from test_tokenizer_directories import TEXTS
from tiny_translators import M2M_CODES, m2m_100_files, marian_files, translator

import t5x_lite
from t5x_lite import config, experiment, saved_run
from t5x_lite.data import languages, registry, vocabularies
from t5x_lite.data.translator_vocabulary import TranslatorVocabulary
from t5x_lite.errors import ConfigError
from t5x_lite.hub.interchange import export_model, import_directory

torch = pytest.importorskip("torch", reason="parity needs the extra `parity`")
transformers = pytest.importorskip("transformers", reason="parity needs the extra `parity`")
from transformers.models.m2m_100.modeling_m2m_100 import shift_tokens_right  # noqa: E402

FAMILIES = {  # {family: two languages}
    "nllb": ("eng_Latn", "deu_Latn"), "mbart": ("en_XX", "ro_RO"), "mbart50": ("en_XX", "de_DE"),
    "m2m_100": ("en", "fr"), "marian": None, "pegasus": None,
}  # fmt: skip
WITH_LANGUAGES = [family for family, two in FAMILIES.items() if two]
SHORT = ["the fox ran", "fox", " the  cafe x7 to paris", "the the the fox ran to the cafe"]


def texts(*parts: str) -> list[str]:
    rng = random.Random(0)
    parts = ("the", " ", "fox", "</s>", "<pad>", "☃", "x", ".", *parts)
    return [*TEXTS, *parts, *("".join(rng.choices(parts, k=6)) for _ in range(100))]


# ------------------------------------------------------------------------------------------ vocab.json with a model


@pytest.mark.parametrize(
    ("files", "settings"),
    [
        (m2m_100_files, {}),
        (m2m_100_files, {"additional_special_tokens": [], "language_codes": "wmt21"}),
        (m2m_100_files, {"additional_special_tokens": M2M_CODES[:5], "split_special_tokens": True}),
        (marian_files, {}),
        (marian_files, {"source_lang": "en", "target_lang": "fra", "split_special_tokens": True}),
        (marian_files, {"unk_token": ">>fra<<", "sp_model_kwargs": {}}),
    ],
)
def test_ids_and_texts_are_those_of_transformers(files, settings, tmp_path):
    files(tmp_path, **settings)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for special in (False, True):
        ours = vocabularies.load(str(tmp_path), special)
        assert isinstance(ours, TranslatorVocabulary)
        split = {"split_special_tokens": not special or theirs.split_special_tokens, "add_special_tokens": False}
        for text in texts("__en__", "__fr__", ">>fra<<", ">>xxx<<", "<<", ">>"):
            ids, places = ours.places(text)
            assert ids.tolist() == ours.encode([text])[0].tolist() == theirs(text, **split).input_ids, text
            assert all(0 <= begin <= end <= len(text) for begin, end in places.tolist())
            theirs._switch_to_target_mode() if files is marian_files else None
            assert ours.for_targets.encode([text])[0].tolist() == theirs(text, **split).input_ids, text
            theirs._switch_to_input_mode()
    assert isinstance(ours, TranslatorVocabulary)
    unlisted = set(ours.languages.ids.values() if ours.languages else ()) - set(theirs.all_special_ids)
    rng = random.Random(0)
    for _ in range(100):
        ids = rng.choices(range(ours.size), k=rng.randrange(9))
        shown = [i for i in ids if i != ours.eos_id and i not in unlisted]
        assert ours.decode(shown) == theirs.decode(shown, skip_special_tokens=True)
    assert ours.pieces([ours.eos_id, ours.pad_id]) == ["</s>", "<pad>"] and ours.show([ours.eos_id]) == "</s>"
    assert ours == vocabularies.load(str(tmp_path), True) != ours.for_targets or files is m2m_100_files
    assert len(ours.word_starts) == ours.size and not ours.word_starts[ours.eos_id]


@pytest.mark.parametrize(
    ("files", "settings", "message"),
    [
        (marian_files, {"separate_vocabs": True}, "separate_vocabs=True"),
        (marian_files, {"sp_model_kwargs": {"enable_sampling": True}}, "sp_model_kwargs={'enable_sampling': True}"),
        (marian_files, {"pad_token": "<nothing>"}, "'<nothing>'"),
        (marian_files, {"extra_special_tokens": ["<user>"]}, "special token '<user>' the id"),
        (marian_files, {"added_tokens_decoder": {"3": {"content": ">>fra<<"}}}, "'>>fra<<' the id 3, but it must be"),
        (m2m_100_files, {"language_codes": "m2m"}, "unknown language_codes 'm2m'; did you mean 'm2m100'"),
        (m2m_100_files, {"additional_special_tokens": M2M_CODES[1:]}, "'__am__' the id"),
        (m2m_100_files, {"src_lang": 5}, "src_lang='5': must be of type str"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(files, settings, message, tmp_path):
    files(tmp_path, **settings)
    with pytest.raises(ConfigError, match=re.escape(message)):
        vocabularies.load(str(tmp_path), True)


def test_each_file_is_needed(tmp_path):
    marian_files(tmp_path)
    (tmp_path / "target.spm").unlink()
    with pytest.raises(ConfigError, match=r"has no target\.spm, which a MarianTokenizer needs"):
        vocabularies.load(str(tmp_path))
    (tmp_path / "target.spm").write_bytes((tmp_path / "source.spm").read_bytes())
    (tmp_path / "vocab.json").write_text('{"</s>": 1}')
    with pytest.raises(ConfigError, match="must give 1 pieces the ids 0 to 0"):
        vocabularies.load(str(tmp_path))


# ----------------------------------------------------------------------------------------------- reading and writing


def generated(model, tokenizer, inputs: list[str], **options) -> list[str]:
    out = [
        model.generate(**tokenizer(text, return_tensors="pt"), do_sample=False, max_new_tokens=9, **options)
        for text in inputs
    ]
    return [tokenizer.decode(ids[0], skip_special_tokens=True) for ids in out]


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_are_read_and_written_with_the_marks_of_the_tokenizer(family, tmp_path):
    settings = {"src_lang": FAMILIES[family][1]} if FAMILIES[family] else {}
    theirs, tokenizer = translator(family, tmp_path / "hf", **settings)
    import_directory(tmp_path / "hf", tmp_path / "imported")
    export_model(t5x_lite.load(tmp_path / "imported"), tmp_path / "again")
    for directory in ("hf", "imported", "again"):
        model = t5x_lite.load(tmp_path / directory)
        batch = model.tokenize(SHORT)
        for row, text in enumerate(SHORT):
            ids = batch["encoder_input_tokens"][row][batch["encoder_segment_ids"][row] > 0].tolist()
            assert ids == tokenizer(text).input_ids
    found = model.generate(SHORT, max_tokens=9)
    assert found == generated(theirs, tokenizer, SHORT) and len(set(found)) > 1


@pytest.mark.parametrize(
    "family",  # the slow ones differ from these in their tokenizers, of which the other tests compare the tokens
    [pytest.param(f, marks=pytest.mark.slow if f in ("nllb", "mbart50") else ()) for f in WITH_LANGUAGES],
)
def test_translations_are_those_of_transformers(family, tmp_path):
    source, target = FAMILIES[family]
    theirs, tokenizer = translator(family, tmp_path)
    translate = t5x_lite.pipeline("translation", model=tmp_path, max_new_tokens=9)
    for one, other in ((source, target), (target, source)):
        tokenizer.src_lang = one
        first = tokenizer.get_lang_id(other) if family == "m2m_100" else tokenizer.convert_tokens_to_ids(other)
        wanted = generated(theirs, tokenizer, SHORT, num_beams=4, forced_bos_token_id=first)
        found = [answer["translation_text"] for answer in translate(SHORT, src_lang=one, tgt_lang=other)]
        assert found == wanted and len(set(found)) > 1
        named = t5x_lite.pipeline(f"translation_{one}_to_{other}", model=translate.model, max_new_tokens=9)
        assert [answer["translation_text"] for answer in named(SHORT)] == wanted
    for options, message in (
        ({"src_lang": source}, "needs both"), ({"tgt_lang": target}, "needs both"), ({}, "needs both"),
        ({"src_lang": source + "x", "tgt_lang": target}, f"did you mean '{source}'"),
        ({"src_lang": source, "tgt_lang": "xx_xx"}, "unknown language 'xx_xx'"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            translate(SHORT, **options)


@pytest.mark.parametrize("family", ["marian", "pegasus"])
def test_a_tokenizer_without_marks_takes_no_languages(family, tmp_path):
    translator(family, tmp_path)
    translate = t5x_lite.pipeline("translation_en_to_de", model=tmp_path, max_new_tokens=3)
    assert len(translate(SHORT)) == len(SHORT)
    with pytest.raises(ConfigError, match="tgt_lang='de': this model's tokenizer marks no languages"):
        translate(SHORT, tgt_lang="de")


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_labels_with_the_marks_of_targets(family, tmp_path):
    two = FAMILIES[family]
    theirs, tokenizer = translator(family, tmp_path, **({"src_lang": two[0], "tgt_lang": two[1]} if two else {}))
    found = t5x_lite.load(tmp_path).score(list(zip(SHORT, reversed(SHORT), strict=True)))
    for text, target, score in zip(SHORT, reversed(SHORT), found, strict=True):
        encoded = tokenizer(text, text_target=target, return_tensors="pt")
        loss = theirs(**encoded).loss.item() * encoded["labels"].shape[1]
        np.testing.assert_allclose(-score, loss, rtol=2e-5)


def test_mbart_starts_with_the_target_language_if_its_files_name_no_start(tmp_path):
    theirs, tokenizer = translator("mbart", tmp_path)
    for name in ("config.json", "generation_config.json"):
        said = json.loads((tmp_path / name).read_text())
        (tmp_path / name).write_text(json.dumps(said | {"decoder_start_token_id": None}))
    translate = t5x_lite.pipeline("translation", model=tmp_path, max_new_tokens=9, num_beams=1)
    german = tokenizer.convert_tokens_to_ids("de_DE")
    wanted = generated(theirs, tokenizer, SHORT, decoder_start_token_id=german)
    assert [one["translation_text"] for one in translate(SHORT, src_lang="en_XX", tgt_lang="de_DE")] == wanted
    assert translate.model.start_id == tokenizer.convert_tokens_to_ids("en_XX")


def test_the_codes_are_those_of_the_published_models():
    from transformers.models.m2m_100 import tokenization_m2m_100
    from transformers.models.mbart import tokenization_mbart
    from transformers.models.mbart50 import tokenization_mbart50
    from transformers.models.nllb import tokenization_nllb

    assert {*languages.NLLB} == {*tokenization_nllb.FAIRSEQ_LANGUAGE_CODES} and len(languages.NLLB) == 202
    assert [*languages.MBART] == tokenization_mbart.FAIRSEQ_LANGUAGE_CODES
    assert [*languages.MBART_50] == tokenization_mbart50.FAIRSEQ_LANGUAGE_CODES
    assert {name: [*codes] for name, codes in languages.M2M_100.items()} == tokenization_m2m_100.FAIRSEQ_LANGUAGE_CODES


# --------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_trains_on_what_transformers_would_and_keeps_its_tokenizer(family, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "REGISTRY", dict(registry.REGISTRY))
    two = FAMILIES[family]
    theirs, tokenizer = translator(family, tmp_path / "hf", **({"src_lang": two[0], "tgt_lang": two[1]} if two else {}))
    import_directory(tmp_path / "hf", tmp_path / "imported")
    (tmp_path / "rows.csv").write_text("source,target\n" + "the fox ran,cafe x7 to paris\nthe cafe,fox fox\n" * 10)
    cfg = config.base()
    cfg.data.files, cfg.data.inputs, cfg.data.targets = str(tmp_path / "rows.csv"), "{source}", "{target}"
    cfg.data.length, cfg.data.targets_length = 16, 24
    cfg.model.preset = cfg.init.checkpoint = str(tmp_path / "imported")
    made = experiment.resolve(cfg)
    (tmp_path / "run").mkdir()
    saved_run.write(made, tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text(config.to_json(cfg))
    assert_reads(made, family, theirs, tokenizer)
    (tmp_path / "imported").rename(tmp_path / "elsewhere")
    kept = saved_run.resolve(cfg, tmp_path / "run")
    assert kept.vocabulary.fingerprint == made.vocabulary.fingerprint and kept.converter == made.converter
    assert_reads(kept, family, theirs, tokenizer)


@pytest.mark.parametrize(("family", "mark"), [("nllb", 1), ("mbart", 0), ("m2m_100", 1)])
def test_predictions_have_room_for_a_label_and_a_mark_before_it(family, mark, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "REGISTRY", dict(registry.REGISTRY))
    translator(family, tmp_path / "hf")
    import_directory(tmp_path / "hf", tmp_path / "imported")
    vocabulary, label = vocabularies.load(str(tmp_path / "hf")), "cafe x7 to paris"
    (tmp_path / "rows.csv").write_text("source,target\n" + f"the fox ran,{label}\nthe cafe,fox fox\n" * 10)
    tokens = len(vocabulary.encode([label])[0])
    cfg = config.base()
    cfg.data.files, cfg.data.inputs, cfg.data.targets = str(tmp_path / "rows.csv"), "{source}", "{target}"
    cfg.data.labels, cfg.data.length, cfg.data.targets_length = (label, "fox fox"), 16, 64
    cfg.model.preset = cfg.init.checkpoint = str(tmp_path / "imported")
    cfg.eval.max_decode_tokens = tokens + mark
    experiment.resolve(cfg)
    cfg.eval.max_decode_tokens -= 1
    with pytest.raises(ConfigError, match=f"has {tokens} tokens, .* set at least {tokens + mark}"):
        experiment.resolve(cfg)


def assert_reads(resolved, family: str, theirs, tokenizer) -> None:
    """Asserts that an experiment's examples are those of transformers, and that long ones keep their marks."""
    text, target = "the fox ran", "cafe x7 to paris"
    encoded = tokenizer(text, text_target=target, return_tensors="pt")
    shift = getattr(theirs, "prepare_decoder_input_ids_from_labels", lambda ids: shift_tokens_right(ids, 1, 2))
    wanted = {
        "encoder_input_tokens": encoded["input_ids"][0].tolist(),
        "decoder_target_tokens": encoded["labels"][0].tolist(),
        "decoder_input_tokens": shift(encoded["labels"])[0].tolist(),
    }
    for times in (1, 9):
        example = {"inputs": text * times, "targets": target * times}
        found, cut = resolved.converter.supervised([example], resolved.tasks[0], resolved.vocabulary)
        for name, ids in wanted.items():
            ours = found[name].values.tolist()
            assert cut.all() == (times > 1) and (times > 1 or ours == ids)
            ends = 0 if name == "decoder_input_tokens" else 2 if family == "mbart" else 1
            assert ours[0] == ids[0] and ours[len(ours) - ends :] == ids[len(ids) - ends :]
            assert times == 1 or len(ours) == (16 if name == "encoder_input_tokens" else 24)
