"""Defines the families of encoders with absolute positions: BERT, RoBERTa and its kin, DistilBERT, ALBERT, ELECTRA."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from t5x_lite.hub.family import ACTIVATIONS, ONLY_FALSE, QKV_OUT, Family, Key, each, setting
from t5x_lite.models import presets

POSITION_IDS = {r"(.*\.)?position_ids": "the numbers 0, 1, 2, …"}


BERT_SETTINGS = {
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
CLASSIFIERS = {  # four heads share a tensor name; config.json tells them apart
    "classification": "classifier.weight",
    "multi_label": "classifier.weight",
    "token_classification": "classifier.weight",
    "multiple_choice": "classifier.weight",
    "span": "qa_outputs.weight",
}
CLASSIFIER_MODULES: dict[str, str | Key] = {
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
    """Returns the rows of Family.modules that BERT and RoBERTa share."""
    layer = f"{prefix}.encoder.layer.{{i}}"
    return {
        "token_embedding": f"{prefix}.embeddings.word_embeddings",
        "type_embedding": f"{prefix}.embeddings.token_type_embeddings",
        "encoder/position_embedding": f"{prefix}.embeddings.position_embeddings",
        "encoder/embedding_norm": f"{prefix}.embeddings.LayerNorm",
        **each(
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
    settings=BERT_SETTINGS,
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
        **CLASSIFIERS,
        "pooled": "bert.pooler.dense.weight",
    },
    modules={
        **_bert_modules("bert"),
        "pooler": "bert.pooler.dense",
        "mlm": "cls.predictions",
        "mlm/transform": "cls.predictions.transform.dense",
        "mlm/norm": "cls.predictions.transform.LayerNorm",
        "nsp": "cls.seq_relationship",
        **CLASSIFIER_MODULES,
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
    """Returns our fields for positions.

    RoBERTa's first position is pad_token_id + 1. max_position_embeddings also counts the unused positions before it.

    Raises ValueError if these keys leave no position.
    """
    offset = setting(settings, "pad_token_id", 1) + 1
    rows = setting(settings, "max_position_embeddings", 512)
    if not 0 <= offset < rows:
        raise ValueError(
            f"pad_token_id={offset - 1}, max_position_embeddings={rows}: the first position is pad_token_id + 1, which "
            "must be at least 0 and below max_position_embeddings"
        )
    return {"position_offset": offset, "max_positions": rows - offset}


ROBERTA = Family(
    model_type="roberta",
    base=dataclasses.replace(presets.PRESETS["roberta_base"], norm_epsilon=1e-12, type_vocab_size=2),
    settings={k: v for k, v in BERT_SETTINGS.items() if k != "max_positions"},
    # transformers always uses gelu in the masked-token head, and our models have one activation for head and layers.
    choices={**_BERT_CHOICES, "hidden_act": {"gelu": ACTIVATIONS["gelu"]}},
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


def _roberta_named(model_type: str, preset: str, name: str) -> Family:
    """Returns RoBERTa under the model_type and the name (in classes of transformers) of a model with its parts."""
    base = dataclasses.replace(ROBERTA.base, vocab_size=presets.PRESETS[preset].vocab_size)
    classes = {key.replace("Roberta", name): heads for key, heads in ROBERTA.classes.items()}
    return dataclasses.replace(ROBERTA, model_type=model_type, base=base, classes=classes)


XLM_ROBERTA = _roberta_named("xlm-roberta", "xlm_roberta_base", "XLMRoberta")
CAMEMBERT = _roberta_named("camembert", "camembert_base", "Camembert")

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
    aliases={"hidden_size": "dim", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers"},
    classes={
        "DistilBertForMaskedLM": ("mlm",),
        "DistilBertForSequenceClassification": ("classification",),
        "DistilBertForTokenClassification": ("token_classification",),
        "DistilBertForQuestionAnswering": ("span",),
        "DistilBertForMultipleChoice": ("multiple_choice",),
        "DistilBertModel": (),
    },
    heads={"mlm": "vocab_projector.bias", **CLASSIFIERS},
    modules={
        "token_embedding": "distilbert.embeddings.word_embeddings",
        "encoder/position_embedding": "distilbert.embeddings.position_embeddings",
        "encoder/embedding_norm": "distilbert.embeddings.LayerNorm",
        **each("encoder/layers_{i}/self_attention", f"{_DISTILBERT_LAYER}.attention.*_lin", **QKV_OUT),
        "encoder/layers_{i}/self_attention_norm": f"{_DISTILBERT_LAYER}.sa_layer_norm",
        "encoder/layers_{i}/mlp/wi": f"{_DISTILBERT_LAYER}.ffn.lin1",
        "encoder/layers_{i}/mlp/wo": f"{_DISTILBERT_LAYER}.ffn.lin2",
        "encoder/layers_{i}/mlp_norm": f"{_DISTILBERT_LAYER}.output_layer_norm",
        "pooler": "pre_classifier",
        "mlm": "vocab_projector",
        "mlm/transform": "vocab_transform",
        "mlm/norm": "vocab_layer_norm",
        **CLASSIFIER_MODULES,
    },
    prefix="distilbert.",
    tied={"vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"},
    ignored=POSITION_IDS,
    constants={"pad_token_id": 0},
)

_ALBERT_LAYER = "albert.encoder.albert_layer_groups.0.albert_layers.0"
ALBERT = Family(
    model_type="albert",
    base=presets.PRESETS["albert_xxlarge"],
    settings={
        **BERT_SETTINGS,
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
        **CLASSIFIERS,
        "pooled": "albert.pooler.weight",
    },
    modules={
        "token_embedding": "albert.embeddings.word_embeddings",
        "type_embedding": "albert.embeddings.token_type_embeddings",
        "encoder/position_embedding": "albert.embeddings.position_embeddings",
        "encoder/embedding_norm": "albert.embeddings.LayerNorm",
        "encoder/embedding_projection": "albert.encoder.embedding_hidden_mapping_in",
        **each(
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
        **CLASSIFIER_MODULES,
    },
    prefix="albert.",
    tied={
        "predictions.decoder.weight": "albert.embeddings.word_embeddings.weight",
        "predictions.decoder.bias": "predictions.bias",
    },
    ignored=POSITION_IDS,
    constants={"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3},
)


def _read_electra(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns our field for the width of the embeddings. Raises ValueError if embedding_size is below 1."""
    width, size = setting(settings, "hidden_size", 256), setting(settings, "embedding_size", 128)
    if size < 1:
        raise ValueError(f"embedding_size={size}: must be at least 1")
    return {"embedding_dim": 0 if size == width else size}


