"""Each task of `pipeline` on tiny models equals transformers' pipeline, or its model and tokenizer used by hand."""

import dataclasses
import json
import re
import string
import warnings
from pathlib import Path

import numpy as np
import pytest
from test_hub import tiny
from tiny_models import random_params

import t5x_lite
from t5x_lite.data.registry import Feature
from t5x_lite.data.vocabularies import ByteVocabulary
from t5x_lite.errors import ConfigError, DataError
from t5x_lite.hub.interchange import export_model, import_directory
from t5x_lite.hub.model import Model
from t5x_lite.hub.t5gemma2_families import NO_VISION

torch = pytest.importorskip("torch", reason="parity needs the extra `parity`")
transformers = pytest.importorskip("transformers", reason="parity needs the extra `parity`")

WORDS = ["the", "cat", "dog", "sat", "ran", "is", "about", "this", "example", ".", "##s", "urgent", "phone", "mat"]
TEXTS = ["the cat sat .", "this dog ran about the mats", "phone", "the the the cat is urgent ."]
SIZES = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 64, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip


def saved(directory, model, tokenizer) -> str:
    """Saves a model with random parameters, none tiny, and its tokenizer, and returns the directory."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.4)
    model.eval().save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


def bert(directory, kind: str, **more) -> str:
    letters = [*string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase)]
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *letters]
    tokenizer = transformers.BertTokenizer(vocab={word: i for i, word in enumerate(vocab)})
    config = transformers.BertConfig(vocab_size=len(vocab), **SIZES, **more)
    return saved(directory, getattr(transformers, f"BertFor{kind}")(config), tokenizer)


def words(directory) -> "transformers.PreTrainedTokenizerFast":
    """Returns a tokenizer of whole words that adds the end token to each text."""
    import tokenizers

    vocab = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", "summarize:", "to", "German:", *WORDS])}
    vocab |= {f"w{i}": i for i in range(len(vocab), 48)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", vocab["</s>"])]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def assert_same(found, expected) -> None:
    """Asserts equality up to rounding; dictionaries may have more keys than expected."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, list):
        assert isinstance(found, list) and len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, float | np.floating):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
    else:
        assert found == expected


def test_classes_and_entailment_are_those_of_transformers(tmp_path):
    labels = {0: "contradiction", 1: "neutral", 2: "entailment"}
    path = bert(tmp_path, "SequenceClassification", id2label=labels, label2id={v: k for k, v in labels.items()})
    ours = t5x_lite.pipeline("sentiment-analysis", model=path)
    theirs = transformers.pipeline("text-classification", model=path)
    pair = {"text": TEXTS[0], "text_pair": TEXTS[2]}
    for inputs, options in (
        (TEXTS, {}), (TEXTS[0], {}), ([TEXTS[1]], {}), (pair, {}), ([pair, pair], {"top_k": None}),
        (TEXTS[0], {"top_k": 2}), (TEXTS, {"top_k": 1}), (TEXTS, {"function_to_apply": "sigmoid", "top_k": None}),
    ):  # fmt: skip
        assert_same(ours(inputs, **options), theirs(inputs, **options))
    few_ours, few_theirs = (
        make("text-classification", model=path, top_k=2) for make in (t5x_lite.pipeline, transformers.pipeline)
    )
    for inputs, options in ((TEXTS[0], {}), (TEXTS, {}), (pair, {}), (TEXTS[0], {"top_k": None})):
        assert_same(few_ours(inputs, **options), few_theirs(inputs, **options))
    assert_same(ours([TEXTS[0], pair], batch_size=1), [ours(TEXTS[0])[0], ours(pair)])

    ours = t5x_lite.pipeline("zero-shot-classification", model=ours.model, candidate_labels=["urgent", "phone", "mat"])
    theirs = transformers.pipeline("zero-shot-classification", model=path, candidate_labels="urgent, phone, mat")
    for inputs, options in (
        (TEXTS, {}), (TEXTS[0], {"multi_label": True}), (TEXTS[1], {"candidate_labels": ["cat"]}),
        (TEXTS[:2], {"hypothesis_template": "the {} ran"}),
    ):  # fmt: skip
        assert_same(ours(inputs, **options), theirs(inputs, **options))
    with pytest.raises(ConfigError, match=r"no \{\} for the label"):
        ours(TEXTS, hypothesis_template="the")


