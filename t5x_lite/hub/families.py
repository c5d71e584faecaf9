"""Hugging Face's model families as data: which key of theirs is which parameter and which setting of ours.

One `Family` each, read in both directions by mapping.py. A new family of known parts is one more entry here.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from t5x_lite.models import presets
from t5x_lite.models.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Key:
    """Their tensor of one parameter, where the parameter's own name does not say all.

    name: in full, or without `.weight` and `.bias` where it stands for a module.
    third: of three parts side by side in one tensor, which (GPT-2's fused query, key and value).
    turned: stored with rows and columns exchanged, and is no kernel (those always are).
    leading: has one more dimension of 1 in front.
    """

    name: str
    third: int | None = None
    turned: bool = False
    leading: bool = False


@dataclasses.dataclass(frozen=True)
class Family:
    """One `model_type` of config.json.

    base: a model of it; what neither `settings` nor `choices` name is fixed by it.
    settings: our field -> key of config.json with the same value; a key that is not there leaves the base's.
    also: keys that export writes with the value of another.
    choices: key of config.json -> its value -> our fields; other values are not supported.
    read, write: what tables can't say: config.json -> our fields, and back.
    heads: our head -> a tensor that is in the file when the head is.
    classes: class of transformers -> our heads.
    modules: our module or parameter -> theirs. `{i}` stands for the layer, `{s}` for encoder and decoder each.
        A module's kernel, scale and embedding are their weight, its bias their bias.
    prefix: of most keys, which a file made from the bare model lacks.
    kernels_turned: kernels are stored [outputs, inputs], as torch's Linear does; GPT-2's are not.
    tied: their tensor -> the one it is a copy of; dropped if it is.
    ignored: regular expression -> why a tensor of that name is not needed.
    constants: what export writes to config.json besides.
    """

    model_type: str
    base: ModelConfig
    settings: Mapping[str, str]
    classes: Mapping[str, tuple[str, ...]]
    modules: Mapping[str, str | Key]
    choices: Mapping[str, Mapping[Any, Mapping[str, Any]]] = dataclasses.field(default_factory=dict)
    also: Mapping[str, str] = dataclasses.field(default_factory=dict)
    read: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda settings: {}
    write: Callable[[ModelConfig], dict[str, Any]] = lambda config: {}
    heads: Mapping[str, str] = dataclasses.field(default_factory=dict)
    prefix: str = ""
    kernels_turned: bool = True
    tied: Mapping[str, str] = dataclasses.field(default_factory=dict)
    ignored: Mapping[str, str] = dataclasses.field(default_factory=dict)
    constants: Mapping[str, Any] = dataclasses.field(default_factory=dict)


ACTIVATIONS: Mapping[Any, Mapping[str, Any]] = {
    "gelu": {"activation": "gelu_erf"},
    "gelu_new": {"activation": "gelu_tanh"},
    "gelu_pytorch_tanh": {"activation": "gelu_tanh"},
    "relu": {"activation": "relu"},
    "silu": {"activation": "silu"},
    "swish": {"activation": "silu"},
}
ONLY_FALSE: Mapping[Any, Mapping[str, Any]] = {False: {}}
QKV_O = {"query": "q", "key": "k", "value": "v", "out": "o"}
QKV_OUT = QKV_O | {"out": "out"}
POSITION_IDS = {r"(.*\.)?position_ids": "the numbers from 0"}


def _each(ours: str, theirs: str, **names: str) -> dict[str, str | Key]:
    """Rows for several modules of one: our `OURS/NAME` is their `THEIRS` with the other name in place of the star."""
    return {f"{ours}/{name}": theirs.replace("*", other) for name, other in names.items()}


# T5 -------------------------------------------------------------------------------------------------------------------


def _read_t5(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Whether logits are scaled was once told by the tie; since transformers 5 it has its own key."""
    layers = settings.get("num_decoder_layers") or settings.get("num_layers")
    scaled = settings.get("scale_decoder_outputs", settings.get("tie_word_embeddings") is not False)
    dropout = settings.get("dropout_rate", 0.1)
    return {
        "logits_scale": "rsqrt_d_model" if scaled else "none",
        "attention_dropout_rate": dropout,
        **({"num_decoder_layers": layers} if layers else {}),
    }


def _write_t5(config: ModelConfig) -> dict[str, Any]:
    scaled = config.logits_scale == "rsqrt_d_model"
    return {"scale_decoder_outputs": scaled, "tie_word_embeddings": config.tie_embeddings or scaled}


_T5_BLOCK = "{s}.block.{i}.layer"
_T5_MLP = {name: name for name in ("wi", "wi_0", "wi_1", "wo")}
T5 = Family(
    model_type="t5",
    base=presets.PRESETS["t5_small"],
    settings={
        "vocab_size": "vocab_size",
        "d_model": "d_model",
        "d_ff": "d_ff",
        "head_dim": "d_kv",
        "num_heads": "num_heads",
        "num_encoder_layers": "num_layers",
        "num_decoder_layers": "num_decoder_layers",
        "relative_buckets": "relative_attention_num_buckets",
        "relative_max_distance": "relative_attention_max_distance",
        "norm_epsilon": "layer_norm_epsilon",
        "dropout_rate": "dropout_rate",
        "decoder_start_id": "decoder_start_token_id",
    },
    choices={
        "feed_forward_proj": {
            "relu": {"activation": "relu", "gated_mlp": False},
            "gated-gelu": {"activation": "gelu_tanh", "gated_mlp": True},
            "gated-silu": {"activation": "silu", "gated_mlp": True},
            "gated-relu": {"activation": "relu", "gated_mlp": True},
        },
    },
    read=_read_t5,
    write=_write_t5,
    classes={"T5ForConditionalGeneration": ()},
    modules={
        "token_embedding": "shared",
        "{s}/relative_bias": Key("{s}.block.0.layer.0.SelfAttention.relative_attention_bias", turned=True),
        "{s}/final_norm": "{s}.final_layer_norm",
        "logits/dense": "lm_head",
        **_each("{s}/layers_{i}/self_attention", f"{_T5_BLOCK}.0.SelfAttention.*", **QKV_O),
        "{s}/layers_{i}/self_attention_norm": f"{_T5_BLOCK}.0.layer_norm",
        **_each("decoder/layers_{i}/cross_attention", "decoder.block.{i}.layer.1.EncDecAttention.*", **QKV_O),
        "decoder/layers_{i}/cross_attention_norm": "decoder.block.{i}.layer.1.layer_norm",
        **_each("encoder/layers_{i}/mlp", "encoder.block.{i}.layer.1.DenseReluDense.*", **_T5_MLP),
        "encoder/layers_{i}/mlp_norm": "encoder.block.{i}.layer.1.layer_norm",
        **_each("decoder/layers_{i}/mlp", "decoder.block.{i}.layer.2.DenseReluDense.*", **_T5_MLP),
        "decoder/layers_{i}/mlp_norm": "decoder.block.{i}.layer.2.layer_norm",
    },
    tied={"encoder.embed_tokens.weight": "shared.weight", "decoder.embed_tokens.weight": "shared.weight"},
    ignored={
        r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight": "T5's code never reads it",
    },
    constants={"is_encoder_decoder": True, "pad_token_id": 0, "eos_token_id": 1},
)
MT5 = dataclasses.replace(  # transformers never scales its logits, whatever the config says of a tie
    T5,
    model_type="mt5",
    base=presets.PRESETS["mt5_small"],
    classes={"MT5ForConditionalGeneration": ()},
    read=lambda settings: _read_t5(settings) | {"logits_scale": "none"},
    write=lambda config: {"tie_word_embeddings": config.tie_embeddings},
)


# BERT and its kin -----------------------------------------------------------------------------------------------------


_BERT_SETTINGS = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "d_ff": "intermediate_size",
    "num_heads": "num_attention_heads",
    "num_encoder_layers": "num_hidden_layers",
    "max_positions": "max_position_embeddings",
    "type_vocab_size": "type_vocab_size",
    "norm_epsilon": "layer_norm_eps",
    "dropout_rate": "hidden_dropout_prob",
    "attention_dropout_rate": "attention_probs_dropout_prob",
    "classifier_dropout_rate": "classifier_dropout",
    "initializer_stddev": "initializer_range",
}
_CLASSIFIERS = {  # of four that have the same tensor, the class in config.json says which it is
    "classification": "classifier.weight",
    "multi_label": "classifier.weight",
    "token_classification": "classifier.weight",
    "multiple_choice": "classifier.weight",
    "span": "qa_outputs.weight",
}
_CLASSIFIER_MODULES: dict[str, str | Key] = {
    "classification": "classifier",
    "multi_label": "classifier",
    "regression": "classifier",
    "token_classification": "classifier",
    "multiple_choice": "classifier",
    "span": "qa_outputs",
}
_BERT_CHOICES = {
    "hidden_act": ACTIVATIONS,
    "position_embedding_type": {"absolute": {}},
    "is_decoder": ONLY_FALSE,
    "add_cross_attention": ONLY_FALSE,
}


