"""Fits and captures over corpora that outgrow one machine: fixed units of work, on Ray or not."""