@pytest.mark.parametrize("problem", [None, "regression"])
def test_one_output_is_a_class_or_a_number_as_config_json_has_it(problem, tmp_path):
    names = {"id2label": {0: "toxic"}, "label2id": {"toxic": 0}, "problem_type": problem}
    path = bert(tmp_path, "SequenceClassification", **names)
    ours, theirs = (make("text-classification", model=path) for make in (t5x_lite.pipeline, transformers.pipeline))
    found, expected = ours(TEXTS), theirs(TEXTS)
    assert [one["score"] for one in found] == pytest.approx([one["score"] for one in expected], rel=1e-4, abs=1e-5)
    assert {one["label"] for one in found} == {"LABEL_0" if problem else "toxic"}
    export_model(ours.model, tmp_path / "again")
    assert t5x_lite.pipeline("text-classification", model=tmp_path / "again")(TEXTS) == found
    with pytest.raises(DataError, match=r"'sentence': 'x'.* is not text; pass a string"):
        ours({"sentence": "x"})


def test_masks_and_features_are_those_of_transformers(tmp_path):
    path = bert(tmp_path, "MaskedLM")
    ours, theirs = (make("fill-mask", model=path) for make in (t5x_lite.pipeline, transformers.pipeline))
    masked = ["the [MASK] sat .", "[MASK] dogs ran", "the [MASK] is [MASK] the mat"]
    for inputs, options in ((masked, {}), (masked[0], {"top_k": 2}), (masked[1], {"targets": ["cat", "mats"]})):
        assert_same(ours(inputs, **options), theirs(inputs, **options))
    with pytest.raises(DataError, match=r"has no \[MASK\]"):
        ours("the cat")
    features = t5x_lite.pipeline("feature-extraction", model=ours.model)
    expected = transformers.pipeline("feature-extraction", model=path)(TEXTS)
    for found, wanted in zip(features(TEXTS, return_tensors=True), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    assert np.shape(features("the cat")) == (1, 4, 16)


def test_tags_are_those_of_transformers(tmp_path):
    tags = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    names = {"id2label": dict(enumerate(tags)), "label2id": {tag: i for i, tag in enumerate(tags)}}
    path = bert(tmp_path, "TokenClassification", **names)
    ours, theirs = (make("ner", model=path) for make in (t5x_lite.pipeline, transformers.pipeline))
    texts = [*TEXTS, "Matt ran  about ☃ the catdogs.", "a"]
    for inputs, options in (
        (texts, {}), (texts[0], {"ignore_labels": []}), (texts, {"aggregation_strategy": "simple"}),
        *((texts, {"aggregation_strategy": name, "ignore_labels": ["PER"]}) for name in ("first", "average", "max")),
    ):  # fmt: skip
        assert_same(ours(inputs, **options), theirs(inputs, **options))


def test_answers_are_the_most_probable_parts_of_the_context(tmp_path):
    path = bert(tmp_path, "QuestionAnswering")
    ours = t5x_lite.pipeline("question-answering", model=path)
    model, tokenizer = (
        make.from_pretrained(path) for make in (transformers.AutoModelForQuestionAnswering, transformers.AutoTokenizer)
    )

    def chances(encoded, window: int, longest: int) -> np.ndarray:
        """Returns the probability of each first and last token of an answer, [tokens, tokens]."""
        read = ("input_ids", "token_type_ids", "attention_mask")
        with torch.no_grad():
            out = model(**{name: torch.tensor([encoded[name][window]]) for name in read})
        inside = np.array([part == 1 for part in encoded.sequence_ids(window)])
        allowed = inside | (np.arange(len(inside)) == 0)  # [CLS] means no answer
        start, end = (np.where(allowed, x[0].double().numpy(), -np.inf) for x in (out.start_logits, out.end_logits))
        start, end = (np.exp(x - np.logaddexp.reduce(x)) for x in (start, end))
        return np.tril(np.triu(np.outer(start * inside, end * inside)), longest - 1)

    for question, context in (("is this urgent", TEXTS[1]), ("the cat", TEXTS[3] + " " + TEXTS[0])):
        encoded = tokenizer([question], [context], return_offsets_mapping=True)
        scores, places = chances(encoded, 0, longest=4), np.array(encoded["offset_mapping"][0])
        first, last = np.unravel_index(scores.argmax(), scores.shape)
        found = ours(question=question, context=context, max_answer_len=4)
        assert found["score"] == pytest.approx(scores.max(), rel=1e-4)
        assert found["start"] <= places[first, 0] and found["end"] >= places[last, 1]  # whole words
        assert found["answer"] == context[found["start"] : found["end"]]
        few = ours({"question": question, "context": context}, top_k=3, handle_impossible_answer=True)
        assert [one["score"] for one in few] == sorted((one["score"] for one in few), reverse=True) and len(few) == 3
    question, context = "the cat", " ".join(TEXTS * 20)
    cut = {"truncation": "only_second", "max_length": 32, "stride": 9, "return_overflowing_tokens": True}
    encoded = tokenizer([question], [context], **cut)
    best = max(chances(encoded, window, longest=15).max() for window in range(len(encoded["input_ids"])))
    found = ours(question=[question, question], context=context, max_seq_len=32, doc_stride=9)
    assert found[0] == found[1] and found[0]["score"] == pytest.approx(best, rel=1e-4)
    assert found[0]["answer"] == context[found[0]["start"] : found[0]["end"]]
    with pytest.raises(ConfigError, match="cannot share 40"):
        ours(question=question, context=context, max_seq_len=32, doc_stride=40)
    asked = " ".join(["cat"] * 15)
    assert ours(question=asked, context="the mat", max_seq_len=32, doc_stride=40)["answer"]  # in one window
    assert ours(question=asked, context=context, max_seq_len=32)["answer"]
    with pytest.raises(ConfigError, match="cannot share -1"):
        ours(question=question, context=context, max_seq_len=32, doc_stride=-1)
    with pytest.raises(ConfigError, match="2 questions and 3 contexts"):
        ours(question=TEXTS[:2], context=TEXTS[:3])


def test_tokens_of_bytes_have_their_places():
    config = tiny("bert", vocab_size=384, max_positions=64, heads=("token_classification", "span"), num_classes=3)
    params = random_params(config)
    model = Model(config, params, ByteVocabulary(), ("O", "B-PER", "I-PER"))
    tag = t5x_lite.pipeline("ner", model=model, ignore_labels=[])
    assert [(one["start"], one["end"]) for one in tag("ab  c.")] == [(n, n + 1) for n in range(6)]
    by_word = tag(["ab  c.", "", "ü"], aggregation_strategy="first")
    assert (
        by_word[1] == [] and by_word[2][0]["word"] == "ü" and (by_word[0][0]["start"], by_word[0][-1]["end"]) == (0, 6)
    )
    answer = t5x_lite.pipeline("question-answering", model=model)
    for context in ("a cat sat. " * 20, "x"):
        found = answer(question="who", context=context, doc_stride=16)
        assert found["answer"] == context[found["start"] : found["end"]] and 0 < found["score"] <= 1


def test_language_models_go_on_as_in_transformers(tmp_path):
    tokenizer = transformers.GPT2Tokenizer(
        vocab={c: i for i, c in enumerate([*byte_letters(), "<|endoftext|>"])}, merges=[]
    )
    config = transformers.GPT2Config(
        vocab_size=257, n_positions=64, n_embd=16, n_layer=2, n_head=2, bos_token_id=256, eos_token_id=256
    )
    path = saved(tmp_path, transformers.GPT2LMHeadModel(config), tokenizer)
    ours, theirs = (make("text-generation", model=path) for make in (t5x_lite.pipeline, transformers.pipeline))
    greedy = {"do_sample": False, "max_new_tokens": 6}
    for inputs, options in ((TEXTS[0], {"return_full_text": False}), (TEXTS, {}), (TEXTS, {"num_beams": 2})):
        assert_same(ours(inputs, **greedy, **options), theirs(inputs, **greedy, **options))
    long = {
        "do_sample": False,
        "max_length": 40,
        "min_length": 30,
    }  # include the text, so each text's room differs
    options = {**long, "num_beams": 3, "early_stopping": "never", "no_repeat_ngram_size": 2}
    assert_same(ours(TEXTS, **options), theirs(TEXTS, **options))
    assert_same(ours(TEXTS, **long), theirs(TEXTS, **long))
    assert_same(ours(TEXTS, do_sample=False), theirs(TEXTS, do_sample=False, max_length=65))  # up to all positions
    searching = t5x_lite.pipeline("text-generation", model=path, do_sample=False)
    assert_same(searching(TEXTS, num_beams=2, max_new_tokens=6), theirs(TEXTS, **greedy, num_beams=2))
    with pytest.raises(ConfigError, match="max_new_tokens=60 after 27 tokens needs more than"):
        ours(TEXTS, do_sample=False, max_new_tokens=60)
    # A model trained on a task reads an end token before it continues, and may use all other positions.
    trained = dataclasses.replace(ours.model, features={"inputs": Feature(), "targets": Feature()})
    assert t5x_lite.pipeline("text-generation", model=trained, do_sample=False)(TEXTS[0])[0]["generated_text"]
    samples = ours(TEXTS, max_new_tokens=6, num_return_sequences=3, seed=1)
    assert [len(texts) for texts in samples] == [3] * len(TEXTS)
    assert samples == ours(TEXTS, max_new_tokens=6, num_return_sequences=3, seed=1)
    same = ours([TEXTS[0]] * 4, max_new_tokens=6)
    assert len({text[0]["generated_text"] for text in same}) > 1
    assert same == ours([TEXTS[0]] * 4, max_new_tokens=6, batch_size=1)  # whatever shares its batch
    assert ours([TEXTS[0], "", TEXTS[1]], **greedy)[::2] == ours(TEXTS[:2], **greedy)
    with pytest.raises(ConfigError, match="num_beams=4 with do_sample=True"):
        ours(TEXTS, num_beams=4)
    assert np.isfinite(ours.model.score([("ab", "x" * 60)])).all()
    with pytest.raises(DataError, match="do not fit in rows of 64 tokens"):
        ours.model.score([("ab", "x"), ("ab", "x" * 80)])
    assert all(
        one["generated_text"].startswith(text) for text, texts in zip(TEXTS, samples, strict=True) for one in texts
    )
    with pytest.raises(ConfigError, match="text_to_text"):
        t5x_lite.pipeline("summarization", model=ours.model)(TEXTS)


def byte_letters() -> list[str]:
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def test_text_to_text_models_write_what_transformers_generates(tmp_path):
    tokenizer = words(tmp_path)
    prefixes = {"summarization": "summarize: ", "translation_en_to_de": "to German: "}
    config = transformers.T5Config(
        vocab_size=48, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0,
        task_specific_params={task: {"prefix": prefix} for task, prefix in prefixes.items()},
    )  # fmt: skip
    reference = transformers.T5ForConditionalGeneration(config)
    path = saved(tmp_path, reference, tokenizer)
    model = t5x_lite.load(path)

    def expected(prefix: str, **options) -> list[str]:
        found = []
        for text in TEXTS:
            ids = tokenizer(prefix + text, return_tensors="pt")
            out = reference.generate(**ids, max_new_tokens=6, do_sample=False, **options)
            found += tokenizer.batch_decode(out, skip_special_tokens=True)
        return found

    for task, key in (
        ("text2text-generation", "generated_text"),
        ("summarization", "summary_text"),
        ("translation_en_to_de", "translation_text"),
    ):
        write = t5x_lite.pipeline(task, model=path, max_new_tokens=6)
        assert write(TEXTS) == [{key: text} for text in expected(prefixes.get(task, ""), num_beams=4)]
        assert t5x_lite.pipeline(task, model=model).options == ({"prefix": prefixes[task]} if task in prefixes else {})
    write = t5x_lite.pipeline("text2text-generation", model=model, max_new_tokens=6)
    assert write(TEXTS[0], num_beams=1) == [{"generated_text": expected("")[0]}]
    both = expected("", num_beams=4, num_return_sequences=2)
    found = write(TEXTS, num_return_sequences=2)
    assert [one["generated_text"] for texts in found for one in texts] == both

    # Labels, by the probability of generating them.
    labels = ("urgent", "phone mat")
    logprobs = np.array(model.score([(text, label) for text in TEXTS for label in labels])).reshape(-1, 2)
    chances = np.exp(logprobs) / np.exp(logprobs).sum(axis=1, keepdims=True)
    zero_shot = t5x_lite.pipeline("zero-shot-classification", model=model, candidate_labels=labels)
    classify = t5x_lite.pipeline("text-classification", model=dataclasses.replace(model, labels=labels), top_k=None)
    for found, classes, chance in zip(zero_shot(TEXTS), classify(TEXTS), chances, strict=True):
        assert_same(dict(zip(found["labels"], found["scores"], strict=True)), dict(zip(labels, chance, strict=True)))
        assert_same({c["label"]: c["score"] for c in classes}, dict(zip(labels, map(float, chance), strict=True)))
    with pytest.raises(ConfigError, match="reads one text"):
        classify({"text": TEXTS[0], "text_pair": TEXTS[1]})
    with pytest.raises(ConfigError, match="did you mean 'summarization'"):
        t5x_lite.pipeline("summarisation", model=model)
    with pytest.raises(ConfigError, match="did you mean"):
        write(TEXTS, max_new_token=3)


@pytest.mark.parametrize("version", [1, 2])
def test_t5gemma_reads_what_its_tokenizer_makes(version, tmp_path):
    """BOS before the inputs, no EOS behind them."""
    import tokenizers

    vocab = {word: i for i, word in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", *WORDS])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.post_processor = tokenizers.processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=made, **special)
    part = {
        "vocab_size": len(vocab), "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 8,
        "num_attention_heads": 2, "num_key_value_heads": 1, "sliding_window": 3, "query_pre_attn_scalar": 8,
    }  # fmt: skip
    torch.manual_seed(0)
    if version == 1:
        reference = transformers.T5GemmaForConditionalGeneration(transformers.T5GemmaConfig(encoder=part, decoder=part))
    else:
        encoder = {"text_config": part, "vision_config": NO_VISION, "eoi_token_index": vocab[WORDS[-1]]}
        config = transformers.T5Gemma2Config(encoder=encoder, decoder=part)
        reference = transformers.T5Gemma2ForConditionalGeneration(config).eval()
    model = t5x_lite.load(saved(tmp_path, reference, tokenizer))
    write = t5x_lite.pipeline("text2text-generation", model=model, max_new_tokens=6, num_beams=1)
    for text in TEXTS:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        out = reference.generate(ids, max_new_tokens=6, do_sample=False)
        assert write(text) == [{"generated_text": tokenizer.decode(out[0], skip_special_tokens=True)}]
        targets = torch.tensor([[*tokenizer(WORDS[1], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]])
        logits = reference(input_ids=ids, labels=targets).logits.log_softmax(-1)
        expected = logits[0].gather(1, targets.T).sum().item()
        assert model.score([(text, WORDS[1])])[0] == pytest.approx(expected, rel=1e-4, abs=1e-4)
        (states,) = reference.model.encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        np.testing.assert_allclose(
            model.embed([text], normalize=False)[0], states.mean(dim=0).detach(), rtol=1e-5, atol=1e-5
        )
    if version == 2:
        with pytest.raises(DataError, match=r"token \d+ \(eoi_token_index of config.json\), which belongs to an image"):
            model.generate([WORDS[-1]])
        with pytest.raises(DataError, match="belongs to an image"):
            model.score([(WORDS[0], WORDS[-1])])


def test_models_write_as_their_directory_says(tmp_path):
    """Uses generation_config.json and task_specific_params as transformers 4 did for these tasks."""
    tokenizer = words(tmp_path)
    of_task = {"prefix": "summarize: ", "max_length": 9, "num_beams": 3}
    config = transformers.T5Config(
        vocab_size=48, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0,
        task_specific_params={"summarization": of_task},
    )  # fmt: skip
    torch.manual_seed(1)
    reference = transformers.T5ForConditionalGeneration(config)
    reference.generation_config.update(
        num_beams=2, no_repeat_ngram_size=2, min_length=4, max_length=12, length_penalty=2.0, early_stopping=True,
        forced_bos_token_id=7, forced_eos_token_id=1,
    )  # fmt: skip
    path = saved(tmp_path, reference, tokenizer)
    imported = tmp_path / "imported"
    import_directory(Path(path), imported)

    def expected(prefix: str = "", **options) -> list[str]:
        found = [reference.generate(**tokenizer(prefix + t, return_tensors="pt"), **options) for t in TEXTS]
        return [tokenizer.decode(ids[0], skip_special_tokens=True) for ids in found]

    wanted = [
        (options, expected(**options))
        for options in (
            {}, {"num_beams": 1}, {"max_length": 7}, {"max_new_tokens": 11, "min_length": 8}, {"min_new_tokens": 6},
            {"no_repeat_ngram_size": 0, "forced_bos_token_id": 9},
        )
    ]  # fmt: skip
    summaries = expected(**of_task)
    for model in (path, imported):
        write = t5x_lite.pipeline("text2text-generation", model=model)
        for options, texts in wanted:
            assert [one["generated_text"] for one in write(TEXTS, **options)] == texts, options
        summarize = t5x_lite.pipeline("summarization", model=model)
        assert [one["summary_text"] for one in summarize(TEXTS)] == summaries
    assert len(write(TEXTS, do_sample=True, num_return_sequences=2)[0]) == 2  # do_sample overrides two stored beams
    with pytest.warns(UserWarning, match="minimum is 20 new tokens, the maximum 11"):
        write(TEXTS, min_new_tokens=20)
    with pytest.raises(ConfigError, match="max_length=1 leaves no room"):
        write(TEXTS, max_length=1)
    said = json.loads((Path(path) / "generation_config.json").read_text())
    also = {"seed": 3, "min_p": 0.1, "eos_token_id": [1, 41], "forced_bos_token_id": [7], "num_beams": "four"}
    (Path(path) / "generation_config.json").write_text(json.dumps(said | also))
    with pytest.warns(UserWarning, match=r"unsupported generation options: min_p=0\.1$"):
        write = t5x_lite.pipeline("text2text-generation", model=path)
    assert "seed" not in write.options  # that seed may belong to a training
    with pytest.raises(ConfigError, match=r"num_beams='four', passed or from .* must be int"):
        write(TEXTS)
    early, late = ({"num_beams": 1, "min_length": 0, "eos_token_id": ids} for ids in ([1, 41], [1]))
    for options in ({"num_beams": 1, "min_length": 0}, early):
        found = [one["generated_text"] for one in write(TEXTS, **options)]
        assert found == [text.removesuffix(" w41") for text in expected(**early)] != expected(**late)
    (Path(path) / "generation_config.json").write_text(json.dumps(said | {"eos_token_id": [41, 5]}))
    of_another_vocabulary = t5x_lite.pipeline("text2text-generation", model=path)
    assert [one["generated_text"] for one in of_another_vocabulary(TEXTS)] == expected()
    for wrong, message in (
        ({"max_new_tokens": 2.5}, "must be int | None"), ({"min_length": None}, "must be int"),
        ({"forced_eos_token_id": 48}, "ids from 0 to 47"), ({"eos_token_id": [1, 48]}, "ids from 0 to 47"),
        ({"eos_token_id": ["5"]}, "must be token ids"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            write(TEXTS, **early | wrong)


def test_what_no_pipeline_can_read_is_one_clear_error(tmp_path):
    encoder = t5x_lite.load(bert(tmp_path, "MaskedLM"))
    mask = encoder.vocabulary.show([encoder.vocabulary.mask_id])
    config = tiny("t5", vocab_size=384, num_encoder_layers=1, num_decoder_layers=1)
    writer = Model(config, random_params(config), ByteVocabulary())
    fill, features = (t5x_lite.pipeline(task, model=encoder) for task in ("fill-mask", "feature-extraction"))
    write, zero_shot, classify = (
        t5x_lite.pipeline(task, model=writer)
        for task in ("text2text-generation", "zero-shot-classification", "text-classification")
    )
    long = "cat " * encoder.config.max_positions
    for call, message in (
        (lambda: features([5]), "'5' is of type int, not text"),
        (lambda: features([None]), "'None' is of type NoneType, not text"),
        (lambda: features([["a", "b"]]), "is of type list, not text"),
        (lambda: features({"text": "a"}), "is of type dict, not text"),
        (lambda: features(5), "5 is not text"), (lambda: write([3.5]), "'3.5' is of type float, not text"),
        (lambda: features(["a"], batch_size=-1), "batch_size=-1: must be"),
        (lambda: features(["a"], batch_size="8"), "batch_size='8': must be"),
        (lambda: fill(mask, top_k=0), "top_k=0: must be"), (lambda: fill(long + mask), "does not read every"),
        (lambda: fill(mask + long + mask), "does not read every"),
        (lambda: t5x_lite.pipeline("fill-mask", model=encoder, top_l=1), "did you mean 'top_k'"),
        (lambda: zero_shot("a", candidate_labels=["x"], hypothesis_template="{name}"), "has no {} for the label"),
        (lambda: zero_shot([7], candidate_labels=["x"]), "'7' is of type int, not text"),
        (lambda: classify("a"), "on several such tasks. Use zero-shot-classification"),
        (lambda: classify({"text": "a", "textpair": "b"}), "did you mean 'text_pair'"),
        (lambda: write("a", do_sample=True, temperature=0.0), "temperature=0.0 with do_sample"),
        (lambda: writer.score(["ab"]), "'ab' is not a pair"),
        (lambda: writer.score([("a", 1)]), "'1' is of type int, not text"),
        (lambda: encoder.tokenize(["a"], ["b", "c"]), "1 texts and 2 pairs: the numbers must be equal"),
    ):  # fmt: skip
        with pytest.raises((ConfigError, DataError), match=re.escape(message)), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about cut texts
            call()
