"""Presets: the sizes of the published checkpoints, from shapes only; names of axes; errors."""

import dataclasses

import flax.linen as nn
import jax
import pytest
from tiny_models import FAMILIES

from t5x_lite import batch as batches
from t5x_lite.cluster.axes import AxisRules
from t5x_lite.errors import ConfigError
from t5x_lite.models import build
from t5x_lite.models.presets import PRESETS, preset

PARAMETERS = {
    "t5_small": 60_506_624,
    "t5_base": 222_903_552,
    "t5_large": 737_668_096,
    "t5_3b": 2_851_598_336,
    "t5_11b": 11_307_321_344,
    "t5_1_1_small": 76_961_152,
    "t5_1_1_base": 247_577_856,
    "t5_1_1_large": 783_150_080,
    "t5_1_1_xl": 2_849_757_184,
    "t5_1_1_xxl": 11_135_332_352,
    "mt5_small": 300_176_768,
    "mt5_base": 582_401_280,
    "mt5_large": 1_229_581_312,
    "mt5_xl": 3_742_619_648,
    "mt5_xxl": 12_921_057_280,
    "byt5_small": 299_637_760,
    "byt5_base": 581_653_248,
    "byt5_large": 1_228_183_552,
    "byt5_xl": 3_737_801_728,
    "byt5_xxl": 12_906_899_328,
    "umt5_small": 306_601_984,
    "umt5_base": 592_043_520,
    "umt5_xl": 3_768_356_864,
    "umt5_xxl": 12_972_531_712,
    "roberta_base": 124_645_632 - (768 + 1) * 768,  # published with a pooler
    "roberta_large": 355_359_744 - (1024 + 1) * 1024,
    "xlm_roberta_base": 277_453_056,
    "xlm_roberta_large": 558_840_832,
    "camembert_base": 110_031_360,
    "camembert_large": 335_611_904,
    "distilbert_base": 66_362_880,
    "albert_base": 11_683_584,
    "albert_large": 17_683_968,
    "albert_xlarge": 58_724_864,
    "albert_xxlarge": 222_595_584,
    "electra_small_discriminator": 13_549_057,  # with the head that detects replaced tokens
    "electra_small_generator": 13_483_008,
    "electra_base_discriminator": 109_483_009,
    "electra_base_generator": 33_511_168,
    "electra_large_discriminator": 335_142_913,
    "electra_large_generator": 50_999_552,
    "deberta_v3_xsmall": 70_682_112,
    "deberta_v3_small": 141_304_320,
    "deberta_v3_base": 183_831_552,
    "deberta_v3_large": 434_012_160,
    "mdeberta_v3_base": 278_218_752,
    "gpt_neo_125m": 125_198_592,
    "gpt_neo_1_3b": 1_315_575_808,
    "gpt_neo_2_7b": 2_651_307_520,
    "gpt_j_6b": 6_050_882_784,
    "llama_2_7b": 6_738_415_616,
    "llama_3_1_8b": 8_030_261_248,
    "llama_3_2_1b": 1_235_814_400,
    "modernbert_base": 149_655_232,  # this and the following with the head of masked tokens, or the language model's
    "modernbert_large": 395_881_664,
    "ettin_decoder_17m": 16_913_600,
    "ettin_decoder_1b": 1_031_314_112,
    "mistral_7b": 7_241_732_096,
    "qwen_2_5_0_5b": 494_032_768,
    "qwen_2_5_1_5b": 1_543_714_304,
    "qwen_2_5_7b": 7_615_616_512,
    "qwen_3_0_6b": 596_049_920,
    "qwen_3_1_7b": 1_720_574_976,
    "qwen_3_4b": 4_022_468_096,
    "qwen_3_8b": 8_190_735_360,
    "olmo_2_1b": 1_484_916_736,
    "olmo_2_7b": 7_298_617_344,
    "smollm_2_135m": 134_515_008,
    "smollm_2_360m": 361_821_120,
    "smollm_2_1_7b": 1_711_376_384,
    "smollm_3_3b": 3_075_098_624,
    "gemma_2_2b": 2_614_341_888,
    "gemma_2_9b": 9_241_705_984,
    "gemma_3_270m": 268_098_176,
    "gemma_3_1b": 999_885_952,
    "gemma_3_4b": 3_880_099_328,
    "t5gemma_small": 312_517_632,
    "t5gemma_base": 591_490_560,
    "t5gemma_large": 1_241_761_792,
    "t5gemma_xl": 3_766_980_608,
    "t5gemma_2b_2b": 5_596_853_760,
    "t5gemma_9b_9b": 20_333_401_088,
    "t5gemma2_270m_270m": 368_424_192,  # without the vision tower, and without the vector of the token behind images
    "t5gemma2_1b_1b": 1_697_782_016,
    "bart_base": 139_420_416 + 50265,  # with the logits' bias, which transformers keeps as a buffer
    "bart_large": 406_291_456 + 50265,
    "bart_large_mnli": 407_344_131,
    "pegasus_large": 568_699_904 + 96103,  # without the sinusoids, which transformers keeps as parameters
    "opus_mt_en_de": 73_886_208 + 58101,
    "mbart_large_cc25": 610_851_840 + 250027,
    "mbart_large_50": 610_879_488 + 250054,
    "m2m_100_418m": 483_905_536,
    "m2m_100_1_2b": 1_239_470_080,
    "nllb_600m": 615_073_792,
    "nllb_1_3b": 1_370_638_336,
    "nllb_3_3b": 3_344_863_232,
    "bert_base": 109_482_240,  # with the pooler, without the heads
    "bert_large": 335_141_888,
    "gpt2": 124_439_808,
    "gpt2_medium": 354_823_168,
    "gpt2_large": 774_030_080,
    "gpt2_xl": 1_557_611_200,
}
AXES = [field.name for field in dataclasses.fields(AxisRules)]


