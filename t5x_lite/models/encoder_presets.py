"""Configurations of published encoders of BERT's parts: BERT, RoBERTa, DistilBERT, ALBERT, ELECTRA, DeBERTa-v3.

Sizes are those of the released checkpoints.
"""

from t5x_lite.models.config import ModelConfig


def bert(d_model: int, num_heads: int, num_layers: int, **changes) -> ModelConfig:
    """Returns BERT (Devlin et al. 2019): post-norm, learned positions, masked-token and next-sentence heads."""
    return ModelConfig(
        **{
            "architecture": "encoder_only",
            "vocab_size": 30522,
            "d_model": d_model,
            "d_ff": 4 * d_model,
            "num_heads": num_heads,
            "head_dim": d_model // num_heads,
            "num_encoder_layers": num_layers,
            "norm": "layer",
            "norm_position": "post",
            "norm_epsilon": 1e-12,
            "activation": "gelu_erf",
            "attention_bias": "all",
            "mlp_bias": True,
            "positions": "learned",
            "max_positions": 512,
            "type_vocab_size": 2,
            "query_dim": 0,
            "embedding_norm": True,
            "heads": ("mlm", "nsp"),
            "dropout_rate": 0.1,
            "attention_dropout_rate": 0.1,
            "initializer": "normal",
        }
        | changes
    )


def roberta(d_model: int, num_heads: int, num_layers: int, **changes) -> ModelConfig:
    """Returns RoBERTa (Liu et al. 2019): BERT without sentence types and without the next-sentence head.

    XLM-RoBERTa (Conneau et al. 2020) and CamemBERT (Martin et al. 2020) differ from it only in texts and vocabulary.

    Its table of learned positions has two spare rows before position 0.
    """
    new = {"vocab_size": 50265, "norm_epsilon": 1e-5, "type_vocab_size": 1, "position_offset": 2, "heads": ("mlm",)}
    new |= {"fairseq_marks": True}
    return bert(d_model, num_heads, num_layers, **(new | changes))


def distilbert(d_model: int, num_heads: int, num_layers: int, **changes) -> ModelConfig:
    """Returns DistilBERT (Sanh et al. 2019): half of BERT's layers, no sentence types, a relu before the classifier."""
    new = {
        "type_vocab_size": 0,
        "pooler_activation": "relu",
        "heads": ("mlm",),
        "classifier_dropout_rate": 0.2,  # seq_classif_dropout of its config.json
    }
    return bert(d_model, num_heads, num_layers, **(new | changes))


def albert(d_model: int, num_heads: int, num_layers: int, **changes) -> ModelConfig:
    """Returns ALBERT v2 (Lan et al. 2020): one layer shared by the whole stack, and small embeddings.

    Dropout is applied only before the classifiers. The sentence head predicts the order of two sentences.
    """
    new = {
        "vocab_size": 30000,
        "embedding_dim": 128,
        "share_layers": True,
        "activation": "gelu_tanh",
        "dropout_rate": 0.0,
        "attention_dropout_rate": 0.0,
        "classifier_dropout_rate": 0.1,  # classifier_dropout_prob of its config.json
    }
    return bert(d_model, num_heads, num_layers, **(new | changes))


def electra(d_model: int, num_heads: int, num_layers: int, **changes) -> ModelConfig:
    """Returns an ELECTRA discriminator (Clark et al. 2020): BERT with a head that detects replaced tokens.

    A gelu is before the classifier. The embeddings of the small model and of the generators are not as wide as their
    hidden states.
    """
    new = {"heads": ("rtd",), "pooler_activation": "gelu_erf"}
    return bert(d_model, num_heads, num_layers, **(new | changes))


def deberta_v3(d_model: int, num_heads: int, num_layers: int, **changes) -> ModelConfig:
    """Returns DeBERTa-v3 (He et al. 2023): BERT with disentangled attention in place of absolute positions.

    Distances up to 128 have a bucket each, larger ones share 127 buckets on each side.
    """
    new = {
        "vocab_size": 128100,
        "norm_epsilon": 1e-7,
        "positions": "disentangled",
        "relative_buckets": 512,  # position_buckets of its config.json, for each direction
        "relative_max_distance": 512,
        "type_vocab_size": 0,
        "pooler_activation": "gelu_erf",
        "heads": ("mlm",),
    }
    return bert(d_model, num_heads, num_layers, **(new | changes))


PRESETS: dict[str, ModelConfig] = {
    "bert_base": bert(768, 12, 12),
    "bert_large": bert(1024, 16, 24),
    "roberta_base": roberta(768, 12, 12),
    "roberta_large": roberta(1024, 16, 24),
    "xlm_roberta_base": roberta(768, 12, 12, vocab_size=250002),
    "xlm_roberta_large": roberta(1024, 16, 24, vocab_size=250002),
    "camembert_base": roberta(768, 12, 12, vocab_size=32005),
    "camembert_large": roberta(1024, 16, 24, vocab_size=32005),
    "distilbert_base": distilbert(768, 12, 6),
    "albert_base": albert(768, 12, 12),
    "albert_large": albert(1024, 16, 24),
    "albert_xlarge": albert(2048, 16, 24),
    "albert_xxlarge": albert(4096, 64, 12),
    "electra_small_discriminator": electra(256, 4, 12, embedding_dim=128),
    "electra_small_generator": electra(256, 4, 12, embedding_dim=128, heads=("mlm",)),
    "electra_base_discriminator": electra(768, 12, 12),
    "electra_base_generator": electra(256, 4, 12, embedding_dim=768, heads=("mlm",)),
    "electra_large_discriminator": electra(1024, 16, 24),
    "electra_large_generator": electra(256, 4, 24, embedding_dim=1024, heads=("mlm",)),
    "deberta_v3_xsmall": deberta_v3(384, 6, 12),
    "deberta_v3_small": deberta_v3(768, 12, 6),
    "deberta_v3_base": deberta_v3(768, 12, 12),
    "deberta_v3_large": deberta_v3(1024, 16, 24),
    "mdeberta_v3_base": deberta_v3(768, 12, 12, vocab_size=251000),
}
