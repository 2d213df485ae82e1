"""What preparation and training must agree on: tokenizer, records, masks. Never imports JAX."""
