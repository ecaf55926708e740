"""LoRA adapters as values, many adapters as one stack, and their attachment to a model."""
