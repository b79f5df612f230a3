"""Statistics of a sweep, computed from its files alone, without training code or accelerator."""

import pandas as pd

# Strings behave the same with and without pyarrow, which rejects those that are not valid UTF-8.
pd.options.mode.string_storage = 'python'
