"""A finished evaluation as HTML, tables and JSON."""
