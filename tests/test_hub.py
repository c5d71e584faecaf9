"""Hugging Face directories: import and export, the report, and errors for broken or hostile directories."""

import dataclasses
import fnmatch
import http.server
import json
import shutil
import struct
import threading
import weakref
from pathlib import Path

import jax
import numpy as np
import pytest
import tokenizers
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file
from tiny_models import FAMILIES as TINY
from tiny_models import SIZES, random_params

import t5x_lite
from t5x_lite import cli
from t5x_lite.data.vocabularies import ByteVocabulary
from t5x_lite.errors import CheckpointError, ConfigError, UserError
from t5x_lite.hub import download, interchange, mapping, parameters, peft, t5x, weights
from t5x_lite.hub.families import FAMILIES
from t5x_lite.hub.model import Model
from t5x_lite.models import lora, presets, stored
from t5x_lite.models.transformer import stack_layers

LAYERS = {"text_to_text": ("num_encoder_layers", "num_decoder_layers"), "encoder_only": ("num_encoder_layers",)}


def tiny(name: str, **changes):
    """Returns the config of a small model of a family."""
    base = FAMILIES[name].base
    layers = dict.fromkeys(LAYERS.get(base.architecture, ("num_decoder_layers",)), 2)
    sizes = SIZES | layers | {"max_positions": 16} if base.max_positions else SIZES | layers
    if base.embedding_dim:
        sizes["embedding_dim"] = 8
    if base.rotary_dim:
        sizes["rotary_dim"] = 4
    if base.num_kv_heads:
        sizes["num_kv_heads"] = 1
    if base.decoder_start_id >= sizes["vocab_size"]:
        sizes["decoder_start_id"] = -1
    return dataclasses.replace(base, **(sizes | changes)).validate()


def theirs(tmp_path, name: str = "bert", **changes):
    """(directory in Hugging Face format, its model, its parameters)"""
    config = tiny(name, **changes)
    params = random_params(config)
    interchange.export_directory(config, params, tmp_path / name, family=name)
    return tmp_path / name, config, params


