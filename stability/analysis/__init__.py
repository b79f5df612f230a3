"""What a sweep's files say: numbers computed from results, without training code or accelerator."""

import pandas as pd

# The same with pyarrow and without; and pyarrow refuses what is no UTF-8, which names may hold.
pd.options.mode.string_storage = 'python'
