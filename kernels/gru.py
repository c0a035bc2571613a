"""gru cell and sequence.   Formulas: csrc/contract/gru.h; the launches: _recurrent.py."""

from ._recurrent import implement

implement("gru", gates=3)
