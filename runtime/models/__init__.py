"""Model files: configuration, weights, tokenizer, chat template, and the one readable decoder."""
