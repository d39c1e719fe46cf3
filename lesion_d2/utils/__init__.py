"""Files, errors, processes and figures, for all packages."""
