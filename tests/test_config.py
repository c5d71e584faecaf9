"""Config keys, overrides and files: every mistake gives one readable line."""

import dataclasses
import json
from pathlib import Path

import pytest

from t5x_lite import config, unknown_keys
from t5x_lite import tasks as tasks  # importing registers them
from t5x_lite.data import registry
from t5x_lite.errors import ConfigError
from t5x_lite.models.config import ModelConfig

EXPERIMENTS = Path(__file__).parents[1] / "configs"


def test_json_round_trip_keeps_every_key(tmp_path):
    cfg = config.base()
    cfg.model.heads = ("mlm", "nsp")
    cfg.train.total_steps = 7
    path = tmp_path / "config.json"
    path.write_text(config.to_json(cfg))
    assert config.flat(config.from_json(path)) == config.flat(cfg)


def test_every_model_field_is_a_key():
    keys = config.base().model.keys()
    for field in dataclasses.fields(ModelConfig):
        assert field.name in keys or field.name in ("architecture", "num_classes")


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("train.total_steps", "1e3", 1000),
        ("optimizer.learning_rate", "3e-4", 3e-4),
        ("data.pack", "false", False),
        ("eval.tasks", "a,b", ("a", "b")),
        ("data.labels", "('very good', \"bad\")", ("very good", "bad")),
        ("model.num_heads", "8", 8),
        ("mesh", "data=2,fsdp=4", "data=2,fsdp=4"),
    ],
)
def test_override_reads_the_text_as_the_keys_type(key, text, value):
    cfg = config.base()
    config.override(cfg, key, text)
    assert config.flat(cfg)[key] == value


@pytest.mark.parametrize("key", list(config.flat(config.base())))
def test_a_key_with_one_letter_missing_is_found_again(key):
    section, _, leaf = key.rpartition(".")
    if len(leaf) < 4:
        pytest.skip("too short to be recognised")
    typo = f"{section}.{leaf[:1]}{leaf[2:]}".lstrip(".")
    with pytest.raises(ConfigError, match="did you mean") as error:
        config.override(config.base(), typo, "1")
    assert f"config.{key}" in str(error.value)


@pytest.mark.parametrize("text", ["x", "1.5", ""])
def test_a_wrong_type_says_what_was_got_and_what_is_wanted(text):
    with pytest.raises(ConfigError, match=r"config\.train\.total_steps=.* is not of type int"):
        config.override(config.base(), "train.total_steps", text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer.name": "adamax"}, "unknown optimizer.name 'adamax'; did you mean 'adam'"),
        ({"schedule.name": "cosin"}, "did you mean 'cosine'"),
        ({"train.microbatches": "3"}, "not divisible by train.microbatches=3; use 2 or 4"),
        ({"schedule.name": "linear", "schedule.warmup_steps": "5000"}, "decay never begins"),
        ({"data.noise_density": "1.5"}, "between 0 and 1"),
        ({"data.batch_rows": "0"}, "at least 1"),
        ({"model.heads": "mml"}, "did you mean 'mlm'"),
        ({"data.mixture": ""}, "data.mixture is empty"),
    ],
)
def test_validate_names_key_value_and_fix(changes, message):
    cfg = config.base()
    cfg.data.mixture = "any"
    for key, text in changes.items():
        config.override(cfg, key, text)
    with pytest.raises(ConfigError) as error:
        config.validate(cfg)
    assert message in str(error.value)
    assert str(error.value).count("\n") < 3


def test_config_file_errors(tmp_path):
    good = tmp_path / "experiment.py"
    good.write_text(
        "from t5x_lite import config\ndef get_config(kind='a'):\n  c = config.base(); c.name = kind; return c\n"
    )
    assert config.load(str(good)).name == "a"
    assert config.load(f"{good}:b").name == "b"
    with pytest.raises(ConfigError, match=r"did you mean .*experiment\.py"):
        config.load(str(tmp_path / "experimet.py"))
    good.write_text("def other(): pass")
    with pytest.raises(ConfigError, match=r"no get_config\(\)"):
        config.load(str(good))
    good.write_text(
        "from t5x_lite import config\ndef get_config():\n  c = config.base(); c.train.total_step = 1; return c\n"
    )
    with pytest.raises(ConfigError, match=r"line 3: unknown key config\.train\.total_step; did"):
        config.load(str(good))
    good.write_text("1/0")
    with pytest.raises(ConfigError, match="ZeroDivisionError"):
        config.load(str(good))


def test_the_names_of_other_frameworks_lead_to_the_key():
    for name, key in unknown_keys.NAMES.items():
        assert key in config.KEYS and name not in {known.rpartition(".")[2] for known in config.KEYS}, name
        for typed in (name, name.upper(), f"train.{name}"):
            with pytest.raises(ConfigError, match=f"unknown key config.{typed}; use config.{key}: "):
                config.override(config.base(), typed, "1")


