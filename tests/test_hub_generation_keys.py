"""Every key of generation_config.json has its effect in transformers, or none, or a warning names it."""

import json
import warnings
from pathlib import Path

import pytest

import t5x_lite
from t5x_lite.errors import ConfigError
from t5x_lite.hub import generation, generation_keys

torch = pytest.importorskip("torch", reason="parity needs the extra `parity`")
transformers = pytest.importorskip("transformers", reason="parity needs the extra `parity`")

from test_hub_pipelines import TEXTS, saved, words  # noqa: E402 (needs torch)

BASE = {
    "max_new_tokens": 9, "num_beams": 1, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1,
    "repetition_penalty": 3.0,  # otherwise the random model repeats one word
}  # fmt: skip
BEAMS = {"num_beams": 3}
HONOURED = {
    "max_new_tokens": {"max_new_tokens": 4},
    "max_length": {"max_length": 7, "max_new_tokens": None},
    "min_new_tokens": {"min_new_tokens": 8},
    "min_length": {"min_length": 9},
    "num_beams": BEAMS,
    "repetition_penalty": {"repetition_penalty": 1.5},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2, "repetition_penalty": None},
    "length_penalty": BEAMS | {"length_penalty": 5.0},
    "early_stopping": BEAMS | {"early_stopping": True},
    "forced_bos_token_id": {"forced_bos_token_id": 9},
    "forced_eos_token_id": {"forced_eos_token_id": 1},
    "eos_token_id": {"eos_token_id": [1, 38]},
    "decoder_start_token_id": {"decoder_start_token_id": 11},
}
SAMPLING = {"do_sample", "temperature", "top_k", "top_p", "num_return_sequences"}  # test_decoding_strategies has these
HELD_FAST = ("decoder_start_token_id",)
WITHOUT_EFFECT = {
    "use_cache": False, "output_scores": True, "output_logits": True, "output_attentions": True,
    "output_hidden_states": True, "pad_token_id": 2, "bos_token_id": 5, "low_memory": True,
    "num_assistant_tokens": 3, "num_assistant_tokens_schedule": "heuristic", "assistant_confidence_threshold": 0.9,
    "max_matching_ngram_size": 3, "assistant_lookbehind": 2, "target_lookbehind": 2, "disable_compile": True,
    "max_cache_len": 30, "transformers_version": "4.0.0",
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Returns (directory, model of transformers, tokenizer, our model)."""
    directory = tmp_path_factory.mktemp("t5")
    tokenizer = words(directory)
    config = transformers.T5Config(
        vocab_size=48, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0
    )
    reference = transformers.T5ForConditionalGeneration(config)
    saved(directory, reference, tokenizer)
    return directory, reference, tokenizer, t5x_lite.load(directory)


def configured(directory: Path, **settings) -> None:
    said = {key: value for key, value in (BASE | settings).items() if value is not None}
    (directory / "generation_config.json").write_text(json.dumps(said))


def theirs(model) -> list[str]:
    """Returns the texts that transformers writes with the directory's settings, without the decoder's first token."""
    directory, reference, tokenizer, _ = model
    chosen = transformers.GenerationConfig.from_pretrained(directory)
    ids = reference.generate(**tokenizer(TEXTS, return_tensors="pt", padding=True), generation_config=chosen)
    return tokenizer.batch_decode(getattr(ids, "sequences", ids)[:, 1:], skip_special_tokens=True)


@pytest.mark.parametrize("key", [k if k in HELD_FAST else pytest.param(k, marks=pytest.mark.slow) for k in HONOURED])
def test_a_key_that_is_honoured_changes_texts_as_in_transformers(model, key):
    configured(model[0])
    without = theirs(model)
    configured(model[0], **HONOURED[key])
    expected = theirs(model)
    if key == "eos_token_id":  # our texts do not have the end token
        expected = [text.removesuffix(" w38") for text in expected]
    assert expected != without or key == "early_stopping"
    write = t5x_lite.pipeline("text2text-generation", model=model[3])
    assert [one["generated_text"] for one in write(TEXTS)] == expected


def test_a_key_without_effect_changes_no_text_in_transformers(model):
    assert WITHOUT_EFFECT.keys() <= generation_keys.NO_EFFECT.keys()
    configured(model[0])
    expected, options = theirs(model), generation.settings(model[3], "")
    for key, value in WITHOUT_EFFECT.items():
        configured(model[0], **{key: value})
        assert theirs(model) == expected, key
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert generation.settings(model[3], "") == options, key


@pytest.mark.parametrize("key", [*generation_keys.UNSUPPORTED, "a_key_of_tomorrow"])
def test_another_key_is_named_in_a_warning(model, key):
    configured(model[0], **{key: 0.5})
    with pytest.warns(UserWarning, match=key):
        generation.settings(model[3], "")


NOT_NEUTRAL = {
    "encoder_no_repeat_ngram_size": 1, "penalty_alpha": 1, "min_p": 1.0, "top_h": 1.0, "diversity_penalty": 1.0,
    "max_time": 1.0, "token_healing": True, "renormalize_logits": True, "encoder_repetition_penalty": 0.5,
    "guidance_scale": 0, "typical_p": 0.0, "num_beam_groups": 2,
}  # fmt: skip


@pytest.mark.parametrize("key", NOT_NEUTRAL)
def test_a_value_that_is_neutral_for_another_key_is_named_in_a_warning(model, key):
    configured(model[0], **{key: NOT_NEUTRAL[key]})
    with pytest.warns(UserWarning, match=key):
        generation.settings(model[3], "")


def test_the_defaults_of_transformers_cause_no_warning(model):
    old = {"diversity_penalty": 0.0, "num_beam_groups": 1, "typical_p": 1.0, "encoder_no_repeat_ngram_size": 0}
    old |= {"remove_invalid_values": False, "renormalize_logits": False, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0}
    old |= {"encoder_repetition_penalty": 1.0, "guidance_scale": 1.0, "token_healing": False, "bad_words_ids": []}
    (model[0] / "generation_config.json").write_text(json.dumps(dict.fromkeys(generation_keys.UNSUPPORTED) | old))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generation.settings(model[3], "")


def test_every_key_is_listed_once():
    listed = [*generation_keys.HONOURED, *generation_keys.UNSUPPORTED, *generation_keys.NO_EFFECT]
    assert len(listed) == len(set(listed))
    assert transformers.GenerationConfig().to_dict().keys() <= set(listed)
    assert generation.OPTIONS.keys() == set(generation_keys.HONOURED) == HONOURED.keys() | SAMPLING


@pytest.mark.parametrize(
    "key", ["max_new_tokens", "num_beams", "decoder_start_token_id", "repetition_penalty", "top_p"]
)
@pytest.mark.parametrize("value", [10**12, -1, float("nan"), "text", [], {}])
def test_an_absurd_value_is_refused_by_name(model, key, value):
    configured(model[0], **{key: value}, **({"do_sample": True} if key == "top_p" else {}))
    with pytest.raises(ConfigError, match=rf"\b{key}="):
        t5x_lite.pipeline("text2text-generation", model=model[3])(TEXTS[:1])
