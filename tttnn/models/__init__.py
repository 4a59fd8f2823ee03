"""Language models in Flax, held to Hugging Face's."""