def assert_same(got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def load(directory, config=None, **options):
    found = parameters.open_directory(directory)
    config = config or found.config
    return parameters.load(found, config, parameters.layout_for(config), **options)


@pytest.mark.parametrize("name", FAMILIES)
def test_there_and_back_is_bit_equal_scanned_or_not(name, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "SHARD_BYTES", 8000)
    directory, config, params = theirs(tmp_path, name)
    assert len(list(directory.glob("model-*.safetensors"))) > 1
    found = parameters.open_directory(directory)
    same = (
        "dtype",
        "initializer",
        "dropout_hidden",
        "dropout_broadcasts_length",
        "decoder_start_id",
        "layer_pattern",  # the shortest with the same kinds of layers
    )
    assert found.config.layer_kinds(2) == config.layer_kinds(2)
    assert dataclasses.replace(found.config, **{f: getattr(config, f) for f in same}) == config
    got, report = load(directory)
    assert_same(got, params)
    computed = found.family.computed
    assert all(row.status in ("loaded", "transposed") or row.tensor in computed for row in report.rows)
    assert {row.tensor for row in report.rows} == set(weights.Weights(directory).shapes)
    if config.norm_position == "pre_but_first":
        return
    scanned, _ = load(directory, dataclasses.replace(config, scan_layers=True))
    assert_same(scanned, stack_layers(params))
    if name in ("gpt2", "albert"):
        interchange.export_directory(dataclasses.replace(config, scan_layers=True), scanned, tmp_path / "again")
        assert_same(load(tmp_path / "again")[0], params)


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_the_host_holds_one_tensor_while_the_next_is_read(name, tmp_path, monkeypatch):
    directory, config, params = theirs(tmp_path, name)
    read, put, alive, most = weights.Weights.read, jax.device_put, [], []

    def watched(self, tensor):
        most.append(sum(reference() is not None for reference in alive))
        array = read(self, tensor)
        alive.append(weakref.ref(array))
        return array

    found = parameters.open_directory(directory)
    monkeypatch.setattr(weights.Weights, "read", watched)
    monkeypatch.setattr(jax, "device_put", lambda array, place: put(np.array(array), place))  # CPUs may alias the input
    got, _ = parameters.load(found, config, parameters.layout_for(config))
    assert_same(got, params)
    assert len(most) == len(found.weights.shapes) and max(most) <= 1


def test_old_names_and_copies_are_known(tmp_path):
    """Covers a missing prefix, gamma and beta, position_ids, and a decoder that copies the embedding table."""
    directory, _, params = theirs(tmp_path)
    tensors = load_file(directory / "model.safetensors")
    old = {n.removeprefix("bert.").replace("LayerNorm.weight", "LayerNorm.gamma"): t for n, t in tensors.items()}
    old = {n.replace("LayerNorm.bias", "LayerNorm.beta"): t for n, t in old.items()}
    old |= {
        "embeddings.position_ids": np.arange(16)[None],
        "cls.predictions.decoder.weight": tensors["bert.embeddings.word_embeddings.weight"],
    }
    save_file(old, directory / "model.safetensors")
    got, report = load(directory)
    assert_same(got, params)
    of = {row.tensor: row.status for row in report.rows}
    assert of["embeddings.position_ids"] == "skipped" and of["cls.predictions.decoder.weight"] == "tied"
    old["cls.predictions.decoder.weight"] = old["cls.predictions.decoder.weight"] + 1
    save_file(old, directory / "model.safetensors")
    with pytest.raises(CheckpointError, match="differs from"):
        load(directory)


def test_heads_come_and_go_with_a_reason(tmp_path):
    directory, config, params = theirs(tmp_path)
    classifier = dataclasses.replace(config, heads=("classification",), num_classes=3)
    got, report = load(directory, classifier)
    np.testing.assert_array_equal(got["pooler"]["kernel"], params["pooler"]["kernel"])
    assert got["classification"]["kernel"].shape == (16, 3) and "mlm" not in got
    rows = {row.tensor or row.ours: row for row in report.rows}
    assert rows["classification/kernel"].status == "fresh" and rows["cls.predictions.bias"].status == "skipped"
    assert all(row.reason for row in report.rows if row.status in ("fresh", "skipped"))
    assert "1 fresh" not in str(report) and "2 fresh" in str(report)


@pytest.mark.parametrize("name", ["bert", "t5", "gptj"])
@pytest.mark.parametrize("vocab_size", [40, 64])
def test_the_vocabulary_is_cut_or_grows_by_the_mean(name, vocab_size, tmp_path):
    directory, config, params = theirs(tmp_path, name)
    got, report = load(directory, dataclasses.replace(config, vocab_size=vocab_size))
    old, new = params["token_embedding"]["embedding"], np.asarray(got["token_embedding"]["embedding"])
    assert new.shape == (vocab_size, 16)
    np.testing.assert_array_equal(new[:48], old[:vocab_size])
    np.testing.assert_allclose(new[48:], np.broadcast_to(np.mean(old, 0), new[48:].shape), atol=1e-6)
    resized = {row.ours for row in report.rows if row.status == "resized"}
    extra = {"bert": {"mlm/bias"}, "t5": set(), "gptj": {"logits/dense/kernel", "logits/bias"}}[name]
    assert resized == {"token_embedding/embedding"} | extra


def test_an_import_is_what_a_run_starts_from(tmp_path, capsys):
    directory, *_ = theirs(tmp_path)
    (directory / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]) + "\n")
    settings = json.loads((directory / "config.json").read_text()) | {"their_own": 1}
    (directory / "config.json").write_text(json.dumps(settings))
    out = tmp_path / "imported"
    assert cli.run(["import", str(directory), str(out)]) == 0
    assert "transposed" in capsys.readouterr().out
    assert presets.preset(str(out)) == parameters.open_directory(directory).config
    assert cli.run(["export", str(out), str(tmp_path / "back")]) == 0
    assert (tmp_path / "back" / "vocab.txt").read_bytes() == (directory / "vocab.txt").read_bytes()
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == (directory / "model.safetensors").read_bytes()
    again = json.loads((tmp_path / "back" / "config.json").read_text())
    assert again == settings
    assert cli.run(["import", str(directory), str(out)]) == 2
    assert "already exists; choose a new directory" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["gpt2", "t5", "bart", "llama", "bert", "roberta", "albert"])
