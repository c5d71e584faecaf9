"""Interchange with Hugging Face: directories of config.json, safetensors and tokenizer files, in and out."""
