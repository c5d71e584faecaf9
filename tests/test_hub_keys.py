"""Every key of config.json: changed or removed, it has the same effect here as in transformers, or is refused by name.

For each family, the tests change and remove each key of a tiny random model, one at a time, and load the directory with
transformers and with our import. Each change is one case. Most cases are slow; the default run has a fixed sample.
"""

import copy
import functools
import json
import logging
import shutil
import tempfile
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import t5x_lite
from t5x_lite.errors import CheckpointError, UserError
from t5x_lite.hub import config_keys, mapping, parameters
from t5x_lite.hub.families import FAMILIES, VARIANTS
from t5x_lite.models import build, intermediates

torch = pytest.importorskip("torch", reason="parity needs the extra `parity`")
transformers = pytest.importorskip("transformers", reason="parity needs the extra `parity`")

from test_hub_parity import MODELS, comparable, outputs_of, random_batch, reference  # noqa: E402 (needs torch)

TINY = {
    "t5": ("t5", "t5_1_1", "t5_encoder", "t5_classifier"),
    "mt5": ("mt5",),
    "bert": ("bert_pretraining", "bert_classifier"),
    "roberta": ("roberta_mlm",),
    "xlm-roberta": ("xlm_roberta_mlm",),
    "camembert": ("camembert_mlm",),
    "distilbert": ("distilbert_mlm", "distilbert_classifier"),
    "albert": ("albert_pretraining",),
    "electra": ("electra_discriminator", "electra_choice"),
    "deberta-v2": ("deberta_mlm", "deberta_classifier"),
    "gpt2": ("gpt2", "gpt2_untied"),
    "gpt_neo": ("gpt_neo",),
    "gptj": ("gpt_j",),
    "llama": ("llama", "llama3"),
    "modernbert": ("modernbert_mlm", "modernbert_classifier"),
    "modernbert-decoder": ("modernbert_decoder",),
    "mistral": ("mistral",),
    "qwen2": ("qwen2", "qwen2_yarn"),
    "qwen3": ("qwen3",),
    "olmo2": ("olmo2",),
    "smollm3": ("smollm3",),
    "gemma2": ("gemma2",),
    "gemma3_text": ("gemma3",),
    "bart": ("bart", "bart_classifier"),
    "umt5": ("umt5", "umt5_encoder"),
    "pegasus": ("pegasus",),
    "marian": ("marian",),
    "mbart": ("mbart",),
    "m2m_100": ("m2m_100",),
    "t5gemma": ("t5gemma",),
    "t5gemma2": ("t5gemma2",),
}
REMOVED = "removed"
MEANINGLESS = {"model_type"}  # its change makes a different family
OTHER = {  # values that a rule by type would not find
    "attention_types": [[[["global"], 3]], [[["local"], 3]], [[["global", "local"], 2]]],
    "architectures": [["NoSuchModel"], ["BertForMultipleChoice"], []],
    "problem_type": ["multi_label_classification", "regression"],
    "id2label": [{"0": "no", "1": "yes"}, {str(i): str(i) for i in range(5)}],
    "label2id": [{"no": 0, "yes": 1}],
    "dtype": ["bfloat16"],
    "feed_forward_proj": ["gated-gelu", "gated-silu", "gated-relu", "gelu", "relu"],
    "attention_layers": [["global"] * 3],
    "rope_parameters": [None, {"rope_type": "default", "rope_theta": 77.0}],
    "rope_type": ["default", "linear", "dynamic", "yarn", "llama3"],
    "summary_activation": ["tanh"],
    "num_labels": [5],
    "norm_rel_ebd": ["none"],
    "pos_att_type": ["c2p", "c2p|p2c", [], None],
}
FURTHER = {  # keys that no config of transformers writes today, but that change or changed models
    "quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    "pruned_heads": {"0": [1]},
    "per_layer_config": {"0": {"rms_norm_eps": 0.5, "layer_norm_eps": 0.5, "layer_norm_epsilon": 0.5}},
    "num_labels": 5,
    "rope_theta": 50.0,
    "rope_scaling": {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 16},
    "partial_rotary_factor": 0.5,
    "original_max_position_embeddings": 16,
    "scale_decoder_outputs": False,
    "n_ctx": 4,
    "their_own": [1, 2],
    "torch_dtype": "float16",
    "output_attentions": True,
    "gradient_checkpointing": True,
}  # fmt: skip


