"""Runs in; tables and figures out. Nothing is trained here, and nothing written into a run's folder.

- `reading`: runs as one data frame, from `folders` (with what `index` has read before) and from `collected` files; a
  run is a row as `rows` has it, beside it its `timing`, `curves` and `explosions`; `collecting`: run folders into
  collected files.
- `sections`: which runs may stand in one table; `statistics`: success, means, the best rate, bootstrap intervals;
  `origins`: on what revisions, versions and machines they were made.
- `tables`, and `render` as Markdown, LaTeX or CSV: Tables 1 and 2, of rates, of cells; `figures`: 1, 2, and of rates.
- `differences`: methods at their own best rates, paired by seed; `stability`: explosions by the spectral radius;
  `costs`: what clipping takes of an iteration.
- `planned`: whether runs could make a table, asked before they are trained; `status`: where a sweep stands.
- `page`: an experiment as one HTML file; `findings`: what its runs say to the paper's claims; `multiples`: their
  curves, a small panel a setting.
- `recalled`: the paper's values, from memory; `style`: one look for all figures.

A table or a figure is a function of a data frame: start with `tables.table`. May import `runs` and what is below it.
"""
