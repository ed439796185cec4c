"""How constants of few bits stand in files. One file for each form, what reads it beside what writes it.

`read_stored` is the first pass over a graph that was loaded: dequantizations of constants become values that are `stored`.
`write_stored` is the last before a file is written. Between them nobody sees a dequantization of a constant. For kernels that
have no use for the codes, `decode_stored` makes float constants of them.
"""

from qruntime.passes.stored.decoding import decode_bare_codes, decode_stored, decode_what_is_left
from qruntime.passes.stored.reading import read_stored
from qruntime.passes.stored.writing import portable, write_stored

__all__ = ["decode_bare_codes", "decode_stored", "decode_what_is_left", "portable", "read_stored", "write_stored"]