# every family, and those with the same model_type
KINDS = [
    pytest.param(name, family, id=next(iter(family.classes)))
    for name, first in FAMILIES.items()
    for family in (first, *VARIANTS.get(name, ()))
]


@functools.cache
def directory(name: str) -> Path:
    """Returns a directory of the tiny model with this name, saved by transformers."""
    path = Path(tempfile.mkdtemp(prefix="keys_"))
    reference(name).save_pretrained(path)
    return path


@functools.cache
def config_of(name: str):
    kind, settings = MODELS[name]
    return getattr(transformers, kind).config_class(**settings)


def others(key: str, value) -> list:
    """Returns other valid values for a key that has this value."""
    if key in OTHER:
        return [other for other in OTHER[key] if other != value]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value * 2, value + 1]
    if isinstance(value, float):
        return [0.25, value * 4]
    if isinstance(value, str):
        activation = value in transformers.activations.ACT2FN
        return [v for v in ("relu", "gelu_new", "gelu", "silu", "tanh") if v != value] if activation else ["other"]
    return [3] if value is None else []


def cases() -> list:
    out = []
    for family, names in TINY.items():
        for name in names:
            full = json.loads(json.dumps(config_of(name).to_dict()))
            changes = [((key,), value) for key, value in full.items() if key not in MEANINGLESS]
            parts = [(part,) for part in ("encoder", "decoder") if part in full]  # of T5Gemma
            parts += [("encoder", "text_config")] if "text_config" in full.get("encoder", {}) else []  # T5Gemma 2
            changes += [((*part, key), value) for part in parts for key, value in at(full, part).items()]
            ropes = [path for path, value in changes if path[-1] == "rope_parameters" and value]
            changes += [((*path, key), value) for path in ropes for key, value in at(full, path).items()]
            found = [(path, REMOVED) for path, _ in changes]
            found += [(path, other) for path, value in changes for other in others(path[-1], value)]
            found += [
                ((alias,), full[key] + more) for alias, key in FAMILIES[family].aliases.items() for more in (0, 1)
            ]
            found += [((key,), value) for key, value in FURTHER.items()]
            found += [((*part, key), value) for part in parts for key, value in FURTHER.items()]
            for path, value in found:
                label = f"{name}-{'.'.join(path)}-{json.dumps(value)[:60]}"
                # without such a part, transformers makes its default model, with billions of parameters
                is_large = value == REMOVED and path[-1] in ("encoder", "decoder", "text_config")
                sampled = zlib.crc32(label.encode()) % 40 == 0 and not is_large
                marks = () if sampled else pytest.mark.slow
                out.append(pytest.param(name, path, value, id=label, marks=marks))
    return out


def at(settings: dict, path: tuple[str, ...]):
    """Returns the value of a key inside of others."""
    return functools.reduce(lambda value, key: value[key], path, settings)


def changed(settings: dict, path: tuple[str, ...], value) -> dict:
    """Returns a copy of `settings` with one key set to `value`, or without it."""
    out = inner = copy.deepcopy(settings)
    for key in path[:-1]:
        inner = inner[key]
    if value == REMOVED:
        inner.pop(path[-1], None)
    else:
        inner[path[-1]] = value
    return out


