"""Reads and writes Hugging Face directories: config.json, safetensors and tokenizer files."""
