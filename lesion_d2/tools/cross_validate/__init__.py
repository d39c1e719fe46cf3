"""Cross-validation: the models of all folds, and their test sets as one."""
