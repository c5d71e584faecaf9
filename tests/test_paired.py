"""configs/paired.py says of its models what they are."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

from t5x_lite import batch as batches
from t5x_lite import config, experiment, runtime
from t5x_lite.costs import model_flops
from t5x_lite.errors import ConfigError
from t5x_lite.models import paths

FILE = Path(__file__).parents[1] / "configs" / "paired.py"
ARCHITECTURES = ("encoder_only", "decoder_only", "text_to_text")


@pytest.fixture(scope="module")
def paired():
    spec = importlib.util.spec_from_file_location("paired", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_parameters_and_flops_of_the_table_are_the_model_s(paired, architecture):
    """Attention's products of queries with keys and of weights with values are left out of the table."""
    cfg, rows, length = config.load(f"{FILE}:{architecture}"), 4, 160
    if architecture == "text_to_text":
        # Of `length` tokens of a document, so many are in the encoder and in the decoder.
        cfg.data.length = round(length * (1 - paired.HIDDEN + paired.SENTINELS))
        cfg.data.targets_length = round(length * (paired.HIDDEN + paired.SENTINELS))
    else:
        cfg.data.length = length
    resolved = experiment.resolve(cfg)
    model = resolved.model
    params = paths.flatten(runtime.start(resolved, jax.devices()[:1]).abstract_params())
    count = sum(p.size for p in params.values())
    layers = paired.depth(architecture)
    assert count == pytest.approx(paired.parameters(architecture, layers), rel=0.02)
    sizes = {"B": rows, "S": cfg.data.length, "L": cfg.data.targets_length, "P": round(length * paired.HIDDEN), "E": 1}
    sizes["L"] = length if architecture == "decoder_only" else sizes["L"]
    batch = batches.zeros(architecture, sizes, model.heads)
    S, L, width = cfg.data.length, sizes["L"], model.num_heads * model.head_dim
    pairs = {"encoder_only": S * S, "decoder_only": L * L, "text_to_text": S * S + L * L + L * S}[architecture]
    attention = 2 * 2 * pairs * width * layers * rows
    expected = 3 * (paired.flops(architecture, layers) * length * rows + attention)
    assert model_flops.of_step(resolved, batch) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("match", ["flops", "parameters"])
def test_the_depths_are_those_that_match_best(paired, match):
    cost = getattr(paired, match)
    wanted = cost("decoder_only", paired.DEPTH)
    for architecture in ARCHITECTURES:
        depth = paired.depth(architecture, match)
        off = [abs(cost(architecture, layers) / wanted - 1) for layers in (depth - 1, depth, depth + 1)]
        assert off[1] == min(off) and off[1] < 0.12
    assert paired.depth("decoder_only", match) == paired.DEPTH
    assert len(paired.table(match)) == 2 + len(ARCHITECTURES)


def test_every_phase_resolves_and_all_architectures_get_the_same_documents(paired):
    keys = ("data.mixture", "data.documents_per_step", "data.join_documents", "seed", "train.total_steps")
    for phase in paired.STEPS:
        cfgs = [config.load(f"{FILE}:{name},{phase}") for name in ARCHITECTURES if phase in paired.PHASES[name]]
        for cfg in cfgs:
            config.validate(cfg)
            assert experiment.resolve(cfg).model.d_model == paired.WIDTH
        assert len({tuple(cfg[key] for key in keys) for cfg in cfgs}) == 1
    for arguments, message in (
        ("encoder", "architecture 'encoder' of paired.py; allowed: encoder_only, decoder_only, text_to_text"),
        (
            "encoder_only,summarize",
            "phase 'summarize' of paired.py:encoder_only; allowed: pretrain, continue, classify",
        ),
        ("encoder_only,pretrain,match=size", "match='size' of paired.py; allowed: flops, parameters"),
    ):
        with pytest.raises(ConfigError, match=message):
            config.load(f"{FILE}:{arguments}")


def test_the_benchmark_s_table_has_a_mean_and_a_deviation_of_each_setting(tmp_path):
    spec = importlib.util.spec_from_file_location("benchmark", FILE.parents[1] / "benchmarks" / "paired.py")
    assert spec is not None and spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    results = benchmark.Results(tmp_path / "results.jsonl")
    for seed, accuracy in enumerate(np.array([50.0, 52.0, 54.0]).tolist()):
        row = {"config": "decoder_only,classify", "start": "scratch", "seed": seed, "accuracy": accuracy}
        results.add(row | {"macro_f1": 40.0})
    again = benchmark.Results(tmp_path / "results.jsonl")
    assert again.rows == results.rows and len(again.find(start="scratch")) == 3
    lines = benchmark.table(again)
    assert "| decoder_only | scratch | 52.0 ± 2.0 | 40.0 ± 0.0 | – | – |" in lines
    assert len(lines) == 2 + 3 * 4