def abstract_params(config):
    sizes = {"B": 1, "S": 4, "L": 4, "P": 2, "E": 1}
    batch = batches.zeros(config.architecture, sizes, config.heads)
    return jax.eval_shape(build(config).init, jax.random.key(0), batch)["params"]


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts(name):
    # scanned: the same parameters as unrolled (test_models_laws), traced in a fraction of the time
    scans = PRESETS[name].norm_position != "pre_but_first"
    params = abstract_params(dataclasses.replace(PRESETS[name], scan_layers=scans))
    without_heads = ("mlm", "nsp") if scans else ()
    leaves = [leaf for part in params if part not in without_heads for leaf in jax.tree.leaves(params[part])]
    assert sum(leaf.size for leaf in leaves) == PARAMETERS[name]


def test_transformer_sizes_are_those_of_the_paper():
    # Table 3: 65 and 213 million, with a vocabulary of about 37000
    for name, millions in {"transformer_base": 65, "transformer_big": 213}.items():
        params = abstract_params(dataclasses.replace(PRESETS[name], scan_layers=True))
        assert sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6 == pytest.approx(millions, rel=0.04)


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_axis_has_a_name_and_none_stands_twice(family, scan_layers):
    heads = ("mlm", "nsp", "classification", "regression") if family == "bert" else ()
    config = dataclasses.replace(FAMILIES[family], scan_layers=scan_layers, heads=heads, num_classes=3)
    boxes = jax.tree.leaves_with_path(abstract_params(config), is_leaf=lambda x: isinstance(x, nn.Partitioned))
    for path, box in boxes:
        assert isinstance(box, nn.Partitioned), path
        assert len(box.names) == box.value.ndim, path
        assert set(box.names) <= set(AXES) and len(set(box.names)) == len(box.names), (path, box.names)
        assert ("layers" in box.names) == (scan_layers and "'layers'" in jax.tree_util.keystr(path)), path


def test_the_tree_reads_well():
    unrolled = abstract_params(FAMILIES["t5_1_1"])
    assert unrolled["encoder"]["layers_0"]["self_attention"]["query"]["kernel"].value.shape == (16, 2, 8)
    assert unrolled["decoder"]["layers_1"]["cross_attention"]["out"]["kernel"].value.shape == (2, 8, 16)
    scanned = abstract_params(dataclasses.replace(FAMILIES["t5_1_1"], scan_layers=True))
    assert scanned["encoder"]["layers"]["mlp"]["wi_0"]["kernel"].value.shape == (2, 16, 24)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid(name):
    assert preset(name) == PRESETS[name].validate()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: preset("t5_smal"), "did you mean 't5_small'"),
        (lambda: preset("t5_small", d_modle=4), "did you mean 'd_model'"),
        (lambda: preset("t5_small", activation="gelu"), "or 'gelu_tanh'"),
        (lambda: preset("t5_small", relative_buckets=30), "multiple of 4"),
        (lambda: preset("bert_base", max_positions=0), "at least 1 row"),
        (lambda: preset("transformer_base", d_model=15), "even"),
        (lambda: preset("gemma_2_2b", share_embeddings=False), "must be True for decoder_only"),
    ],
)
def test_errors_say_what_is_meant(call, message):
    with pytest.raises(ConfigError, match=message):
        call()