def theirs(name: str, path: Path):
    """Returns what transformers computes with a directory: {output: array}. None if it does not load all of it."""
    try:
        model, info = getattr(transformers, MODELS[name][0]).from_pretrained(
            path, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
        if info["missing_keys"] or info["mismatched_keys"]:
            return None
        for module in model.eval().modules():
            if hasattr(module, "config"):
                module.config.return_dict = True  # outputs_of needs names
        config = parameters.open_directory(directory(name)).config
        with torch.no_grad():
            return {output: array.numpy() for output, array in outputs_of(model, config, random_batch(config)).items()}
    except Exception:  # any: transformers has no class for them
        return None


@functools.cache
def compiled(config):
    return jax.jit(lambda params, batch: intermediates.apply(build(config), params, batch))


def ours(path: Path, batch) -> dict:
    opened = parameters.open_directory(path)
    params, _ = parameters.load(opened, opened.config, parameters.layout_for(opened.config))
    outputs, (hidden, attention) = compiled(opened.config)(params, batch)
    return outputs | {f"hidden {k}": x for k, x in hidden.items()} | {f"attention {k}": x for k, x in attention.items()}


@pytest.mark.parametrize(("name", "path", "value"), cases())
def test_a_changed_or_removed_key_is_honoured_or_refused_by_name(name, path, value, tmp_path, caplog):
    shutil.copy(directory(name) / "model.safetensors", tmp_path)
    full = json.loads(json.dumps(config_of(name).to_dict())) | {"architectures": [MODELS[name][0]]}
    (tmp_path / "config.json").write_text(json.dumps(changed(full, path, value)))
    batch = random_batch(parameters.open_directory(directory(name)).config)
    expected = theirs(name, tmp_path)
    try:
        got = ours(tmp_path, batch)
    except UserError as error:
        assert path[-1] in str(error), f"the message does not name the key: {error}"
        return
    if expected is None:
        assert f" {path[-1]}" in caplog.text, "transformers refuses it, or lacks parameters; no warning names the key"
        return
    for output, values in expected.items():
        output = "multi_label" if output not in got and "multi_label" in got else output
        a, b = (comparable(output, np.asarray(x), batch) for x in (got[output], values))
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, err_msg=output)


@pytest.mark.parametrize(("name", "family"), KINDS)
def test_every_key_of_transformers_is_listed(name, family, caplog):
    settings = json.loads(json.dumps(transformers.AutoConfig.for_model(name).to_dict()))
    for part in family.stacks(settings):
        with caplog.at_level(logging.WARNING):
            assert config_keys.checked(part, family) == part
    assert not caplog.records
    config_keys.checked(settings | {"their_own": 1}, family)
    assert "their_own" in caplog.text


@pytest.mark.parametrize("name", FAMILIES)
def test_a_key_that_is_missing_has_transformers_default(name):
    family = FAMILIES[name]
    settings = json.loads(json.dumps(transformers.AutoConfig.for_model(name).to_dict()))
    necessary = {family.settings[field] for field in mapping.REQUIRED if field in family.settings}
    # a config.json with parts, such as T5Gemma's, may lack all of a part
    bare = {key: value for key, value in family.stacks(settings)[-1].items() if key in necessary}
    assert mapping.read_config(bare, family, Path()) == mapping.read_config(settings, family, Path())
    assert family.aliases == transformers.AutoConfig.for_model(name).attribute_map


ABSURD = (10**12, 10**30, -1, 10**400, float("nan"), float("inf"), -0.5, "text", [], {"a": 1})


@pytest.mark.parametrize(("name", "family"), KINDS)
def test_an_absurd_number_is_refused_by_name_before_any_weights_are_opened(name, family):
    settings = dict(family.stacks(mapping.write_config(family.base, family))[-1])
    mapping.read_config(settings, family, Path())
    numbers = {key for key in family.keys if type(settings.get(key)) in (int, float)}
    assert len(numbers) > 8
    for key in sorted(numbers):
        for value in ABSURD:
            # RoBERTa: positions from 0; DeBERTa: as many positions as max_position_embeddings, no shared buckets
            allowed = key in ("pad_token_id", "max_relative_positions", "position_buckets") and value == -1
            if not allowed:
                with pytest.raises(CheckpointError, match=rf"\b{key}="):
                    mapping.read_config(settings | {key: value}, family, Path())


