"""`bert-data`: raw text to a tokenizer and to shards of pretraining records. Never imports JAX."""