ELECTRA = Family(
    model_type="electra",
    base=presets.PRESETS["electra_small_discriminator"],
    settings=BERT_SETTINGS,
    choices={
        **_BERT_CHOICES,
        # transformers always uses gelu in the masked-token head and before the classifiers.
        "hidden_act": {"gelu": ACTIVATIONS["gelu"]},
        "summary_type": {"first": {}},
        "summary_use_proj": {True: {}},
        "summary_activation": {"gelu": {}},
        "summary_proj_to_labels": ONLY_FALSE,
    },
    read=_read_electra,
    write=lambda config: {"embedding_size": config.table_dim},
    classes={
        "ElectraForPreTraining": ("rtd",),
        "ElectraForMaskedLM": ("mlm",),
        "ElectraForSequenceClassification": ("classification",),
        "ElectraForTokenClassification": ("token_classification",),
        "ElectraForQuestionAnswering": ("span",),
        "ElectraForMultipleChoice": ("multiple_choice",),
        "ElectraModel": (),
    },
    heads={
        "rtd": "discriminator_predictions.dense.weight",
        "mlm": "generator_lm_head.bias",
        "classification": "classifier.out_proj.weight",
        "multi_label": "classifier.out_proj.weight",
        "token_classification": "classifier.weight",
        "multiple_choice": "classifier.weight",
        "span": "qa_outputs.weight",
    },
    modules={
        **_bert_modules("electra"),
        "encoder/embedding_projection": "electra.embeddings_project",
        "rtd/transform": "discriminator_predictions.dense",
        "rtd/output": "discriminator_predictions.dense_prediction",
        "mlm": "generator_lm_head",
        "mlm/transform": "generator_predictions.dense",
        "mlm/norm": "generator_predictions.LayerNorm",
        **CLASSIFIER_MODULES,
        **dict.fromkeys(("classification", "multi_label", "regression"), "classifier.out_proj"),
        "pooler": "classifier.dense",
        "multiple_choice/pooler": "sequence_summary.summary",
    },
    prefix="electra.",
    tied={"generator_lm_head.weight": "electra.embeddings.word_embeddings.weight"},
    ignored=POSITION_IDS,
    constants={"pad_token_id": 0},
)
