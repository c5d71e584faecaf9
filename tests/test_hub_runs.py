"""Runs that start from imported weights, with and without LoRA."""

import json
from pathlib import Path

import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from test_hub import theirs

import t5x_lite
from t5x_lite import cli
from t5x_lite.errors import ConfigError

CONFIG = Path(__file__).parent / "experiments" / "tiny.py"
WORDS = ("the", "a", "red", "blue", "old", "new", "cat", "dog", "runs", "sleeps", "animal", ":")


def flat(model) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in flatten_dict(model.params, sep="/").items()}


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """Returns a Hugging Face BERT, imported by `t5x-lite import`."""
    root = tmp_path_factory.mktemp("imported")
    directory, *_ = theirs(root, max_positions=64)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (directory / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    assert cli.run(["import", str(directory), str(root / "ours")]) == 0
    return root / "ours"


@pytest.mark.parametrize("rank", [0, 2])
def test_a_run_starts_from_imported_weights_and_goes_back_out(imported, rank, tmp_path, capsys):
    workdir = tmp_path / "run"
    code = cli.run(
        [
            *("train", f"--config={CONFIG}:{imported}", f"--workdir={workdir}"),
            *("--config.data.mixture=tiny_animal", f"--config.data.vocabulary={imported}"),
            *(f"--config.init.checkpoint={imported}", f"--config.model.lora_rank={rank}"),
            *("--config.train.total_steps=3", "--config.eval.untrained=false", "--config.eval.every_steps=0"),
        ]
    )
    said = capsys.readouterr()
    assert code == 0, said.err
    assert ("% of all" in said.out) == (rank > 0)
    before, tuned = t5x_lite.load(imported), t5x_lite.load(workdir)
    old, new = flat(before), flat(tuned)
    shared = [path for path in new if path in old and not path.startswith("pooler")]
    equal = {path: np.array_equal(old[path], new[path]) for path in shared}
    assert all(equal.values()) if rank else not all(equal.values())
    texts = ["animal : the red cat runs", "the dog"]
    probabilities = tuned.classify(texts)
    assert [set(p) for p in probabilities] == [{"cat", "dog"}] * 2
    assert before.embed(texts).shape == (2, 16) and before.embed([]).shape == (0, 16) and tuned.classify([]) == []
    with pytest.raises(ConfigError, match=r"pass a list of texts, \['the dog'\]"):
        tuned.embed("the dog")

    assert cli.run(["export", str(workdir), str(tmp_path / "out")]) == 0
    back = t5x_lite.load(tmp_path / "out")
    assert back.labels == tuned.labels and set(back.labels) == {"cat", "dog"}
    for mine, again in zip(probabilities, back.classify(texts), strict=True):
        np.testing.assert_allclose(list(mine.values()), list(again.values()), atol=1e-5)
    settings = json.loads((tmp_path / "out" / "config.json").read_text())
    assert settings["architectures"] == ["BertForSequenceClassification"]
    if rank:
        assert cli.run(["export", str(workdir), str(tmp_path / "adapter"), "--adapter"]) == 0
        assert sorted(p.name for p in (tmp_path / "adapter").iterdir()) == [
            "adapter_config.json",
            "adapter_model.safetensors",
        ]
