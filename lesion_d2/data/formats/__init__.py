"""File formats that are read without running anything in them: CSV and pickles."""
