"""Compare the runs of a sweep from the summaries on disk; knows neither torch nor Lightning.

From the bottom up: `methods` (SAM and its relatives), `axes`, `folders`, `load` (run folders to rows), `settings`,
`conditions`, `families` (who shares what), `compare` (pairs), `findings` (sentences), `series` and `figures`, `pages`,
`report`, `terminal`.
"""
