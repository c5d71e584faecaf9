"""Compares logits with stored arrays of the reference implementations: T5X's T5 1.1, the original BERT."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from t5x_lite.errors import CheckpointError
from t5x_lite.hub import interchange, t5x
from t5x_lite.models import build
from t5x_lite.models.presets import preset
from t5x_lite.training import losses

pytestmark = pytest.mark.usefixtures("full_compilation")
GOLDEN = Path(__file__).parents[1].parent / "shared" / "data" / "golden"
T5X, BERT = GOLDEN / "axlearn.common.encoder_decoder_test.npz", GOLDEN / "axlearn.common.bert_test.npz"

T5X_FILE = GOLDEN.parent / "weights" / "t5x_tiny" / "test_t5_tiny.checkpoint_0"


def logits(config, params, batch):
    return jax.jit(build(config).apply)({"params": params}, batch)


@pytest.mark.skipif(not T5X.exists(), reason="T5X's golden logits are not on this machine")
@pytest.mark.parametrize("packed", [False, True])
def test_t5_1_1_logits_equal_t5x(packed):
    golden = {k.split("/", 1)[1]: v for k, v in np.load(T5X).items() if k.startswith(f"test_against_t5x_{packed}/")}
    sizes = {"vocab_size": 48, "d_model": 16, "d_ff": 64, "num_heads": 4, "head_dim": 4}
    config = preset("t5_1_1_small", **sizes, num_encoder_layers=4, num_decoder_layers=4)
    flat: dict = {}
    for name, value in golden.items():
        if not name.startswith("params/"):
            continue
        path = t5x.rename(name.removeprefix("params/"))
        if "attention/" in path and path.endswith("kernel"):
            heads = (config.num_heads, config.head_dim)
            value = value.reshape((*heads, -1) if "/out/" in path else (-1, *heads))
        flat[path] = value
    params, batch = unflatten_dict(flat, sep="/"), {}
    for side, ids in (("encoder", "source"), ("decoder", "target")):
        tokens = golden[f"{ids}_ids"]
        lengths = np.tile(np.arange(tokens.shape[1], dtype=np.int32), (len(tokens), 1))
        real = (tokens if side == "encoder" else golden["target_labels"]) > 0
        batch |= {
            f"{side}_input_tokens": tokens,
            f"{side}_segment_ids": golden.get(f"{ids}_segment_ids", real.astype(np.int32)),
            f"{side}_positions": golden.get(f"{ids}_positions", lengths),
        }
    got = logits(config, params, batch)["lm"]
    real = batch["decoder_segment_ids"] > 0
    assert real.sum() >= 15
    np.testing.assert_allclose(got[real], golden["outputs"][real], rtol=0, atol=1e-5)


BERT_NAMES = {
    "encoder/emb/token_emb/weight": "token_embedding/embedding",
    "encoder/emb/type_emb/weight": "type_embedding/embedding",
    "encoder/emb/pos_emb/weight": "encoder/position_embedding/embedding",
    "encoder/emb/norm": "encoder/embedding_norm",
    "head/transform/linear": "mlm/transform",
    "head/transform/norm": "mlm/norm",
    "head/output_bias": "mlm/bias",
    "head/pooler/linear": "pooler",
    "head/output": "classification",
    "encoder/transformer/layer": "encoder/layers_",
    "feed_forward/linear1": "mlp/wi",
    "feed_forward/linear2": "mlp/wo",
    "feed_forward/norm": "mlp_norm",
    "self_attention/norm": "self_attention_norm",
    "attention/i_proj/q_proj": "query",
    "attention/i_proj/k_proj": "key",
    "attention/i_proj/v_proj": "value",
    "attention/o_proj": "out",
}


def bert_of(golden, head: str, classes: int):
    """Returns the model of some golden arrays, and its parameters."""
    sizes = {"vocab_size": 24, "d_model": 16, "d_ff": 64, "num_heads": 4, "head_dim": 4, "max_positions": 20}
    config = preset("bert_tiny", **sizes, heads=(head,), num_classes=classes)
    config = dataclasses.replace(config, dropout_rate=0.0, attention_dropout_rate=0.0)
    flat: dict = {}
    for name, value in golden.items():
        if not name.startswith("params/"):
            continue
        path = name.removeprefix("params/")
        for theirs, ours in BERT_NAMES.items():
            path = path.replace(theirs, head if ours == "classification" else ours)
        if path.endswith("weight"):
            path = path.removesuffix("weight") + "kernel"
        if "position_embedding" in path:
            value = value[0]
        if path.endswith("out/kernel"):  # stored [D, H, K]
            value = value.transpose(1, 2, 0)
        flat[path] = value
    return config, unflatten_dict(flat, sep="/")


@pytest.mark.skipif(not BERT.exists(), reason="BERT's golden logits are not on this machine")
@pytest.mark.parametrize(
    ("case", "head"),
    [
        ("test_for_mlm", "mlm"),
        ("test_for_mlm_with_padding", "mlm"),
        ("test_sequence_classification_1", "regression"),
        ("test_sequence_classification_2", "classification"),
        ("test_sequence_classification_3", "classification"),
        ("test_sequence_binary_classification", "multi_label"),
    ],
)
def test_bert_logits_equal_the_reference(case, head):
    golden = {k.split("/", 1)[1]: v for k, v in np.load(BERT).items() if k.startswith(f"{case}/")}
    expected = golden["outputs/logits"]
    config, params = bert_of(golden, head, max(2, expected.shape[-1]))
    tokens = golden["inputs/input_ids"].astype(np.int32)
    rows, length = tokens.shape
    padding = golden.get("inputs/padding_mask", tokens == 0)
    batch = {
        "encoder_input_tokens": tokens,
        "encoder_segment_ids": (~padding).astype(np.int32),
        "encoder_positions": np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
        "token_type_ids": golden.get("inputs/token_type_ids", np.zeros_like(tokens)).astype(np.int32),
        "mlm_positions": np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
        "pooled_positions": np.zeros((rows, 1), np.int32),
    }
    got = np.asarray(logits(config, params, batch)[head])
    if head == "mlm":
        got, expected = got[~padding], expected[~padding]
    else:
        got = got[:, 0].reshape(expected.shape)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)
    if head == "multi_label":
        targets = golden["inputs/target_labels"].astype(np.float32)
        batch |= {"label_targets": targets, "label_weights": np.ones((rows, 1), np.float32)}
        loss = losses.loss_sums({head: got[:, None]}, batch)[head]
        np.testing.assert_allclose(loss.sum / loss.weight, golden["outputs/loss"], rtol=1e-6)


@pytest.mark.skipif(not BERT.exists(), reason="the golden arrays are not on this machine")
def test_multiple_choice_equals_the_reference():
    golden = {k.split("/", 1)[1]: v for k, v in np.load(BERT).items() if k.startswith("test_multiple_choice")}
    config, params = bert_of(golden, "multiple_choice", classes=2)
    questions, choices, length = golden["inputs/input_ids"].shape
    rows = {k: v.reshape(-1, length).astype(np.int32) for k, v in golden.items() if v.ndim == 3 and "inputs" in k}
    batch = {
        "encoder_input_tokens": rows["inputs/input_ids"],
        "encoder_segment_ids": 1 - rows["inputs/padding_mask"],
        "encoder_positions": np.tile(np.arange(length, dtype=np.int32), (questions * choices, 1)),
        "token_type_ids": rows["inputs/token_type_ids"],
        "pooled_positions": np.zeros((questions * choices, 1), np.int32),
    }
    got = logits(config, params, batch)["multiple_choice"].reshape(questions, choices)
    np.testing.assert_allclose(got, golden["outputs/logits"], rtol=0, atol=1e-5)
    batch["choice_questions"] = np.ones((questions, choices), np.int32)
    batch["choice_weights"] = np.eye(choices, dtype=np.float32)[golden["inputs/target_labels"]]
    loss = losses.loss_sums({"multiple_choice": got}, batch)["multiple_choice"]
    np.testing.assert_allclose(loss.sum / loss.weight, golden["outputs/loss"], rtol=1e-5)


@pytest.mark.skipif(not T5X_FILE.exists(), reason="T5X's checkpoint is not on this machine")
def test_a_t5x_checkpoint_of_one_file_is_imported(tmp_path):
    report = interchange.import_directory(T5X_FILE, tmp_path / "out")
    assert len(report.rows) == len({row.tensor for row in report.rows}) == 52
    config = preset(str(tmp_path / "out"))
    assert (config.d_model, config.num_heads, config.head_dim, config.d_ff, config.vocab_size) == (8, 4, 3, 16, 32128)
    (tmp_path / "bad").write_bytes(T5X_FILE.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="is not a T5X checkpoint"):
        interchange.import_directory(tmp_path / "bad", tmp_path / "out2")
