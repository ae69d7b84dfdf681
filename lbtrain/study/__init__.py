"""Compare the runs of a sweep from the summaries on disk; knows neither torch nor Lightning.

From the bottom up: `methods` (SAM and its relatives), `axes`, `folders`, `load` (run folders to rows; `histories` what
they logged), `settings`, `conditions`, `families` (who shares what), `compare` (pairs), `baseline` and `paired`
(differences), `correlation`, `diagnoses` and `local_optima` (what is wrong with runs), `findings` and `more_findings`
(sentences), `series` to `figures` (what is drawn), `tables`, `pages`, `forms` (HTML, Markdown), `csv_files`, `report`,
`lines` and `terminal`, `wandb_report`.
"""
