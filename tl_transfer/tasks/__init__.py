"""Behaviours to transfer: one file a task, with data, prompts and scorers."""