def _bert_modules(prefix: str) -> dict[str, str | Key]:
    """What BERT and RoBERTa share."""
    layer = f"{prefix}.encoder.layer.{{i}}"
    return {
        "token_embedding": f"{prefix}.embeddings.word_embeddings",
        "type_embedding": f"{prefix}.embeddings.token_type_embeddings",
        "encoder/position_embedding": f"{prefix}.embeddings.position_embeddings",
        "encoder/embedding_norm": f"{prefix}.embeddings.LayerNorm",
        **_each(
            "encoder/layers_{i}/self_attention", f"{layer}.attention.self.*", query="query", key="key", value="value"
        ),
        "encoder/layers_{i}/self_attention/out": f"{layer}.attention.output.dense",
        "encoder/layers_{i}/self_attention_norm": f"{layer}.attention.output.LayerNorm",
        "encoder/layers_{i}/mlp/wi": f"{layer}.intermediate.dense",
        "encoder/layers_{i}/mlp/wo": f"{layer}.output.dense",
        "encoder/layers_{i}/mlp_norm": f"{layer}.output.LayerNorm",
    }


BERT = Family(
    model_type="bert",
    base=presets.PRESETS["bert_base"],
    settings=_BERT_SETTINGS,
    choices=_BERT_CHOICES,
    classes={
        "BertForPreTraining": ("mlm", "nsp"),
        "BertForMaskedLM": ("mlm",),
        "BertForNextSentencePrediction": ("nsp",),
        "BertForSequenceClassification": ("classification",),
        "BertForTokenClassification": ("token_classification",),
        "BertForQuestionAnswering": ("span",),
        "BertForMultipleChoice": ("multiple_choice",),
        "BertModel": ("pooled",),
    },
    heads={
        "mlm": "cls.predictions.bias",
        "nsp": "cls.seq_relationship.weight",
        **_CLASSIFIERS,
        "pooled": "bert.pooler.dense.weight",
    },
    modules={
        **_bert_modules("bert"),
        "pooler": "bert.pooler.dense",
        "mlm": "cls.predictions",
        "mlm/transform": "cls.predictions.transform.dense",
        "mlm/norm": "cls.predictions.transform.LayerNorm",
        "nsp": "cls.seq_relationship",
        **_CLASSIFIER_MODULES,
    },
    prefix="bert.",
    tied={
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    ignored=POSITION_IDS,
    constants={"pad_token_id": 0},
)


def _read_roberta(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Positions are counted from the padding's id + 1, in a table that has those rows too."""
    offset = settings.get("pad_token_id", 1) + 1
    return {"position_offset": offset, "max_positions": settings.get("max_position_embeddings", 514) - offset}


ROBERTA = Family(
    model_type="roberta",
    base=presets.PRESETS["roberta_base"],
    settings={k: v for k, v in _BERT_SETTINGS.items() if k != "max_positions"},
    choices=_BERT_CHOICES,
    read=_read_roberta,
    write=lambda config: {
        "max_position_embeddings": config.max_positions + config.position_offset,
        "pad_token_id": config.position_offset - 1,
    },
    classes={
        "RobertaForMaskedLM": ("mlm",),
        "RobertaForSequenceClassification": ("classification",),
        "RobertaForTokenClassification": ("token_classification",),
        "RobertaForQuestionAnswering": ("span",),
        "RobertaModel": (),
    },
    heads={
        "mlm": "lm_head.bias",
        "classification": "classifier.out_proj.weight",
        "multi_label": "classifier.out_proj.weight",
        "token_classification": "classifier.weight",
        "span": "qa_outputs.weight",
    },
    modules={
        **_bert_modules("roberta"),
        "pooler": "classifier.dense",
        "mlm": "lm_head",
        "mlm/transform": "lm_head.dense",
        "mlm/norm": "lm_head.layer_norm",
        "classification": "classifier.out_proj",
        "multi_label": "classifier.out_proj",
        "regression": "classifier.out_proj",
        "token_classification": "classifier",
        "span": "qa_outputs",
    },
    prefix="roberta.",
    tied={
        "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    },
    ignored={**POSITION_IDS, r"roberta\.pooler\.dense\..*": "RoBERTa was pre-trained without a pooler"},
    constants={"bos_token_id": 0, "eos_token_id": 2},
)

_DISTILBERT_LAYER = "distilbert.transformer.layer.{i}"
DISTILBERT = Family(
    model_type="distilbert",
    base=presets.PRESETS["distilbert_base"],
    settings={
        "vocab_size": "vocab_size",
        "d_model": "dim",
        "d_ff": "hidden_dim",
        "num_heads": "n_heads",
        "num_encoder_layers": "n_layers",
        "max_positions": "max_position_embeddings",
        "dropout_rate": "dropout",
        "attention_dropout_rate": "attention_dropout",
        "classifier_dropout_rate": "seq_classif_dropout",
        "initializer_stddev": "initializer_range",
    },
    choices={"activation": ACTIVATIONS, "sinusoidal_pos_embds": {False: {}, True: {}}},
    classes={
        "DistilBertForMaskedLM": ("mlm",),
        "DistilBertForSequenceClassification": ("classification",),
        "DistilBertForTokenClassification": ("token_classification",),
        "DistilBertForQuestionAnswering": ("span",),
        "DistilBertForMultipleChoice": ("multiple_choice",),
        "DistilBertModel": (),
    },
    heads={"mlm": "vocab_projector.bias", **_CLASSIFIERS},
    modules={
        "token_embedding": "distilbert.embeddings.word_embeddings",
        "encoder/position_embedding": "distilbert.embeddings.position_embeddings",
        "encoder/embedding_norm": "distilbert.embeddings.LayerNorm",
        **_each("encoder/layers_{i}/self_attention", f"{_DISTILBERT_LAYER}.attention.*_lin", **QKV_OUT),
        "encoder/layers_{i}/self_attention_norm": f"{_DISTILBERT_LAYER}.sa_layer_norm",
        "encoder/layers_{i}/mlp/wi": f"{_DISTILBERT_LAYER}.ffn.lin1",
        "encoder/layers_{i}/mlp/wo": f"{_DISTILBERT_LAYER}.ffn.lin2",
        "encoder/layers_{i}/mlp_norm": f"{_DISTILBERT_LAYER}.output_layer_norm",
        "pooler": "pre_classifier",
        "mlm": "vocab_projector",
        "mlm/transform": "vocab_transform",
        "mlm/norm": "vocab_layer_norm",
        **_CLASSIFIER_MODULES,
    },
    prefix="distilbert.",
    tied={"vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"},
    ignored=POSITION_IDS,
    constants={"pad_token_id": 0},
)

_ALBERT_LAYER = "albert.encoder.albert_layer_groups.0.albert_layers.0"
ALBERT = Family(
    model_type="albert",
    base=presets.PRESETS["albert_base"],
    settings={
        **_BERT_SETTINGS,
        "embedding_dim": "embedding_size",
        "classifier_dropout_rate": "classifier_dropout_prob",
    },
    choices={
        "hidden_act": ACTIVATIONS,
        "position_embedding_type": {"absolute": {}},
        "num_hidden_groups": {1: {}},
        "inner_group_num": {1: {}},
    },
    classes={
        "AlbertForPreTraining": ("mlm", "nsp"),
        "AlbertForMaskedLM": ("mlm",),
        "AlbertForSequenceClassification": ("classification",),
        "AlbertForTokenClassification": ("token_classification",),
        "AlbertForQuestionAnswering": ("span",),
        "AlbertForMultipleChoice": ("multiple_choice",),
        "AlbertModel": ("pooled",),
    },
    heads={
        "mlm": "predictions.bias",
        "nsp": "sop_classifier.classifier.weight",
        **_CLASSIFIERS,
        "pooled": "albert.pooler.weight",
    },
    modules={
        "token_embedding": "albert.embeddings.word_embeddings",
        "type_embedding": "albert.embeddings.token_type_embeddings",
        "encoder/position_embedding": "albert.embeddings.position_embeddings",
        "encoder/embedding_norm": "albert.embeddings.LayerNorm",
        "encoder/embedding_projection": "albert.encoder.embedding_hidden_mapping_in",
        **_each(
            "encoder/shared_layer/self_attention",
            f"{_ALBERT_LAYER}.attention.*",
            query="query",
            key="key",
            value="value",
            out="dense",
        ),
        "encoder/shared_layer/self_attention_norm": f"{_ALBERT_LAYER}.attention.LayerNorm",
        "encoder/shared_layer/mlp/wi": f"{_ALBERT_LAYER}.ffn",
        "encoder/shared_layer/mlp/wo": f"{_ALBERT_LAYER}.ffn_output",
        "encoder/shared_layer/mlp_norm": f"{_ALBERT_LAYER}.full_layer_layer_norm",
        "pooler": "albert.pooler",
        "mlm": "predictions",
        "mlm/transform": "predictions.dense",
        "mlm/norm": "predictions.LayerNorm",
        "nsp": "sop_classifier.classifier",
        **_CLASSIFIER_MODULES,
    },
    prefix="albert.",
    tied={
        "predictions.decoder.weight": "albert.embeddings.word_embeddings.weight",
        "predictions.decoder.bias": "predictions.bias",
    },
    ignored=POSITION_IDS,
    constants={"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3},
)


# GPT-2 and its kin ----------------------------------------------------------------------------------------------------


_MASKS = {r"(.*\.)?h\.\d+\.attn\.(attention\.)?(bias|masked_bias)": "a mask"}
_GPT_SETTINGS = {
    "vocab_size": "vocab_size",
    "d_model": "n_embd",
    "d_ff": "n_inner",
    "num_heads": "n_head",
    "num_decoder_layers": "n_layer",
    "max_positions": "n_positions",
    "norm_epsilon": "layer_norm_epsilon",
    "dropout_rate": "resid_pdrop",
    "attention_dropout_rate": "attn_pdrop",
    "initializer_stddev": "initializer_range",
    "tie_embeddings": "tie_word_embeddings",
    "decoder_start_id": "bos_token_id",
}
_GPT_LAYER = "transformer.h.{i}"
GPT2 = Family(
    model_type="gpt2",
    base=presets.PRESETS["gpt2"],
    settings=_GPT_SETTINGS,
    also={"embd_pdrop": "resid_pdrop"},
    choices={
        "activation_function": ACTIVATIONS,
        "scale_attn_weights": {True: {"scale_attention": True}, False: {"scale_attention": False}},
        "scale_attn_by_inverse_layer_idx": ONLY_FALSE,
        "add_cross_attention": ONLY_FALSE,
    },
    classes={"GPT2LMHeadModel": ()},
    modules={
        "token_embedding": "transformer.wte",
        "decoder/position_embedding": "transformer.wpe",
        "decoder/final_norm": "transformer.ln_f",
        **{
            f"decoder/layers_{{i}}/self_attention/{n}": Key(f"{_GPT_LAYER}.attn.c_attn", third=k)
            for k, n in enumerate(("query", "key", "value"))
        },
        "decoder/layers_{i}/self_attention/out": f"{_GPT_LAYER}.attn.c_proj",
        "decoder/layers_{i}/self_attention_norm": f"{_GPT_LAYER}.ln_1",
        "decoder/layers_{i}/mlp/wi": f"{_GPT_LAYER}.mlp.c_fc",
        "decoder/layers_{i}/mlp/wo": f"{_GPT_LAYER}.mlp.c_proj",
        "decoder/layers_{i}/mlp_norm": f"{_GPT_LAYER}.ln_2",
        "logits/dense": Key("lm_head", turned=True),  # a Linear where all others are Conv1D
    },
    prefix="transformer.",
    kernels_turned=False,
    ignored=_MASKS,
    constants={"bos_token_id": 50256, "eos_token_id": 50256},
)


def _read_gpt_neo(settings: Mapping[str, Any]) -> dict[str, Any]:
    """attention_types: [[["global", "local"], 12]] is the pair twelve times over."""
    kinds = [kind for pattern, times in settings.get("attention_types") or () for kind in list(pattern) * times]
    if set(kinds) <= {"global"}:
        return {"local_window": 0}
    if kinds != [("global", "local")[i % 2] for i in range(len(kinds))]:
        raise ValueError(f"attention_types={settings['attention_types']!r}; global and local must take turns")
    return {"local_window": settings.get("window_size", 256)}


def _write_gpt_neo(config: ModelConfig) -> dict[str, Any]:
    layers = config.num_decoder_layers
    pairs = [[["global", "local"], layers // 2]] + [[["global"], 1]] * (layers % 2)
    types = pairs if config.local_window else [[["global"], layers]]
    return {"attention_types": types, "window_size": config.local_window or 256}


GPT_NEO = Family(
    model_type="gpt_neo",
    base=presets.PRESETS["gpt_neo_125m"],
    settings={
        "vocab_size": "vocab_size",
        "d_model": "hidden_size",
        "d_ff": "intermediate_size",
        "num_heads": "num_heads",
        "num_decoder_layers": "num_layers",
        "max_positions": "max_position_embeddings",
        "norm_epsilon": "layer_norm_epsilon",
        "dropout_rate": "resid_dropout",
        "attention_dropout_rate": "attention_dropout",
        "initializer_stddev": "initializer_range",
        "tie_embeddings": "tie_word_embeddings",
        "decoder_start_id": "bos_token_id",
    },
    also={"embed_dropout": "resid_dropout"},
    choices={"activation_function": ACTIVATIONS},
    read=_read_gpt_neo,
    write=_write_gpt_neo,
    classes={"GPTNeoForCausalLM": ()},
    modules={
        **{k: v for k, v in GPT2.modules.items() if "self_attention/" not in k},
        **_each("decoder/layers_{i}/self_attention", f"{_GPT_LAYER}.attn.attention.*_proj", **QKV_OUT),
    },
    prefix="transformer.",
    ignored=_MASKS,
    constants={"bos_token_id": 50256, "eos_token_id": 50256},
)

GPT_J = Family(
    model_type="gptj",
    base=presets.PRESETS["gpt_j_6b"],
    settings={**_GPT_SETTINGS, "rotary_dim": "rotary_dim"},
    also={"embd_pdrop": "resid_pdrop"},
    choices={"activation_function": ACTIVATIONS},
    classes={"GPTJForCausalLM": ()},
    modules={
        "token_embedding": "transformer.wte",
        "decoder/final_norm": "transformer.ln_f",
        **_each("decoder/layers_{i}/self_attention", f"{_GPT_LAYER}.attn.*_proj", **QKV_OUT),
        "decoder/layers_{i}/self_attention_norm": f"{_GPT_LAYER}.ln_1",
        "decoder/layers_{i}/mlp/wi": f"{_GPT_LAYER}.mlp.fc_in",
        "decoder/layers_{i}/mlp/wo": f"{_GPT_LAYER}.mlp.fc_out",
        "logits/dense": "lm_head",
        "logits/bias": "lm_head.bias",
    },
    prefix="transformer.",
    ignored=_MASKS,
    constants={"bos_token_id": 50256, "eos_token_id": 50256},
)


# Llama ----------------------------------------------------------------------------------------------------------------


def _read_llama(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary settings stand in rope_parameters since transformers 5, in rope_theta and rope_scaling before."""
    rope = dict(settings.get("rope_parameters") or settings.get("rope_scaling") or {})
    kind = rope.get("rope_type", rope.get("type", "default"))
    shared = settings.get("num_key_value_heads")
    fields = {
        "rotary_base": float(rope.get("rope_theta", settings.get("rope_theta", 10000.0))),
        "num_kv_heads": 0 if shared in (None, settings.get("num_attention_heads")) else shared,
    }
    if kind == "llama3" and (rope.get("low_freq_factor"), rope.get("high_freq_factor")) == (1, 4):
        return fields | {
            "rotary_factor": float(rope["factor"]),
            "rotary_original_positions": rope["original_max_position_embeddings"],
        }
    if kind != "default":
        raise ValueError(f"rope_type={kind!r} with {rope}; allowed: default, or llama3 with frequency factors 1 and 4")
    return fields


def _write_llama(config: ModelConfig) -> dict[str, Any]:
    scaling = None
    if config.rotary_factor != 1:
        scaling = {
            "rope_type": "llama3",
            "factor": config.rotary_factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": config.rotary_original_positions,
        }
    both = {"rope_theta": config.rotary_base, **(scaling or {"rope_type": "default"})}
    return {
        "rope_theta": config.rotary_base,
        "rope_scaling": scaling,
        "rope_parameters": both,
        "num_key_value_heads": config.kv_heads,
    }


_LLAMA_LAYER = "model.layers.{i}"
LLAMA = Family(
    model_type="llama",
    base=presets.PRESETS["llama_2_7b"],
    settings={
        "vocab_size": "vocab_size",
        "d_model": "hidden_size",
        "d_ff": "intermediate_size",
        "num_heads": "num_attention_heads",
        "head_dim": "head_dim",
        "num_decoder_layers": "num_hidden_layers",
        "max_positions": "max_position_embeddings",
        "norm_epsilon": "rms_norm_eps",
        "attention_bias": "attention_bias",
        "mlp_bias": "mlp_bias",
        "attention_dropout_rate": "attention_dropout",
        "initializer_stddev": "initializer_range",
        "tie_embeddings": "tie_word_embeddings",
        "decoder_start_id": "bos_token_id",
    },
    choices={"hidden_act": ACTIVATIONS},
    read=_read_llama,
    write=_write_llama,
    classes={"LlamaForCausalLM": ()},
    modules={
        "token_embedding": "model.embed_tokens",
        "decoder/final_norm": "model.norm",
        **_each("decoder/layers_{i}/self_attention", f"{_LLAMA_LAYER}.self_attn.*_proj", **QKV_O),
        "decoder/layers_{i}/self_attention_norm": f"{_LLAMA_LAYER}.input_layernorm",
        "decoder/layers_{i}/mlp/wi_0": f"{_LLAMA_LAYER}.mlp.gate_proj",
        "decoder/layers_{i}/mlp/wi_1": f"{_LLAMA_LAYER}.mlp.up_proj",
        "decoder/layers_{i}/mlp/wo": f"{_LLAMA_LAYER}.mlp.down_proj",
        "decoder/layers_{i}/mlp_norm": f"{_LLAMA_LAYER}.post_attention_layernorm",
        "logits/dense": "lm_head",
    },
    prefix="model.",
    ignored={r"(.*\.)?rotary_emb\.inv_freq": "follows from rope_theta"},
    constants={"bos_token_id": 1, "eos_token_id": 2},
)


# BART -----------------------------------------------------------------------------------------------------------------


_BART_LAYER = "model.{s}.layers.{i}"
BART = Family(
    model_type="bart",
    base=presets.PRESETS["bart_large"],
    settings={
        "vocab_size": "vocab_size",
        "d_model": "d_model",
        "d_ff": "encoder_ffn_dim",
        "num_heads": "encoder_attention_heads",
        "num_encoder_layers": "encoder_layers",
        "num_decoder_layers": "decoder_layers",
        "max_positions": "max_position_embeddings",
        "dropout_rate": "dropout",
        "attention_dropout_rate": "attention_dropout",
        "initializer_stddev": "init_std",
        "scale_embeddings": "scale_embedding",
        "tie_embeddings": "tie_word_embeddings",
        "decoder_start_id": "decoder_start_token_id",
    },
    also={"decoder_ffn_dim": "encoder_ffn_dim", "decoder_attention_heads": "encoder_attention_heads"},
    choices={
        "activation_function": ACTIVATIONS,
        "normalize_before": ONLY_FALSE,
        "add_final_layer_norm": ONLY_FALSE,
        "normalize_embedding": {True: {}},
        "static_position_embeddings": ONLY_FALSE,
    },
    classes={"BartForConditionalGeneration": ()},
    modules={
        "token_embedding": "model.shared",
        "{s}/position_embedding": "model.{s}.embed_positions",
        "{s}/embedding_norm": "model.{s}.layernorm_embedding",
        **_each("{s}/layers_{i}/self_attention", f"{_BART_LAYER}.self_attn.*_proj", **QKV_OUT),
        "{s}/layers_{i}/self_attention_norm": f"{_BART_LAYER}.self_attn_layer_norm",
        **_each("decoder/layers_{i}/cross_attention", "model.decoder.layers.{i}.encoder_attn.*_proj", **QKV_OUT),
        "decoder/layers_{i}/cross_attention_norm": "model.decoder.layers.{i}.encoder_attn_layer_norm",
        "{s}/layers_{i}/mlp/wi": f"{_BART_LAYER}.fc1",
        "{s}/layers_{i}/mlp/wo": f"{_BART_LAYER}.fc2",
        "{s}/layers_{i}/mlp_norm": f"{_BART_LAYER}.final_layer_norm",
        "logits/bias": Key("final_logits_bias", leading=True),
        "logits/dense": "lm_head",
    },
    prefix="model.",
    tied={
        "model.encoder.embed_tokens.weight": "model.shared.weight",
        "model.decoder.embed_tokens.weight": "model.shared.weight",
    },
    constants={
        "is_encoder_decoder": True,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "forced_eos_token_id": 2,
    },
)

FAMILIES = {
    family.model_type: family
    for family in (T5, MT5, BERT, ROBERTA, DISTILBERT, ALBERT, GPT2, GPT_NEO, GPT_J, LLAMA, BART)
}
