"""Safe readers of CSV files and pickles, which never run code from a file."""
