"""Reads and writes Hugging Face directories, which hold config.json, safetensors and tokenizer files."""
