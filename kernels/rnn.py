"""rnn cell and sequence (Elman).   Formulas: csrc/contract/rnn.h; the launches: _recurrent.py."""

from ._recurrent import implement

implement("rnn", gates=1)
