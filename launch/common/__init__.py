"""Code that several programs share.

Programs import from here before anything else. `python launch/NAME.py`, as an editor's run button
starts it, puts the folder of the programs first on sys.path, where launch/tokenize.py hides a
module of the standard library; so does `python -m launch.NAME` in that folder. This package takes
the folder off again.
"""

import os
import sys

_PROGRAMS = os.path.realpath(os.path.join(__file__, '../..'))

if sys.path[0] and os.path.realpath(sys.path[0]) == _PROGRAMS:
  if os.path.realpath(os.getcwd()) == _PROGRAMS:
    del sys.path[0]
  else:
    sys.path[0] = os.getcwd()  # as python -m does
