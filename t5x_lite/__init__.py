"""t5x_lite: train and evaluate BERT, GPT and T5 models on JAX in one loop."""

__version__ = "0.1.0"