@pytest.mark.parametrize("key", ["rope_theta", "factor", "original_max_position_embeddings", "low_freq_factor"])
@pytest.mark.parametrize("value", [*ABSURD, 0, "removed"])
def test_an_absurd_rotary_setting_is_refused_by_name(key, value):
    rope = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32}  # fmt: skip
    settings = mapping.write_config(FAMILIES["llama"].base, FAMILIES["llama"]) | {"rope_scaling": None}
    wrong = changed(settings | {"rope_parameters": rope}, ("rope_parameters", key), value)
    if value == REMOVED and key in ("rope_theta", "original_max_position_embeddings"):  # they have defaults
        mapping.read_config(wrong, FAMILIES["llama"], Path())
        return
    with pytest.raises(CheckpointError, match=key):
        mapping.read_config(wrong, FAMILIES["llama"], Path())


@pytest.mark.parametrize(
    "types",
    [[[["global"], 10**12]], [[["global"], -1]], [["global", 3]], 7, "x", [[["global"] * 9, "x"]], [[{}, 1]], [[], 3]],
    ids=str,
)
def test_absurd_attention_types_are_refused_by_name(types):
    family = FAMILIES["gpt_neo"]
    with pytest.raises(CheckpointError, match="attention_types="):
        mapping.read_config(mapping.write_config(family.base, family) | {"attention_types": types}, family, Path())


@pytest.mark.parametrize(
    ("name", "settings", "named"),
    [
        ("t5", {"architectures": ["T5ForTokenClassification"]}, r"architectures=T5ForTokenClassification is not supp"),
        ("bart", {"architectures": ["BartForQuestionAnswering"]}, "architectures=BartForQuestionAnswering"),
        ("mbart", {"architectures": ["MBartForSequenceClassification"]}, "MBartForSequenceClassification is not supp"),
        ("t5gemma", {"architectures": ["T5GemmaForSequenceClassification"]}, "T5GemmaForSequenceClassification is not"),
        ("t5gemma2", {"architectures": ["T5Gemma2ForTokenClassification"]}, "T5Gemma2ForTokenClassification is not"),
        ("t5gemma2", {"tie_word_embeddings": False}, "tie_word_embeddings='False' is not supported; allowed: True"),
        ("t5gemma2", {"encoder": {"vision_config": {}}}, "text_config is missing"),
        ("t5gemma2", {"decoder": {"attn_logit_softcapping": 2.0}}, "attn_logit_softcapping is not supported"),
        ("t5gemma_untied", {"decoder": {"sliding_window": 4}}, "differ: .*sliding_window=3 and 4"),
        ("t5gemma2", {"decoder": {"sliding_window": 5}}, "differ: .*sliding_window=4 and 5"),
        ("roberta_mlm", {"architectures": ["RobertaForMultipleChoice"]}, "architectures=RobertaForMultipleChoice"),
        ("gpt2", {"architectures": ["GPT2ForSequenceClassification"]}, "architectures=GPT2ForSequenceClassification"),
        ("llama", {"quantization_config": {"quant_method": "gptq"}}, "quantization_config is not supported"),
        ("bart", {"decoder_ffn_dim": 48}, "decoder_ffn_dim=48 and encoder_ffn_dim=24 differ"),
        ("bart", {"decoder_attention_heads": 4}, "decoder_attention_heads=4 and encoder_attention_heads=2 differ"),
        ("marian", {"architectures": ["MarianForCausalLM"]}, "architectures=MarianForCausalLM is not supported"),
        ("marian", {"share_encoder_decoder_embeddings": False}, "share_encoder_decoder_embeddings='False'"),
        ("marian", {"decoder_vocab_size": 50}, "decoder_vocab_size=50 and vocab_size=48 differ"),
        ("mbart", {"normalize_before": False}, "normalize_before='False'"),
        ("electra_discriminator", {"architectures": ["ElectraForCausalLM"]}, "architectures=ElectraForCausalLM"),
        ("electra_discriminator", {"embedding_size": 0}, "embedding_size=0: must be at least 1"),
        ("electra_choice", {"summary_type": "mean"}, "summary_type='mean'"),
        ("deberta_mlm", {"conv_kernel_size": 3}, "conv_kernel_size=3 is not supported"),
        ("deberta_mlm", {"pos_att_type": ["c2p"]}, r"pos_att_type=\"\['c2p'\]\" is not supported.*allowed: c2p|p2c"),
        ("deberta_mlm", {"share_att_key": False}, "share_att_key=False is not supported"),
        ("deberta_mlm", {"norm_rel_ebd": "none"}, "norm_rel_ebd=none is not supported"),
        ("deberta_mlm", {"position_biased_input": True}, "position_biased_input=True is not supported"),
        ("deberta_mlm", {"embedding_size": 8}, "embedding_size=8 is not supported"),
        ("deberta_mlm", {"attention_head_size": 4}, "attention_head_size=4 is not supported"),
        ("deberta_mlm", {"pooler_hidden_size": 8}, "pooler_hidden_size=8 is not supported"),
        ("deberta_mlm", {"position_buckets": 5}, "position_buckets=5 is not supported.*max_relative_positions=5"),
        ("deberta_mlm", {"position_buckets": -1, "max_relative_positions": 1}, "max_relative_positions=1 is not"),
        ("deberta_mlm", {"legacy": False}, "legacy='False' is not supported"),
    ],
)
def test_what_is_not_supported_is_refused_by_its_name(name, settings, named, tmp_path):
    shutil.copytree(directory(name), tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    if "decoder" in settings:
        settings = {"decoder": config["decoder"] | settings["decoder"]}
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config | settings))
    with pytest.raises(CheckpointError, match=named):
        parameters.open_directory(tmp_path / "hf")


