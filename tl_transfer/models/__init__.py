"""Everything that touches a language model: fetch, load, check, capture, attach, generate."""
