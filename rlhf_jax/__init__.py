"""RLHF for ChatGLM models in JAX, after the ChatGLM-RLHF paper (arXiv 2404.00934)."""

__version__ = "0.1.0"
