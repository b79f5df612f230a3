"""Worker processes that train runs, and how their launcher sees them."""
