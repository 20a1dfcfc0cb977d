"""Texts as rows of token ids: the files they lie in, tokenizers, and sources of sequences."""
