"""A loaded model writes and scores as its parts do, whatever texts stand beside each other."""

import numpy as np
import pytest
from test_hub import tiny
from tiny_models import random_params

from t5x_lite.data.vocabularies import ByteVocabulary
from t5x_lite.errors import ConfigError
from t5x_lite.hub.model import Model

TEXTS = ["a", "a longer text", "b"]


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_what_it_writes_is_what_it_scores_and_neighbours_change_nothing(name):
    config = tiny(name, vocab_size=384, num_encoder_layers=1 if name == "t5" else 0, num_decoder_layers=1)
    model = Model(config, random_params(config), ByteVocabulary())
    written = model.generate(TEXTS, max_tokens=4)
    assert written == [model.generate([text], max_tokens=4)[0] for text in TEXTS]
    scores = model.score([(text, "xy") for text in TEXTS])
    np.testing.assert_allclose(scores, [model.score([(text, "xy")])[0] for text in TEXTS], rtol=1e-4)
    assert all(score < 0 for score in scores)
    with pytest.raises(ConfigError, match="classification"):
        model.classify(TEXTS)
    if name == "t5":
        vectors = model.embed(TEXTS)
        np.testing.assert_allclose(vectors, np.concatenate([model.embed([t]) for t in TEXTS]), atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    else:
        with pytest.raises(ConfigError, match="text_to_text or encoder_only"):
            model.embed(TEXTS)
