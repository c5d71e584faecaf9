"""Built-in tasks; importing this registers them."""

from t5x_lite.tasks import quickstart as quickstart
