"""BART and T5 as classifiers and encoders, from a directory of transformers to pipelines, training and back."""

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers

import t5x_lite
from t5x_lite import cli
from t5x_lite.errors import CheckpointError, ConfigError
from t5x_lite.hub import parameters
from t5x_lite.models.presets import preset

torch = pytest.importorskip("torch", reason="parity needs the extra `parity`")
transformers = pytest.importorskip("transformers", reason="parity needs the extra `parity`")

from test_hub_parity import BART, T5  # noqa: E402 (needs torch)
from test_hub_pipelines import TEXTS, WORDS, assert_same, saved  # noqa: E402

CONFIG = Path(__file__).parent / "experiments" / "tiny.py"
LABELS = {0: "contradiction", 1: "neutral", 2: "entailment"}
NAMED = {"id2label": LABELS, "label2id": {name: i for i, name in LABELS.items()}}
CLASSES = {"bart": "BartForSequenceClassification", "t5": "T5ForSequenceClassification"}
MARKS = {"bart": ("<s> $A </s>", "<s> $A </s> </s> $B </s>"), "t5": ("$A </s>", "$A </s> $B </s>")}


def tokenizer(kind: str) -> "transformers.PreTrainedTokenizerFast":
    """Returns a tokenizer of whole words, with the ids and marks of BART's or T5's."""
    more = ("runs", "red", ":", "animal", "old", "a", "new", "sleeps", "blue")
    first = ("<s>", "<pad>", "</s>", "<unk>") if kind == "bart" else ("<pad>", "</s>", "<unk>")
    ids = {word: i for i, word in enumerate([*first, *WORDS, *more])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    single, pair = MARKS[kind]
    special = [(token, ids[token]) for token in ("<s>", "</s>") if token in ids]
    made.post_processor = tokenizers.processors.TemplateProcessing(single=single, pair=pair, special_tokens=special)
    roles = {"bos_token": "<s>", "cls_token": "<s>", "sep_token": "</s>"} if kind == "bart" else {}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", **roles
    )


def classifier(kind: str, directory) -> str:
    settings = BART | {"max_position_embeddings": 64} if kind == "bart" else T5 | {"decoder_start_token_id": 0}
    cls = getattr(transformers, CLASSES[kind])
    return saved(directory, cls(cls.config_class(**settings, **NAMED)), tokenizer(kind))


@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_classes_and_entailment_are_those_of_transformers(kind, tmp_path):
    path = classifier(kind, tmp_path)
    ours, theirs = (make("text-classification", model=path) for make in (t5x_lite.pipeline, transformers.pipeline))
    theirs.tokenizer.model_input_names = ["input_ids", "attention_mask"]
    for text in TEXTS:
        assert_same(ours(text, top_k=None), theirs(text, top_k=None))
    assert set(ours.model.attention(TEXTS[0], TEXTS[1]).maps) == {"encoder"}
    zero_shot = t5x_lite.pipeline("zero-shot-classification", model=ours.model, candidate_labels=["urgent", "phone"])
    expected = transformers.pipeline("zero-shot-classification", model=path, candidate_labels="urgent, phone")
    expected.tokenizer.model_input_names = ["input_ids", "attention_mask"]
    for text in TEXTS:
        assert_same(zero_shot(text), expected(text))


def test_features_of_an_encoder_are_those_of_transformers(tmp_path):
    path = saved(tmp_path, transformers.T5EncoderModel(transformers.T5Config(**T5)), tokenizer("t5"))
    ours = t5x_lite.pipeline("feature-extraction", model=path)
    theirs = transformers.T5EncoderModel.from_pretrained(
        path
    ).eval()  # transformers' pipeline would load a decoder, too
    for text in TEXTS:
        ids = tokenizer("t5")(text, return_tensors="pt")["input_ids"]
        states = theirs(ids).last_hidden_state[0].detach().numpy()
        np.testing.assert_allclose(ours(text)[0], states, rtol=1e-5, atol=1e-5)
        mean = ours.model.embed([text], normalize=False)[0]
        np.testing.assert_allclose(mean, states.mean(axis=0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["bart", pytest.param("t5", marks=pytest.mark.slow)])
def test_a_classifier_with_a_decoder_is_trained_and_goes_back_out(kind, tmp_path):
    imported, workdir, out = (tmp_path / name for name in ("imported", "run", "out"))
    assert cli.run(["import", classifier(kind, tmp_path / "theirs"), str(imported)]) == 0
    arguments = [
        *("train", f"--config={CONFIG}:{imported}", f"--workdir={workdir}", f"--config.init.checkpoint={imported}"),
        *("--config.data.mixture=tiny_animal", f"--config.data.vocabulary={imported}"),
        *("--config.train.total_steps=3", "--config.eval.untrained=false", "--config.eval.every_steps=0"),
    ]
    assert cli.run(arguments) == 0
    tuned = t5x_lite.load(workdir)
    before = t5x_lite.load(imported)
    for stack in ("encoder", "decoder"):
        old, new = (np.asarray(m.params[stack]["layers_0"]["mlp"]["wi"]["kernel"]) for m in (before, tuned))
        assert 0 < np.abs(old - new).max() < 0.1
    assert [set(found) for found in tuned.classify(["animal : red cat"])] == [{"cat", "dog"}]
    assert cli.run(["export", str(workdir), str(out)]) == 0
    assert json.loads((out / "config.json").read_text())["architectures"] == [CLASSES[kind]]
    theirs = transformers.pipeline("text-classification", model=str(out), top_k=None)
    theirs.tokenizer.model_input_names = ["input_ids", "attention_mask"]
    found = tuned.classify(["animal : red cat"])[0]
    assert {one["label"]: one["score"] for one in theirs(["animal : red cat"])[0]} == pytest.approx(found, abs=1e-5)


def test_what_such_models_lack_is_refused_by_name(tmp_path):
    for changes, message in (
        ({"heads": ("mlm",)}, "body='encoder_decoder' is for encoder_only"),
        ({"heads": ("span",)}, "without the heads mlm, token_classification, span"),
        ({"decoder_start_id": -1}, "decoder_start_id=-1; body=encoder_decoder needs an id"),
        ({"num_decoder_layers": 0}, "num_decoder_layers=0"),
    ):
        with pytest.raises(ConfigError, match=message):
            preset("bart_large_mnli", **changes)
    path = Path(classifier("bart", tmp_path))
    settings = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(settings | {"architectures": None}))
    found = parameters.open_directory(path)
    with pytest.raises(CheckpointError, match=r"classification_head\..* architectures is missing"):
        parameters.load(found, found.config, parameters.layout_for(found.config))
