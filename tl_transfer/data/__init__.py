"""Texts and tokens: corpora, prompts, and the alignment of two tokenizations."""
