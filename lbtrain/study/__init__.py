"""Compare the runs of a sweep from the summaries on disk; knows neither torch nor Lightning."""