def test_an_export_names_its_own_vocabulary_s_ids_and_its_own_classes(name, tmp_path):
    """It also loads with both. Bytes are written as in ByT5's directories."""
    heads = {"heads": ("classification",), "num_classes": 2} if not tiny(name).num_decoder_layers else {}
    config, vocabulary = tiny(name, vocab_size=384, **heads), ByteVocabulary()
    config = dataclasses.replace(config, decoder_start_id=-1)
    origin = {"model_type": name, "dtype": "bfloat16", "their_own": 1, "eos_token_id": [7, 1], "bos_token_id": 9}
    (tmp_path / "origin").mkdir()
    (tmp_path / "origin" / stored.SETTINGS).write_text(json.dumps(origin))
    model = Model(config, random_params(config), vocabulary, ("no", "yes") if heads else (), tmp_path / "origin")
    interchange.export_model(model, tmp_path / "out")
    said = json.loads((tmp_path / "out" / "config.json").read_text())
    end, begin = (vocabulary.sep_id, vocabulary.cls_id) if heads else ([7, 1], vocabulary.cls_id)
    ids = {"pad_token_id": 0, "eos_token_id": end, "bos_token_id": begin, "decoder_start_token_id": 0}
    ids |= {"forced_eos_token_id": 1} | ({"bos_token_id": 0} if name in ("gpt2", "llama") else {})
    if name in ("bert", "t5"):
        ids["bos_token_id"] = 9  # the family has none, so the original's stays
    if name == "bert":
        ids["eos_token_id"] = [7, 1]
    if name == "roberta":
        ids["pad_token_id"] = 1  # its positions count from this id
    assert {key: said[key] for key in ids if key in said} == {key: ids[key] for key in ids if key in said}
    assert "pad_token_id" in said and "dtype" not in said and (said["torch_dtype"], said["their_own"]) == ("float32", 1)
    again = t5x_lite.load(tmp_path / "out")
    assert (again.vocabulary, again.labels, again.start_id) == (
        ByteVocabulary(special_tokens=True),
        model.labels,
        model.start_id,
    )
    interchange.import_directory(tmp_path / "out", tmp_path / "in")
    assert t5x_lite.load(tmp_path / "in").vocabulary == ByteVocabulary(special_tokens=True)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_an_adapter_is_written_as_peft_has_it(scan_layers, tmp_path):
    """Merging adds lora_B · lora_A · alpha / r to their weight."""
    changes = {"lora_rank": 2, "lora_targets": ("query", "out"), "heads": ("classification",), "num_classes": 3}
    config = tiny("bert", **changes)
    params = random_params(config)
    stacked = stack_layers(params) if scan_layers else params
    peft.write(tmp_path, dataclasses.replace(config, scan_layers=scan_layers), stacked, FAMILIES["bert"])
    settings = json.loads((tmp_path / peft.SETTINGS).read_text())
    assert settings["target_modules"] == ["attention.output.dense", "attention.self.query"]
    assert settings["modules_to_save"] == ["classifier", "pooler"]
    tensors = load_file(tmp_path / peft.WEIGHTS)
    added, base = (
        dict(parameters.tensors(plain[0], FAMILIES["bert"], plain[1])[1])
        for plain in (lora.merged(config, params), lora.merged(dataclasses.replace(config, lora_alpha=0.0), params))
    )
    for name in ("attention.self.query", "attention.output.dense"):
        key = f"bert.encoder.layer.1.{name}"
        a, b = (tensors[f"base_model.model.{key}.lora_{m}.weight"] for m in "AB")
        delta = b @ a * settings["lora_alpha"] / settings["r"]
        np.testing.assert_allclose(added[f"{key}.weight"] - base[f"{key}.weight"], delta, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(tensors["base_model.model.classifier.weight"], added["classifier.weight"])


def rewrite_header(directory, change):
    """Rewrites the safetensors file with a different header over the same bytes."""
    file = directory / "model.safetensors"
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    change(header)
    new = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(new)) + new + data[8 + length :])


