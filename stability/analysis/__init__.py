"""Statistics of a sweep, computed from its files alone: no training code, no accelerator."""

import pandas as pd

# The same behaviour with and without pyarrow, which also refuses names that are not valid UTF-8.
pd.options.mode.string_storage = 'python'
