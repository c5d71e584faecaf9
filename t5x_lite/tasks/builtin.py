"""Registers the built-in tasks and mixtures. Each suite is one module."""

from t5x_lite.data import registry


def register() -> None:
    """Registers every built-in task and mixture. A name that is already registered keeps its definition, so a user's
    task replaces the built-in task of the same name, in whichever order the two are registered."""
    registered = dict(registry.REGISTRY)
    from t5x_lite.tasks import entities as entities
    from t5x_lite.tasks import glue as glue
    from t5x_lite.tasks import question_answering as question_answering
    from t5x_lite.tasks import quickstart as quickstart
    from t5x_lite.tasks import sentence_similarity as sentence_similarity
    from t5x_lite.tasks import summarization as summarization
    from t5x_lite.tasks import superglue as superglue
    from t5x_lite.tasks import translation as translation

    registry.REGISTRY.update(registered)