def renamed(old: str, new: str):
    def change(directory):
        rewrite_header(directory, lambda header: header.__setitem__(new, header.pop(old)))

    return change


def edited(**settings):
    def change(directory):
        path = directory / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))

    return change


def raw(name: str, content: bytes):
    return lambda directory: (directory / name).write_bytes(content)


def only_a_pickle(directory):
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


def truncated(directory):
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def reshaped(directory):
    tensors = load_file(directory / "model.safetensors")
    tensors["bert.pooler.dense.weight"] = tensors["bert.pooler.dense.weight"][:, :8].copy()
    save_file(tensors, directory / "model.safetensors")


def index_of(**files: str):
    def change(directory):
        (directory / "model.safetensors").rename(directory / "part.safetensors")
        (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))

    return change


def large_tokenizer(directory):
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (directory / "vocab.txt").write_text("\n".join([*special, *(f"w{i}" for i in range(60))]) + "\n")


NORM = "bert.embeddings.LayerNorm.weight"
HOSTILE = {
    "truncated": (truncated, "cannot read .*model.safetensors .*bytes"),
    "header longer than the file": (raw("model.safetensors", struct.pack("<Q", 2**40) + b"{}"), "cannot read"),
    "header of garbage": (raw("model.safetensors", struct.pack("<Q", 4) + b"\xff\xfe{}"), "cannot read"),
    "empty": (raw("model.safetensors", b""), "cannot read"),
    "a pickle under another name": (raw("model.safetensors", b"\x80\x04\x95"), "is a pickle"),
    "a zip under another name": (raw("model.safetensors", b"PK\x03\x04"), "is a pickle"),
    "only a pickle": (only_a_pickle, "may run code.*save_pretrained"),
    "a path as a name": (renamed(NORM, "../../etc/passwd"), "a tensor named"),
    "an absolute name": (renamed(NORM, "/etc/passwd"), "a tensor named"),
    "a home as a name": (renamed(NORM, "~root"), "a tensor named"),
    "a NUL in a name": (renamed(NORM, "a\0b"), "a tensor named"),
    "a long name": (renamed(NORM, "a" * 300), "a tensor named"),
    "an index to elsewhere": (index_of(a="../model.safetensors"), "is not a safetensors file beside it"),
    "an index to nothing": (index_of(a="other.safetensors"), "cannot read .*missing"),
    "an index that lies": (index_of(a="part.safetensors"), "does not hold"),
    "an index of nothing": (index_of(), "no weight_map"),
    "another shape": (reshaped, r"has the shape \[16, 8\]; config.json makes it \[16, 16\]"),
    "a missing tensor": (renamed(NORM, "bert.pooler.position_ids"), f"lacks 1 tensors, first {NORM}"),
    "a tensor too many": (edited(num_hidden_layers=1), "tensors that bert does not have, first .*encoder.layer.1"),
    "layers without end": (edited(num_hidden_layers=10**9), "num_hidden_layers=1000000000.*at most 1000"),
    "a size that is text": (edited(hidden_size="large"), "must be of type int"),
    "a size without end": (edited(hidden_size=10**12, num_attention_heads=2), "hidden_size=10+: must be"),
    "a size that the files do not have": (edited(hidden_size=10**9), r"has the shape .*hidden_size=1000000000"),
    "no heads": (edited(num_attention_heads=0), "must be at least 1"),
    "an activation we lack": (edited(hidden_act="mish"), "not supported; allowed: gelu"),
    "a position we lack": (edited(position_embedding_type="relative_key"), "allowed: absolute"),
    "a family we lack": (edited(model_type="berd"), "did you mean 'bert'"),
    "no family": (edited(model_type=7), "has no model_type"),
    "no JSON": (raw("config.json", b"{"), "cannot read .*config.json"),
    "JSON without end": (raw("config.json", b"[" * 100_000), "cannot read .*config.json"),
    "a list": (raw("config.json", b"[]"), "holds a list, not an object"),
    "a tokenizer of another size": (
        large_tokenizer,
        "65 ids, the model 48 embedding rows; import it with --vocab-size=128",
    ),
    "a broken tokenizer": (raw("tokenizer.json", b"{"), "is not a usable tokenizer"),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return theirs(tmp_path_factory.mktemp("good"))[0]


@pytest.mark.parametrize("case", HOSTILE)
def test_a_broken_or_hostile_directory_is_one_clear_message(case, good, tmp_path):
    """It also writes nothing."""
    change, message = HOSTILE[case]
    shutil.copytree(good, tmp_path / "bad")
    change(tmp_path / "bad")
    with pytest.raises(UserError, match=message) as caught:
        interchange.import_directory(tmp_path / "bad", tmp_path / "out")
    assert len(str(caught.value).splitlines()) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad"]


def params_of(directory):
    found = parameters.open_directory(directory)
    return parameters.load(found, found.config, parameters.layout_for(found.config))[0]


def test_a_single_file_wins_over_an_index_that_an_older_save_left(good, tmp_path, caplog):
    shutil.copytree(good, tmp_path / "both")
    index_of(a="model-00001-of-00009.safetensors")(tmp_path / "both")
    (tmp_path / "both" / "part.safetensors").rename(tmp_path / "both" / "model.safetensors")
    loaded, expected = params_of(tmp_path / "both"), params_of(good)
    assert "model.safetensors is read; model.safetensors.index.json is not used" in caplog.text
    jax.tree.map(np.testing.assert_array_equal, loaded, expected)


def test_shared_layers_may_be_more_than_the_tensors(tmp_path):
    directory, _, _ = theirs(tmp_path, "albert", num_encoder_layers=40)
    assert len(parameters.open_directory(directory).weights.shapes) < 40
    params_of(directory)


def test_export_drops_what_the_original_says_of_its_own_heads_and_tensors(tmp_path):
    """The exported model has three classes and no tensor of its own for the output layer."""
    origin, config, _ = theirs(tmp_path, "bert", heads=("mlm",))
    tensors = load_file(origin / "model.safetensors")
    table = tensors["bert.embeddings.word_embeddings.weight"]
    save_file(tensors | {"cls.predictions.decoder.weight": table}, origin / "model.safetensors")
    edited(num_labels=2, _num_labels=2, tie_word_embeddings=False)(origin)
    interchange.import_directory(origin, tmp_path / "imported")
    for heads, classes in ((("mlm",), 0), (("classification",), 3)):
        config = dataclasses.replace(config, heads=heads, num_classes=classes)
        out = tmp_path / heads[0]
        interchange.export_directory(config, random_params(config), out, origin=tmp_path / "imported")
        again = parameters.open_directory(out).config
        assert (again.heads, again.num_classes) == (heads, classes)
        assert (
            not {"num_labels", "_num_labels", "tie_word_embeddings"}
            & json.loads((out / "config.json").read_text()).keys()
        )


@pytest.mark.parametrize("family", ["t5", "bert", "gpt2"])
def test_any_one_of_several_tied_names_serves(family, tmp_path):
    config = dataclasses.replace(TINY[family], heads=("mlm",) if family == "bert" else ())
    params = random_params(config)
    interchange.export_directory(config, params, tmp_path / "hf")
    expected = params_of(tmp_path / "hf")
    name, copy = {
        "t5": ("shared.weight", "decoder.embed_tokens.weight"),
        "bert": ("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
        "gpt2": ("transformer.wte.weight", "lm_head.weight"),
    }[family]
    renamed(name, copy)(tmp_path / "hf")
    jax.tree.map(np.testing.assert_array_equal, params_of(tmp_path / "hf"), expected)
    if family != "t5":  # T5's stacks share the table whatever this key says
        edited(tie_word_embeddings=False)(tmp_path / "hf")
        with pytest.raises(CheckpointError, match=r"lacks 1 tensors, first"):
            params_of(tmp_path / "hf")


@pytest.mark.parametrize(
    ("family", "key", "source"),
    [(name, key, source) for name, family in FAMILIES.items() for key, source in family.also.items()],
)
def test_two_keys_that_are_one_of_ours_must_agree(family, key, source, tmp_path):
    base = FAMILIES[family].base
    settings = mapping.write_config(base, FAMILIES[family])
    mapping.read_config(settings, FAMILIES[family], tmp_path)
    with pytest.raises(CheckpointError, match=f"{key}=.* and {source}=.* differ"):
        mapping.read_config(settings | {key: settings[key] + 1}, FAMILIES[family], tmp_path)


@pytest.mark.parametrize(("between", "doubled"), [("[SEP]", False), ("[SEP] [SEP]", True)])
def test_the_tokenizer_decides_the_marks_between_two_texts(good, tmp_path, between, doubled):
    """Multilingual MiniLM is a BERT with XLM-R's tokenizer."""
    shutil.copytree(good, tmp_path / "hf")
    ids = {f"w{n}": n for n in range(40)} | {"[PAD]": 40, "[UNK]": 41, "[CLS]": 42, "[SEP]": 43, "[MASK]": 44, "a": 45}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair=f"[CLS] $A {between} " + ("$B [SEP]" if doubled else "$B:1 [SEP]:1"),
        special_tokens=[("[CLS]", 42), ("[SEP]", 43)],
    )
    made.save(str(tmp_path / "hf" / "tokenizer.json"))
    interchange.import_directory(tmp_path / "hf", tmp_path / "imported")
    expected = made.encode("w1 w2", "w3")
    for name in ("hf", "imported"):
        batch = t5x_lite.load(tmp_path / name).tokenize(["w1 w2"], ["w3"])
        is_real = batch["encoder_segment_ids"][0] > 0
        assert batch["encoder_input_tokens"][0][is_real].tolist() == expected.ids
        types = [0] * len(expected.ids) if doubled else [0, 0, 0, 0, 1, 1]
        assert batch["token_type_ids"][0][is_real].tolist() == types


def test_what_is_not_imported_yet_is_told_how(tmp_path):
    with pytest.raises(CheckpointError, match=r"in Hugging Face format .*hf://OWNER/NAME OUT"):
        t5x_lite.load(tmp_path / "bert-base-uncased")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"import it: `t5x-lite import .* OUT`"):
        presets.find(str(tmp_path))


