"""The perplexity over overlapping rows scores each token once, and is what Hugging Face's guide computes."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_lite import config as configs
from t5x_lite import experiment, runtime
from t5x_lite.checkpoints.loading import load_params
from t5x_lite.data import registry
from t5x_lite.data.convert import DecoderOnly, start
from t5x_lite.data.eval_batches import eval_batches, overlapping
from t5x_lite.data.registry import Feature, Task
from t5x_lite.data.sources import Function
from t5x_lite.data.vocabularies import ByteVocabulary
from t5x_lite.errors import ConfigError
from t5x_lite.evaluation import evaluate
from t5x_lite.hub import interchange
from t5x_lite.reports import results

CONFIG = str(Path(__file__).parent / "experiments" / "tiny.py")
VOCABULARY = ByteVocabulary()
TEXTS = [f"Text {n}: " + "so it goes. " * (n % 5) for n in range(70)]  # more than are tokenized together
TASK = Task("texts", Function(lambda split: [{"text": text} for text in TEXTS]), features={"text": Feature()})
TOKENS = np.concatenate([np.append(ids, VOCABULARY.eos_id) for ids in VOCABULARY.encode(TEXTS)])


@given(st.data())
def test_each_token_is_scored_once_with_enough_context(data):
    length = data.draw(st.integers(1, 9))
    stride = data.draw(st.integers(1, length))
    tokens = np.arange(data.draw(st.integers(0, 40)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(tokens)), max_size=4)))
    rows = list(overlapping(np.split(tokens, cuts), length, stride))
    scored = [row[context:] for row, context in rows]
    np.testing.assert_array_equal(np.concatenate([*scored, np.zeros(0, int)]), tokens)
    for number, (row, context) in enumerate(rows):
        np.testing.assert_array_equal(row, tokens[number * stride : number * stride + length])
        assert context < len(row) and context >= min(int(row[context]), length - stride)


def batches(stride: int, limit: int = 0, host: int = 0, hosts: int = 1) -> dict[str, np.ndarray]:
    """Returns all rows of the evaluation batches."""
    parts = list(
        eval_batches(
            TASK,
            DecoderOnly(24),
            VOCABULARY,
            batch_rows=4,
            limit=limit,
            stride=stride,
            shard_index=host,
            shard_count=hosts,
        )
    )
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@pytest.mark.parametrize("stride", [1, 7, 24])
def test_batches_hold_the_whole_stream_on_any_number_of_hosts(stride):
    whole = batches(stride)
    np.testing.assert_array_equal(whole["decoder_target_tokens"][whole["decoder_loss_weights"] > 0], TOKENS)
    assert set(np.unique(whole["decoder_loss_weights"])) == {0.0, 1.0}
    halves = [batches(stride, host=host, hosts=2) for host in range(2)]
    for name, array in whole.items():
        parts = [half[name].reshape(-1, 2, 24) for half in halves]
        np.testing.assert_array_equal(np.concatenate(parts, axis=1).reshape(array.shape), array)


def test_a_stride_of_the_whole_row_gives_the_rows_without_overlap():
    plain, same = batches(0, limit=60), batches(24, limit=60)
    for name, array in plain.items():
        np.testing.assert_array_equal(same[name], array)


@pytest.mark.parametrize(
    ("preset", "change", "message"),
    [
        ("t5_tiny", {}, "needs a decoder-only model"),
        ("bert_tiny", {}, "needs a decoder-only model"),
        ("gpt2_tiny", {"data.objective": "prefix_lm"}, "needs a decoder-only model with data.objective=full_lm"),
        ("gpt2_tiny", {"eval.stride": 65}, "at most data.length=64"),
        ("gpt2_tiny", {"data.mixture": "tiny_animal"}, "is for corpora, but the run evaluates tiny_animal"),
    ],
)
def test_a_stride_without_a_meaning_is_an_error(preset, change, message):
    cfg = configs.load(f"{CONFIG}:{preset}")
    for key, value in ({"eval.stride": 32} | change).items():
        configs.override(cfg, key, str(value))
    with pytest.raises(ConfigError, match=rf"^eval.stride=\d+: .*{message}"):
        experiment.resolve(cfg)


def test_the_tables_say_which_perplexity_is_which():
    row = {"step": 3, "eval/texts/perplexity": 9.0, "eval/texts/bits_per_byte": 1.0, "eval/texts/loss": 2.2}
    assert [line.partition(":")[0] for line in results.perplexities([row])] == ["perplexity"]
    both = row | {"eval/texts/perplexity_stride_32": 8.0}
    names = ["perplexity", "perplexity_stride_32"]
    assert [line.partition(":")[0] for line in results.perplexities([both])] == names
    assert all(line in str(results.results_table([both], 3).caption) for line in results.perplexities([both]))
    assert results.perplexities([{"step": 3, "eval/texts/perplexity": 9.0}]) == []  # of a denoising objective


def test_the_perplexity_is_that_of_hugging_face_s_guide(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch", reason="parity needs the extra `parity`")
    transformers = pytest.importorskip("transformers", reason="parity needs the extra `parity`")
    monkeypatch.setattr(registry, "REGISTRY", dict(registry.REGISTRY))
    torch.manual_seed(0)
    sizes = {"vocab_size": 384, "n_positions": 24, "n_embd": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.5}
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=1, eos_token_id=1)).eval()
    theirs.save_pretrained(tmp_path / "gpt2")
    interchange.import_directory(tmp_path / "gpt2", tmp_path / "imported")

    cfg = configs.load(f"{CONFIG}:{tmp_path / 'imported'}")
    cfg.data.mixture, cfg.data.length, cfg.eval.max_examples = registry.add(TASK).name, 24, 8
    cfg.eval.max_decode_tokens, cfg.eval.stride = 1, 24
    found = experiment.resolve(cfg)
    on_devices = runtime.start(found)
    params, _ = load_params(tmp_path / "imported", on_devices.abstract_params())
    evaluator = evaluate.Evaluator(found, on_devices, tmp_path)

    def ours(stride: int) -> dict[str, float]:
        cfg.eval.stride = stride
        values, _ = evaluator.evaluate(params, 0)
        return {name.removeprefix("eval/texts/"): value for name, value in values.items()}

    def guide(stride: int) -> float:
        """The loop of "Perplexity of fixed-length models"; as in training, each row begins with the start token."""
        nlls, scored, tokens = [], 0, TOKENS[: np.flatnonzero(VOCABULARY.eos_id == TOKENS)[7] + 1]
        first = start(found.model.decoder_start_id, VOCABULARY)
        for begin in range(0, len(tokens), stride):
            end = min(begin + 24, len(tokens))
            inputs = torch.tensor([[first, *tokens[begin : end - 1]]])
            with torch.no_grad():
                logprobs = torch.log_softmax(theirs(inputs).logits[0].double(), dim=-1)
            of_targets = logprobs[torch.arange(end - begin), torch.tensor(tokens[begin:end])]
            nlls.append(-of_targets[scored - begin :])
            scored = end
            if end == len(tokens):
                break
        return float(torch.exp(torch.cat(nlls).mean()))

    for stride in (24, 8):
        values = ours(stride)
        assert values[f"perplexity_stride_{stride}"] == pytest.approx(guide(stride), rel=1e-4)
    assert "perplexity_stride_0" not in ours(0)
    assert evaluator.directions()["lower_is_better/texts/perplexity_stride_8"] == 1
