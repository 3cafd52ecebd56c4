"""Public data sets -> parquet files that verl trains on: what `sgpo data` does."""
