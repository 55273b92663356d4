"""The axis vocabulary of every shape annotation in the package.

========== =====================================================================
axis       meaning
========== =====================================================================
batch      rows of a batch (prompts)
pos        token positions in a padded batch, left to right
d_model    width of the residual stream
d_source   width of the source space
d_target   width of the target space
d_sae      features of a sparse autoencoder
row        paired activation vectors (one pair per row)
token      tokens of one text, no padding
pair       aligned (source token, target token) pairs of one text
d_vocab    vocabulary
prompt     evaluation prompts
arm        directions evaluated side by side
k          components of a decomposition
========== =====================================================================

Annotations are checked at run time in the tests only (``pytest --jaxtyping-packages``).
"""
