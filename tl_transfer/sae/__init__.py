"""Sparse autoencoders (SAEs): read, check, train and fold them."""
