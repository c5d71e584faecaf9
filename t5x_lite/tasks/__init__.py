"""Built-in tasks; importing this registers them."""

from t5x_lite.tasks import entities as entities
from t5x_lite.tasks import glue as glue
from t5x_lite.tasks import question_answering as question_answering
from t5x_lite.tasks import quickstart as quickstart
from t5x_lite.tasks import summarization as summarization
from t5x_lite.tasks import superglue as superglue
from t5x_lite.tasks import translation as translation