def test_from_json_refuses_what_it_does_not_know(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"train": {"total_stepps": 1}}))
    with pytest.raises(ConfigError, match="did you mean"):
        config.from_json(path)
    path.write_text("{")
    with pytest.raises(ConfigError, match="cannot read"):
        config.from_json(path)


def test_every_key_says_what_a_change_means_to_a_run_that_resumes():
    """Refuses every change below model and data unless it is known to be harmless."""
    kinds = {name: key.resume for name, key in config.KEYS.items()}
    assert set(kinds.values()) == {"refuse", "warn", "free"}
    harmless = {name for name, kind in kinds.items() if kind != "refuse" and name.startswith(("model.", "data."))}
    assert harmless == {
        *("data.cache_dir", "data.max_bad_fraction", "data.metrics", "data.prefetch_batches"),
        *("model.attention", "model.remat", "model.dtype"),
        *("model.dropout_rate", "model.attention_dropout_rate", "model.classifier_dropout_rate"),
        *("model.dropout_hidden", "model.dropout_broadcasts_length"),
    }
    others = {name for name, kind in kinds.items() if kind == "refuse" and not name.startswith(("model.", "data."))}
    assert others == {
        *("seed", "optimizer.name", "optimizer.trained", "optimizer.unfreeze_every_steps", "train.spike_sigmas"),
        "loss.name",
    }
    assert {kinds[key] for key in ("optimizer.learning_rate", "mesh", "train.microbatches", "loss.z_loss")} == {"warn"}
    assert {kinds[key] for key in ("train.total_steps", "eval.tasks", "wandb.mode", "checkpoint.keep_last")} == {"free"}


def test_every_key_has_a_meaning_and_its_default_is_allowed():
    for name, key in config.KEYS.items():
        assert key.meaning and len(key.meaning) < 100, name
        key.check(name, key.default)


def test_changes_are_told_by_what_they_mean():
    old, new = config.base(), config.base()
    new.seed, new.optimizer.learning_rate, new.eval.every_steps = 1, 0.5, 7
    assert config.changes(old, new) == {
        "refuse": ["seed: 0 → 1"],
        "warn": ["optimizer.learning_rate: 0.01 → 0.5"],
        "free": ["eval.every_steps: 1000 → 7"],
    }


@pytest.mark.parametrize("file", sorted(EXPERIMENTS.glob("*.py")), ids=lambda file: file.stem)
def test_every_experiment_is_valid_and_trains_on_what_is_registered(file):
    cfg = config.load(str(file))
    config.validate(cfg)
    assert registry.get(cfg.data.mixture)


GLUE = {"cola": 8_551, "sst2": 67_349, "mrpc": 3_668, "stsb": 5_749, "wnli": 635}  # training examples
GLUE |= {"qqp": 363_846, "mnli": 392_702, "qnli": 104_743, "rte": 2_490}


@pytest.mark.parametrize("task", GLUE)
def test_glue_has_batches_of_32_examples_for_as_many_epochs(task):
    file = EXPERIMENTS / "glue.py"
    cfg = config.load(f"{file}:{task}")
    config.validate(cfg)
    seen = 32 * cfg.train.total_steps
    assert seen / GLUE[task] == pytest.approx(1 if task == "sst2" else 3, rel=0.05)
    assert cfg.schedule.warmup_steps / cfg.train.total_steps == pytest.approx(0.06, abs=0.01)
    with pytest.raises(ConfigError, match="did you mean 'cola'"):
        config.load(f"{file}:colo")


@pytest.mark.parametrize(
    ("name", "kept"), [("adamw", (0.95, None)), ("adafactor", (None, None)), ("own:mine:abc", (None, None))]
)
def test_version_0_1_gave_every_optimizer_adamw_s_hyper_parameters(tmp_path, name, kept):
    stored = {"optimizer": {"name": name, "b1": 0.95, "b2": 0.999, "epsilon": 1e-8}}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    cfg = config.from_json(tmp_path / "config.json")
    assert (cfg.optimizer.b1, cfg.optimizer.b2) == kept


def test_brackets_of_a_regular_expression_are_kept():
    cfg = config.base()
    for text, groups in {
        "(encoder|decoder)/.* rate=0.1": ("(encoder|decoder)/.* rate=0.1",),
        "('a.* frozen', 'b.* rate=2')": ("a.* frozen", "b.* rate=2"),
        "[ab]/.* frozen,c frozen": ("[ab]/.* frozen", "c frozen"),
    }.items():
        config.override(cfg, "optimizer.groups", text)
        assert cfg.optimizer.groups == groups
