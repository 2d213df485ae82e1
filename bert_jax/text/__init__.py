"""What preparation and training must agree on: tokenizer, records, manifest, corruption. Never imports JAX."""