@pytest.mark.parametrize("name", ["pegasus", "marian"])
@pytest.mark.parametrize("prefix", ["model.", ""])
def test_positions_that_are_not_sinusoids_are_refused(name, prefix, tmp_path):
    shutil.copytree(directory(name), tmp_path / "hf")
    model = parameters.open_directory(tmp_path / "hf")
    table = model.family.computed["model.encoder.embed_positions.weight"](model.config)
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    tensors.pop("model.encoder.embed_positions.weight", None)

    def load(table):
        save_file(
            tensors | {f"{prefix}encoder.embed_positions.weight": table},
            tmp_path / "hf" / "model.safetensors",
            {"format": "pt"},
        )
        opened = parameters.open_directory(tmp_path / "hf")
        parameters.load(opened, opened.config, parameters.layout_for(opened.config))

    load(table.astype(np.float16))
    for wrong in (table + 0.01, np.roll(table, 1, axis=0)):
        with pytest.raises(CheckpointError, match=r"encoder\.embed_positions\.weight is not sinusoidal_halves"):
            load(wrong)
    with pytest.raises(CheckpointError, match=r"config.json makes it \[12, 16\] \(.*max_position_embeddings=12"):
        load(table[:-1])


def test_quantized_tensors_and_adapters_are_refused(tmp_path):
    shutil.copytree(directory("t5"), tmp_path / "hf")
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    tensors["shared.weight"] = tensors["shared.weight"].astype(np.int8)
    save_file(tensors, tmp_path / "hf" / "model.safetensors", {"format": "pt"})
    opened = parameters.open_directory(tmp_path / "hf")
    with pytest.raises(CheckpointError, match=r"'shared.weight' is quantized \(I8\)"):
        parameters.load(opened, opened.config, parameters.layout_for(opened.config))
    (tmp_path / "hf" / "adapter_config.json").write_text("{}")
    for read in (parameters.open_directory, t5x_lite.load):
        with pytest.raises(CheckpointError, match=r"adapter_config.json: adapters of peft cannot be imported"):
            read(tmp_path / "hf")


def test_a_user_s_own_class_is_read_with_a_warning(tmp_path, caplog):
    shutil.copytree(directory("bert_classifier"), tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text()) | {"architectures": ["Sentiment"]}
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    assert parameters.open_directory(tmp_path / "hf").config.heads == ("classification",)
    assert "architectures=Sentiment is unknown" in caplog.text
