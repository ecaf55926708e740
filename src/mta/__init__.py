"""Personalized language models: one frozen base, a bank of LoRA adapters, a tiny adapter per person."""