def test_what_is_allowed_by_name_passes(good, tmp_path):
    shutil.copytree(good, tmp_path / "bad")
    renamed(NORM, "bert.stray")(tmp_path / "bad")
    _, report = load(tmp_path / "bad", allow=("*.stray", "encoder/embedding_norm/*"))
    said = {row.tensor or row.ours: (row.status, row.reason) for row in report.rows}
    assert said["bert.stray"] == ("skipped", "allowed by name")
    assert said["encoder/embedding_norm/scale"] == ("fresh", "allowed by name")


def test_a_model_that_no_family_has_is_not_exported(tmp_path):
    config = dataclasses.replace(presets.PRESETS["transformer_base"], **SIZES)
    with pytest.raises(ConfigError, match=r"no Hugging Face family can express this model.*positions"):
        interchange.export_directory(config, {}, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", presets.PRESETS)
def test_every_preset_has_its_family_but_the_first_transformer(name):
    config = presets.PRESETS[name]
    if name.startswith("transformer") or config.body != "transformer":
        return
    family = mapping.family_for(config)
    assert family.base.architecture == config.architecture


@pytest.mark.parametrize(
    ("name", "key", "unset"),
    [
        ("bert", "classifier_dropout", -1.0),
        ("roberta", "classifier_dropout", -1.0),
        ("albert", "classifier_dropout_prob", 0.1),
        ("distilbert", "seq_classif_dropout", 0.2),
    ],
)
def test_a_classifier_s_own_dropout_is_read_and_written(name, key, unset):
    family, where = FAMILIES[name], Path("config.json")
    settings = mapping.write_config(tiny(name, classifier_dropout_rate=0.3), family)
    assert settings[key] == 0.3 and mapping.read_config(settings, family, where).classifier_dropout_rate == 0.3
    assert mapping.read_config(settings | {key: None}, family, where).classifier_dropout_rate == unset
    shared = mapping.write_config(tiny(name, classifier_dropout_rate=-1.0, dropout_rate=0.25), family)
    assert shared[key] == (None if unset == -1 else 0.25)  # null in BERT means the general dropout rate


def test_a_t5x_directory_is_imported(tmp_path):
    """Every parameter is its own zarr array, with heads and head dimension merged, as T5X writes them."""
    import tensorstore

    config = tiny("t5", vocab_size=64)
    params = random_params(config)
    theirs = {ours: name for name, ours in t5x.NAMES.items()}
    for parts, leaf in flatten_dict(params).items():
        attention = "attention" if parts[0] == "encoder" else "self_attention"
        names = theirs | {"final_norm": f"{parts[0]}_norm", "self_attention": attention}
        names["self_attention_norm"] = f"pre_{attention}_layer_norm"
        if parts[0] == "token_embedding":
            names["embedding"] = "embedding"
        name = ".".join(names.get(part, part) for part in parts)
        array = np.asarray(leaf)
        if parts[-1] == "kernel" and array.ndim == 3:
            inputs = 2 if parts[-2] == "out" else 1
            array = array.reshape(int(np.prod(array.shape[:inputs])), -1)
        store = {"driver": "file", "path": str(tmp_path / "t5x" / f"target.{name}")}
        spec = {"driver": "zarr", "kvstore": store, "metadata": {"compressor": {"id": "gzip"}}}
        tensorstore.open(spec, create=True, dtype="float32", shape=array.shape).result().write(array).result()
    report = interchange.import_directory(tmp_path / "t5x", tmp_path / "out")
    assert {row.status for row in report.rows} == {"loaded"}
    assert stored.read(tmp_path / "out") == config
    got = t5x.load(tmp_path / "t5x")[1]
    assert_same(got, params)
    next((tmp_path / "t5x").glob("target.decoder*/.zarray")).write_text("{}")
    with pytest.raises(CheckpointError, match="is not a T5X checkpoint"):
        interchange.import_directory(tmp_path / "t5x", tmp_path / "out2")


def test_downloads_are_pinned_and_hold_no_pickle(tmp_path, monkeypatch):
    """Checks the request to the hub, without a network."""
    hub = pytest.importorskip("huggingface_hub", reason="the extra `hub`")
    asked = {}
    directory, _, _ = theirs(tmp_path)
    monkeypatch.setattr(hub, "snapshot_download", lambda repo_id, **options: asked.update(options) or str(directory))
    revision = "0123456789" * 4
    assert cli.run(["import", f"hf://google-bert/bert@{revision}", str(tmp_path / "out")]) == 0
    assert asked["revision"] == revision
    assert not any(fnmatch.fnmatch(name, p) for name in ("a.bin", "a.pt", "a.py") for p in asked["allow_patterns"])
    assert (tmp_path / "out" / "checkpoints" / "0").is_dir()
    assert (tmp_path / "out" / "source.txt").read_text() == f"hf://google-bert/bert@{revision}\n"
    for source in ("hf://google-bert/bert", "hf://google-bert/bert@main"):
        with pytest.raises(ConfigError, match="names no commit"):
            download.fetch(source)
    for source in ("hf://bert", "hf://bert/a/b@" + revision, "hf://a/b@", "hf://../../x/y"):
        with pytest.raises(ConfigError, match="must be hf://OWNER/NAME, or"):
            download.pinned(source)


def test_a_name_on_the_hub_is_pinned_to_its_newest_commit(tmp_path, monkeypatch, capsys):
    """A server of our own answers in place of the hub."""
    hub = pytest.importorskip("huggingface_hub", reason="the extra `hub`")
    commit, asked, directory = "0123456789" * 4, [], theirs(tmp_path)[0]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            content = json.dumps({"id": "a/b", "sha": commit}).encode()
            self.send_response(404 if "missing" in self.path else 200)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    downloads = []
    monkeypatch.setattr(hub, "snapshot_download", lambda *a, **options: downloads.append(options) or str(directory))
    assert download.pinned("hf://a/b") == download.pinned("hf://a/b@v1.0") == f"hf://a/b@{commit}"
    assert [path.split("?")[0] for path in asked if "/models/" in path] == [
        "/api/models/a/b",
        "/api/models/a/b/revision/v1.0",
    ]
    assert cli.run(["import", "hf://a/b", str(tmp_path / "out")]) == 0
    assert f"hf://a/b is now at {commit}; hf://a/b@{commit} will always be" in capsys.readouterr().out
    assert downloads[0]["revision"] == commit
    assert (tmp_path / "out" / "source.txt").read_text() == f"hf://a/b@{commit}\n"
    with pytest.raises(CheckpointError, match="cannot ask the hub for the commit of hf://a/missing"):
        download.pinned("hf://a/missing")
    server.shutdown()
    with pytest.raises(CheckpointError, match="cannot ask the hub"):
        server.server_close()
        download.pinned("hf://a/b")


@pytest.mark.parametrize(
    ("sizes", "heads", "parameters_"),
    [
        ((512, 1024, 8), (8, 8, 64, 64), 312_517_632),
        ((768, 2048, 12), (12, 12, 64, 64), 591_490_560),
        ((2304, 9216, 26), (8, 4, 256, 256), 5_596_853_760),
    ],
    ids=["s-s", "b-b", "2b-2b"],
)
def test_a_published_t5gemma_has_its_number_of_parameters(sizes, heads, parameters_):
    """The values of config.json as published; transformers' models on its meta device have the same numbers."""
    keys = "hidden_size", "intermediate_size", "num_hidden_layers"
    keys += "num_attention_heads", "num_key_value_heads", "head_dim", "query_pre_attn_scalar"
    part = dict(zip(keys, (*sizes, *heads), strict=True)) | {
        "model_type": "t5_gemma_module", "vocab_size": 256000, "hidden_activation": "gelu_pytorch_tanh",
        "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "sliding_window": 4096, "rope_theta": 10000.0,
        "layer_types": ["sliding_attention", "full_attention"] * (sizes[2] // 2), "max_position_embeddings": 8192,
        "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0, "attention_bias": False, "rms_norm_eps": 1e-6,
    }  # fmt: skip
    settings = {"model_type": "t5gemma", "is_encoder_decoder": True, "encoder": part, "decoder": part}
    config = mapping.read_config(settings, FAMILIES["t5gemma"], Path())
    assert sum(np.prod(shape) for shape, _ in parameters.abstract(config).values()) == parameters_
    name = {512: "t5gemma_small", 768: "t5gemma_base", 2304: "t5gemma_2b_2b"}[sizes[0]]
    assert config == presets.PRESETS[name]
    wide = part | {"hidden_size": 3584}
    with pytest.raises(CheckpointError, match="encoder and decoder differ: hidden_size=3584 and"):
        mapping.read_config(settings | {"encoder": wide}, FAMILIES["t5gemma"], Path())


@pytest.mark.parametrize(
    ("name", "sizes", "parameters_"),
    [("270m_270m", (640, 2048, 18), 368_424_192), ("1b_1b", (1152, 6912, 26), 1_697_782_016)],
)
def test_a_t5gemma2_has_the_number_of_parameters_of_its_text_model(name, sizes, parameters_):
    """transformers' models on its meta device have the same numbers without what only images need."""
    part = dict(zip(("hidden_size", "intermediate_size", "num_hidden_layers"), sizes, strict=True)) | {
        "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "query_pre_attn_scalar": 256,
        "vocab_size": 262144, "sliding_window": 512, "max_position_embeddings": 32768,
    }  # fmt: skip
    encoder = {"text_config": part, "vision_config": {"model_type": "siglip_vision_model"}}
    config = mapping.read_config({"encoder": encoder, "decoder": part}, FAMILIES["t5gemma2"], Path())
    assert sum(np.prod(shape) for shape, _ in parameters.abstract(config).values()) == parameters_
    assert config == presets.PRESETS[f"t5gemma2_{name}"]
    wide = encoder | {"text_config": part | {"hidden_size": 2560}}
    with pytest.raises(CheckpointError, match="encoder and decoder differ: hidden_size=2560 and"):
        mapping.read_config({"encoder": wide, "decoder": part}, FAMILIES["t5gemma2"], Path())
